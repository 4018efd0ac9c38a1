// Attention over a paged cache: online softmax (Milakov and Gimelshein 2018), a tile of keys at a time, in place.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "vector.h"

constexpr int KEYS = 64;       // in a tile
constexpr int ROWS = 32;       // queries that walk over the keys together, at most: the heads of a group, by positions
constexpr int TURN = 8;        // from so many rows on it pays to turn the keys, so that a vector is sixteen keys' scores
constexpr int MAX_HEAD = 256;  // largest head_dim

struct Cache {  // of one layer: k, v [num_blocks, block_size, num_kv_heads, head_dim]
  int block_size, num_kv_heads, head_dim;
  // Where the keys (or values) of `width` positions begin.
  void find(const int* table, int position, int width, long* at) const {
    int block = position / block_size, within = position % block_size;
    for (int j = 0; j < width; j++) {
      at[j] = ((long)table[block] * block_size + within) * num_kv_heads * head_dim;
      if (++within == block_size) block++, within = 0;
    }
  }
};

// scores[r][j] = queries[r] . keys[j], each key read once for R rows.
template <int R, class T>
void scores_of(const float (*queries)[MAX_HEAD], const T* k, const long* at, int width, int dim, float (*scores)[KEYS]) {
  int j = 0;
#if MANY_SUMS
  constexpr int TOGETHER = WIDTH / R;  // keys whose scores fill a vector
  for (; j + TOGETHER <= width; j += TOGETHER) {
    Vector dots[WIDTH] = {};
    for (int d = 0; d < dim; d += WIDTH)
#pragma GCC unroll 16
      for (int i = 0; i < TOGETHER; i++) {
        Vector key = load(k + at[j + i] + d);
        for (int r = 0; r < R; r++) dots[r * TOGETHER + i] += key * load(&queries[r][d]);
      }
    float of_all[WIDTH];
    store(of_all, sums(dots));
    for (int r = 0; r < R; r++) memcpy(&scores[r][j], of_all + r * TOGETHER, TOGETHER * sizeof(float));
  }
#endif
  for (; j < width; j++) {
    Vector dot[R] = {};
    for (int d = 0; d < dim; d += WIDTH) {
      Vector key = load(k + at[j] + d);
      for (int r = 0; r < R; r++) dot[r] += key * load(&queries[r][d]);
    }
    for (int r = 0; r < R; r++) scores[r][j] = sum(dot[r]);
  }
}

// out[r] = out[r] * shrink[r] + sum of weights[r][j] * values[j], each value read once for R rows. VECTORS: of a row at a time.
template <int R, int VECTORS, class T>
void add_values(const float (*weights)[KEYS], const float* shrink, const T* v, const long* at, int width, int dim,
                float (*out)[MAX_HEAD]) {
  for (int d = 0; d < dim; d += VECTORS * WIDTH) {
    Vector sums[R][VECTORS];
    for (int r = 0; r < R; r++)
      for (int i = 0; i < VECTORS; i++) sums[r][i] = load(&out[r][d + i * WIDTH]) * shrink[r];
    for (int j = 0; j < width; j++)
      for (int i = 0; i < VECTORS; i++) {
        Vector value = load(v + at[j] + d + i * WIDTH);
        for (int r = 0; r < R; r++) sums[r][i] += weights[r][j] * value;
      }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < VECTORS; i++) store(&out[r][d + i * WIDTH], sums[r][i]);
  }
}

// The keys of a tile turned: turned[d][j]. Then a row's scores are dim products of one number by sixteen keys.
template <class T>
void turn(const T* k, const long* at, int width, int dim, float (*turned)[KEYS]) {
  for (int j = 0; j < width; j++)
    for (int d = 0; d < dim; d += WIDTH) {
      float numbers[WIDTH];
      store(numbers, load(k + at[j] + d));
      for (int i = 0; i < WIDTH; i++) turned[d + i][j] = numbers[i];
    }
}

template <int R>
void scores_of_turned(const float (*queries)[MAX_HEAD], const float (*turned)[KEYS], int width, int dim, float (*scores)[KEYS]) {
  for (int j = 0; j < width; j += WIDTH) {
    Vector totals[R] = {};
    for (int d = 0; d < dim; d++) {
      Vector keys = load(&turned[d][j]);
      for (int r = 0; r < R; r++) totals[r] += queries[r][d] * keys;
    }
    for (int r = 0; r < R; r++) store(&scores[r][j], totals[r]);
  }
}

// Weights of the softmax in place of scores; the first `seen` count, the rest become 0. Returns what shrinks earlier sums.
inline float soften(float* scores, int seen, int width, float& highest, float& total) {
  if (seen <= 0) {
    std::fill(scores, scores + width, 0.0f);
    return 1.0f;
  }
  float now = highest;
  for (int j = 0; j < seen; j++) now = std::max(now, scores[j]);
  std::fill(scores + seen, scores + KEYS, -INFINITY);
  Vector sums = {};
  for (int j = 0; j < seen; j += WIDTH) {
    Vector weights = exp_below_zero(load(scores + j) - now);
    store(scores + j, weights);
    sums += weights;
  }
  std::fill(scores + seen, scores + KEYS, 0.0f);  // e^-87 is not quite nothing, and the value there may be no number
  const float shrink = highest == now ? 1.0f : std::exp(highest - now);
  total = total * shrink + sum(sums);
  highest = now;
  return shrink;
}

// Calls f<R>(first row) for rows in groups of four, then two, then one.
template <class F>
inline void in_groups(int rows, F f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) f(r, std::integral_constant<int, 4>());
  for (; r + 2 <= rows; r += 2) f(r, std::integral_constant<int, 2>());
  for (; r < rows; r++) f(r, std::integral_constant<int, 1>());
}

// Queries [first, first + count) of a sequence whose newest query sees `length` keys, by the heads that share the kv heads
// [head, head + heads). q, out: the sequence's first query, [num_queries, num_heads, head_dim].
// Heads take turns within a tile: their keys lie side by side in the cache, which memory likes to be read in order.
template <class T>
void attend_tile(const T* q, T* out, const T* k_cache, const T* v_cache, Cache cache, const int* table, int length,
                 int num_queries, int first, int count, int head, int heads, int group, float scale) {
  const int dim = cache.head_dim, num_heads = group * cache.num_kv_heads, rows = count * group;
  struct Rows {
    float queries[ROWS][MAX_HEAD], acc[ROWS][MAX_HEAD], highest[ROWS], total[ROWS];
  };
  thread_local std::vector<Rows> of_head;
  of_head.resize(std::max<size_t>(of_head.size(), heads));
  float scores[ROWS][KEYS], shrink[ROWS], turned[MAX_HEAD][KEYS];
  auto place = [&](int h, int r) { return ((long)(first + r / group) * num_heads + (head + h) * group + r % group) * dim; };
  for (int h = 0; h < heads; h++)
    for (int r = 0; r < rows; r++) {
      for (int d = 0; d < dim; d += WIDTH) {
        store(&of_head[h].queries[r][d], load(q + place(h, r) + d) * scale);
        store(&of_head[h].acc[r][d], Vector{});
      }
      of_head[h].highest[r] = -INFINITY, of_head[h].total[r] = 0;
    }
  const int end = length - num_queries + first + count;  // keys that the last of these queries sees
  for (int start = 0; start < end; start += KEYS) {
    const int width = std::min(KEYS, end - start);
    long at[KEYS];
    cache.find(table, start, width, at);
    for (int h = 0; h < heads; h++) {
      const T *k = k_cache + (head + h) * dim, *v = v_cache + (head + h) * dim;
      Rows& own = of_head[h];
      if (rows >= TURN) {
        turn(k, at, width, dim, turned);
        in_groups(rows, [&](int r, auto n) { scores_of_turned<n>(own.queries + r, turned, width, dim, scores + r); });
      } else {
        in_groups(rows, [&](int r, auto n) { scores_of<n>(own.queries + r, k, at, width, dim, scores + r); });
      }
      for (int r = 0; r < rows; r++) {
        const int seen = std::min(width, length - num_queries + first + r / group + 1 - start);
        shrink[r] = soften(scores[r], seen, width, own.highest[r], own.total[r]);
      }
      in_groups(rows, [&](int r, auto n) {
        if (MANY_SUMS && dim % (4 * WIDTH) == 0) add_values<n, 4>(scores + r, shrink + r, v, at, width, dim, own.acc + r);
        else add_values<n, 2>(scores + r, shrink + r, v, at, width, dim, own.acc + r);
      });
    }
  }
  for (int h = 0; h < heads; h++)
    for (int r = 0; r < rows; r++)
      for (int d = 0; d < dim; d += WIDTH)
        store(out + place(h, r) + d, load(&of_head[h].acc[r][d]) * (1.0f / of_head[h].total[r]));
}
