// The forward pass of a dense model on a CPU: attention and what stands between products, for any number of tokens, and
// whole steps of a few tokens in one call. Called from Python through ctypes; see kernels/cpu/library.py.
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif
#include "attention.h"
#include "layers.h"

struct Batch {  // a step, as utils/context.py has it
  int num_tokens, num_seqs, table_width;
  const int64_t *positions, *slots;
  const int *starts, *lengths, *tables;  // cu_seqlens_q, context_lens, block_tables
};

struct Shape {
  int num_layers, hidden, num_heads, num_kv_heads, head_dim, intermediate, block_size;
  float eps, scale;
  long layer_stride;  // of a layer's keys and values in the cache, and keys come first
  const float *cos, *sin;
};

// Keys and values to their slots, queries normed and turned to `q`. qkv: one token's product.
template <class X, class T>
void norm_rope_store(const X* qkv, const float* q_norm, const float* k_norm, const Shape& s, int64_t position, int64_t slot,
                     T* q, T* k_cache, T* v_cache) {
  const int dim = s.head_dim, width = s.num_kv_heads * dim;
  const float *cos = s.cos + position * dim / 2, *sin = s.sin + position * dim / 2;
  for (int h = 0; h < s.num_heads; h++) norm_rope(qkv + h * dim, q_norm, s.eps, cos, sin, q + h * dim, dim);
  if (slot < 0) return;
  const X *k = qkv + s.num_heads * dim, *v = k + width;
  for (int h = 0; h < s.num_kv_heads; h++)
    norm_rope(k + h * dim, k_norm, s.eps, cos, sin, k_cache + slot * width + h * dim, dim);
  for (int i = 0; i < width; i += WIDTH) store(v_cache + slot * width + i, load(v + i));
}

struct Tile {
  int seq, first, count, head, heads;
};

// The batch cut into what one thread does in one go. Chunks of prompts are cut into tiles of queries and single heads, whose
// keys are read from memory once for all their rows. Decodes take all heads of a sequence together, or a share of them where
// there are not enough sequences for all threads.
inline std::vector<Tile> tiles_of(const Batch& b, int num_kv_heads, int group, int num_threads) {
  std::vector<Tile> tiles;
  const int most = std::max(1, ROWS / group);
  for (int i = 0; i < b.num_seqs; i++) {
    const int n = b.starts[i + 1] - b.starts[i];
    if (b.lengths[i] == 0 || n == 0) continue;
    const int together = n * group >= TURN ? 1 : b.num_seqs >= 2 * num_threads ? num_kv_heads
                       : (num_kv_heads + num_threads - 1) / num_threads;
    for (int first = (n - 1) / most * most; first >= 0; first -= most)  // the longest first
      for (int head = 0; head < num_kv_heads; head += together)
        tiles.push_back({i, first, std::min(most, n - first), head, std::min(together, num_kv_heads - head)});
  }
  return tiles;
}

template <class T>
void attend(const Tile& t, const T* q, T* out, const T* k_cache, const T* v_cache, const Batch& b, const Shape& s) {
  const int start = b.starts[t.seq], n = b.starts[t.seq + 1] - start;
  const long row = (long)start * s.num_heads * s.head_dim;
  attend_tile(q + row, out + row, k_cache, v_cache, Cache{s.block_size, s.num_kv_heads, s.head_dim},
              b.tables + (long)t.seq * b.table_width, b.lengths[t.seq], n, t.first, t.count, t.head, t.heads,
              s.num_heads / s.num_kv_heads, s.scale);
}

// y[r][o] = w[o] . x[r] + bias[o], or added to it, for o in [from, to): a row of the weight is read once for R rows of x.
template <int R, bool ADD, class W>
void product_of(const float* x, const W* w, const float* bias, float* y, int in, int out, int from, int to) {
  for (int o = from; o < to; o++) {
    Vector sums[R] = {};
    for (int i = 0; i < in; i += WIDTH) {
      Vector weight = load(w + (long)o * in + i);
      for (int r = 0; r < R; r++) sums[r] += weight * load(x + (long)r * in + i);
    }
    for (int r = 0; r < R; r++) {
      float& to = y[(long)r * out + o];
      to = sum(sums[r]) + (bias ? bias[o] : 0.0f) + (ADD ? to : 0.0f);
    }
  }
}

// This thread's share of the features of a product. Inside a parallel region.
template <bool ADD, class W>
void product(int rows, const float* x, const W* w, const float* bias, float* y, int in, int out) {
  const int n = omp_get_num_threads(), me = omp_get_thread_num();
  const int from = (long)out * me / n, to = (long)out * (me + 1) / n;
  while (rows > 0) {
    const int now = rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
    auto run = now == 8 ? product_of<8, ADD, W> : now == 4 ? product_of<4, ADD, W>
             : now == 2 ? product_of<2, ADD, W> : product_of<1, ADD, W>;
    run(x, w, bias, y, in, out, from, to);
    rows -= now, x += (long)now * in, y += (long)now * out;
  }
}

template <class W>
struct Layer {  // pointers from Python; biases and head norms may be null
  const float* norm;
  const W* qkv;
  const float *qkv_bias, *q_norm, *k_norm;
  const W* o;
  const float *o_bias, *norm2;
  const W* gate_up;
  const float* gate_up_bias;
  const W* down;
  const float* down_bias;
};

// Few tokens through all layers, in one parallel region whose threads wait for each other behind every product.
// x: [num_tokens, hidden], the residual stream; the final norm of it comes back in its place.
template <class T, class W>
void few(const Shape& s, const Batch& b, const Layer<W>* layers, const float* last_norm, float* x, T* cache, int num_threads) {
  const int n = b.num_tokens, hidden = s.hidden, inner = s.intermediate, q_width = s.num_heads * s.head_dim;
  const int qkv_width = q_width + 2 * s.num_kv_heads * s.head_dim;
  std::vector<float> wide((long)n * std::max(qkv_width, 2 * inner));  // what a product leaves for all threads
  std::vector<T> q((long)n * q_width), attended((long)n * q_width);
  const auto tiles = tiles_of(b, s.num_kv_heads, s.num_heads / s.num_kv_heads, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    std::vector<float> own((long)n * std::max({hidden, inner, q_width}));  // a product's input: each thread makes it for itself
    auto norm = [&](const float* weight) {
      for (long r = 0; r < n; r++) rms_norm(x + r * hidden, weight, s.eps, &own[r * hidden], hidden);
    };
    for (int l = 0; l < s.num_layers; l++) {
      const Layer<W>& layer = layers[l];
      T *k_cache = cache + 2 * l * s.layer_stride, *v_cache = k_cache + s.layer_stride;
      norm(layer.norm);
      product<false>(n, own.data(), layer.qkv, layer.qkv_bias, wide.data(), hidden, qkv_width);
#pragma omp barrier
#pragma omp for schedule(static)
      for (long r = 0; r < n; r++)
        norm_rope_store(&wide[r * qkv_width], layer.q_norm, layer.k_norm, s, b.positions[r], b.slots[r], &q[r * q_width],
                        k_cache, v_cache);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < tiles.size(); i++) attend(tiles[i], q.data(), attended.data(), k_cache, v_cache, b, s);
      for (long i = 0; i < (long)n * q_width; i += WIDTH) store(&own[i], load(&attended[i]));
      product<true>(n, own.data(), layer.o, layer.o_bias, x, q_width, hidden);
#pragma omp barrier
      norm(layer.norm2);
      product<false>(n, own.data(), layer.gate_up, layer.gate_up_bias, wide.data(), hidden, 2 * inner);
#pragma omp barrier
      for (long r = 0; r < n; r++)
        for (long i = 0; i < inner; i += WIDTH) {
          const float* gate = &wide[r * 2 * inner + i];
          store(&own[r * inner + i], silu_and_mul(load(gate), load(gate + inner)));
        }
      product<true>(n, own.data(), layer.down, layer.down_bias, x, inner, hidden);
#pragma omp barrier
    }
#pragma omp for schedule(static)
    for (long r = 0; r < n; r++) rms_norm(x + r * hidden, last_norm, s.eps, x + r * hidden, hidden);
  }
}

// The stretches between products of many tokens, a row or a tile for each thread at a time.
template <class T>
struct Many {
  static void norm(T* x, const T* added, const float* weight, float eps, T* out, long rows, int size, int num_threads) {
#pragma omp parallel for num_threads(num_threads)
    for (long r = 0; r < rows; r++) {
      T* row = x + r * size;
      if (added)
        for (int i = 0; i < size; i += WIDTH) store(row + i, load(row + i) + load(added + r * size + i));
      rms_norm(row, weight, eps, out + r * size, size);
    }
  }

  static void store_heads(const T* qkv, const float* q_norm, const float* k_norm, const Shape* s, const Batch* b, T* q,
                          T* k_cache, T* v_cache, int num_threads) {
    const long q_width = s->num_heads * s->head_dim, width = q_width + 2 * s->num_kv_heads * s->head_dim;
#pragma omp parallel for num_threads(num_threads)
    for (long r = 0; r < b->num_tokens; r++)
      norm_rope_store(qkv + r * width, q_norm, k_norm, *s, b->positions[r], b->slots[r], q + r * q_width, k_cache, v_cache);
  }

  static void attention(const T* q, T* out, const T* k_cache, const T* v_cache, const Shape* s, const Batch* b,
                        int num_threads) {
    const auto tiles = tiles_of(*b, s->num_kv_heads, s->num_heads / s->num_kv_heads, num_threads);
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
    for (size_t i = 0; i < tiles.size(); i++) attend(tiles[i], q, out, k_cache, v_cache, *b, *s);
  }

  static void gate(const T* gate_up, T* out, long rows, int size, int num_threads) {
#pragma omp parallel for num_threads(num_threads)
    for (long r = 0; r < rows; r++)
      for (int i = 0; i < size; i += WIDTH) {
        const T* at = gate_up + r * 2 * size + i;
        store(out + r * size + i, silu_and_mul(load(at), load(at + size)));
      }
  }
};

// What Python sees: a name per type of the cache, T, and of the weights, W.
#define FOR_CACHE(NAME, T)                                                                                                    \
  void norm_##NAME(T* x, const T* added, const float* weight, float eps, T* out, long rows, int size, int num_threads) {      \
    Many<T>::norm(x, added, weight, eps, out, rows, size, num_threads);                                                       \
  }                                                                                                                           \
  void store_heads_##NAME(const T* qkv, const float* q_norm, const float* k_norm, const Shape* s, const Batch* b, T* q,       \
                          T* k_cache, T* v_cache, int num_threads) {                                                          \
    Many<T>::store_heads(qkv, q_norm, k_norm, s, b, q, k_cache, v_cache, num_threads);                                        \
  }                                                                                                                           \
  void attention_##NAME(const T* q, T* out, const T* k_cache, const T* v_cache, const Shape* s, const Batch* b,               \
                        int num_threads) {                                                                                    \
    Many<T>::attention(q, out, k_cache, v_cache, s, b, num_threads);                                                          \
  }                                                                                                                           \
  void gate_##NAME(const T* gate_up, T* out, long rows, int size, int num_threads) {                                          \
    Many<T>::gate(gate_up, out, rows, size, num_threads);                                                                     \
  }
#define FOR_WEIGHTS(NAME, T, W)                                                                                               \
  void few_##NAME(const Shape* s, const Batch* b, const Layer<W>* layers, const float* last_norm, float* x, T* cache,         \
                  int num_threads) {                                                                                          \
    few(*s, *b, layers, last_norm, x, cache, num_threads);                                                                    \
  }
#define FOR_PRODUCT(NAME, W)                                                                                                  \
  void product_##NAME(const float* x, const W* w, float* y, int rows, int in, int out, int num_threads) {                     \
    _Pragma("omp parallel num_threads(num_threads)") product<false>(rows, x, w, (const float*)nullptr, y, in, out);           \
  }

extern "C" {
FOR_CACHE(float32, float)
FOR_CACHE(bfloat16, bfloat16)
FOR_WEIGHTS(float32_float32, float, float)
FOR_WEIGHTS(float32_bfloat16, float, bfloat16)
FOR_WEIGHTS(bfloat16_bfloat16, bfloat16, bfloat16)
FOR_PRODUCT(float32, float)
FOR_PRODUCT(bfloat16, bfloat16)
}
