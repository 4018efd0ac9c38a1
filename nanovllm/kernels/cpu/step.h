// A step of a dense model on a CPU: all its tokens through all layers.
#pragma once
#include <vector>
#include "attention.h"
#include "experts.h"
#include "layers.h"
#include "pool.h"
#include "product.h"

struct Batch {  // a step, as utils/context.py has it
  int num_tokens, num_seqs, table_width;
  const int64_t *positions, *slots;
  const int *starts, *lengths, *tables;  // cu_seqlens_q, context_lens, block_tables
};

struct Shape {
  int num_layers, hidden, num_heads, num_kv_heads, head_dim, intermediate, block_size;
  float eps, scale;
  long layer_stride;     // of a layer's keys and values in the cache, and keys come first
  long bytes_of_a_core;  // weights that its own cache holds, about
  long mlp_numbers;      // weights of a layer's feed-forward network, all experts included
  const float *cos, *sin;
};

struct Layer {  // norms: float32; the heads' may be null
  const float *norm, *q_norm, *k_norm, *norm2;
  Weight qkv, o, gate_up, down;
  Experts experts;  // in place of gate_up and down, if there are any
};

// Keys and values to their slots, queries normed and turned to `q`. qkv: one token's product.
template <class T>
void norm_rope_store(const float* qkv, const Layer& layer, const Shape& s, int64_t position, int64_t slot, T* q, T* k_cache,
                     T* v_cache) {
  const int dim = s.head_dim, width = s.num_kv_heads * dim;
  const float *cos = s.cos + position * dim / 2, *sin = s.sin + position * dim / 2;
  for (int h = 0; h < s.num_heads; h++) norm_rope(qkv + h * dim, layer.q_norm, s.eps, cos, sin, q + h * dim, dim);
  if (slot < 0) return;
  const float *k = qkv + s.num_heads * dim, *v = k + width;
  for (int h = 0; h < s.num_kv_heads; h++)
    norm_rope(k + h * dim, layer.k_norm, s.eps, cos, sin, k_cache + slot * width + h * dim, dim);
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

constexpr int MANY = 256;  // rows that a layer's weights are read for once, where they fit no cache

// Runs the stretches between attentions for a block of rows. Either one thread has the block to itself (`team` null), and
// what it computes stays in its cache; or all threads share every product of it, and wait for each other behind each.
struct Rows {
  Member* team;
  int parts, pieces;
  Form form;
  Input input;
  int tiles_set = -1;

  // fill(): makes the product's input. Called only by threads that get a share.
  template <class F>
  void product_of(F fill, const Weight& w, float* y, long stride, bool add) {
    const int panels = (w.out + PANEL - 1) / PANEL;
    auto make = [&] {
      fill();
      if (form == TILES) input.split(w.in, parts);
    };
    if (!team) {
      make();
      product(form, input, w, y, stride, add, 0, panels, tiles_set);
      return;
    }
    bool made = false;
    const int shares = std::min(panels, pieces);
    team->share(shares, [&](long i) {
      if (!made) make(), made = true;
      product(form, input, w, y, stride, add, (int)(panels * i / shares), (int)(panels * (i + 1) / shares), tiles_set);
    });
  }

  template <class F>
  void each(long n, F f) {
    if (team) return team->share(n, f);
    for (long i = 0; i < n; i++) f(i);
  }
};

template <class T>
struct Step {
  Shape s;
  Batch b;
  const Layer* layers;
  const float* last_norm;
  float* x;
  T* cache;
  Form form;
  int num_threads, q_width, qkv_width;
  bool alone;   // whether a block of rows belongs to one thread
  long block;   // rows in it
  std::vector<Tile> tiles;
  std::vector<float> wide;
  std::vector<T> q, attended;
  Routed shared;  // by all threads

  Step(const Shape& s, const Batch& b, const Layer* layers, const float* last_norm, float* x, T* cache, Form form, int num_threads)
      : s(s), b(b), layers(layers), last_norm(last_norm), x(x), cache(cache), form(form), num_threads(num_threads),
        q_width(s.num_heads * s.head_dim), qkv_width(q_width + 2 * s.num_kv_heads * s.head_dim),
        tiles(tiles_of(b, s.num_kv_heads, s.num_heads / s.num_kv_heads, num_threads)) {
    const long numbers = (long)s.hidden * (qkv_width + q_width) + s.mlp_numbers;
    const bool fits = numbers * (form == FLOATS ? 4 : 2) <= s.bytes_of_a_core;
    alone = num_threads == 1 || (fits && b.num_tokens >= BLOCK * num_threads);
    block = std::min<long>(b.num_tokens, alone && fits ? BLOCK : MANY);
    if (!alone) {
      wide.resize(block * std::max(qkv_width, 2 * s.intermediate));
      for (int l = 0; l < s.num_layers; l++)
        if (layers[l].experts.count) shared.room(block, layers[l].experts, s.hidden);
    }
    q.resize((long)b.num_tokens * q_width), attended.resize((long)b.num_tokens * q_width);
  }

  int parts() const { return sizeof(T) == 4 ? 3 : 2; }
  long blocks() const { return (b.num_tokens + block - 1) / block; }
  int stretches() const { return (s.num_layers + 1) * (alone ? 2 : 8 * (int)blocks() + 1) + 2; }

  T* keys(int layer) const { return cache + 2 * layer * s.layer_stride; }

  void before_attention(const Layer& layer, T* k_cache, long first, long n, Rows& rows, float* wide) {
    rows.product_of([&] {
      float* to = rows.input.room(n, s.hidden);
      for (long r = 0; r < n; r++) rms_norm(x + (first + r) * s.hidden, layer.norm, s.eps, to + r * s.hidden, s.hidden);
    }, layer.qkv, wide, qkv_width, false);
    rows.each(n, [&](long r) {
      norm_rope_store(wide + r * qkv_width, layer, s, b.positions[first + r], b.slots[first + r], &q[(first + r) * q_width],
                      k_cache, k_cache + s.layer_stride);
    });
  }

  void after_attention(const Layer& layer, long first, long n, Rows& rows, float* wide) {
    float* stream = x + first * s.hidden;
    rows.product_of([&] {
      float* to = rows.input.room(n, q_width);
      for (long i = 0; i < n * q_width; i += WIDTH) store(to + i, load(&attended[first * q_width + i]));
    }, layer.o, stream, s.hidden, true);
    if (layer.experts.count) mix_experts(layer, stream, n, rows);
    else feed_forward(layer, stream, n, rows, wide);
  }

  void feed_forward(const Layer& layer, float* stream, long n, Rows& rows, float* wide) {
    rows.product_of([&] {
      float* to = rows.input.room(n, s.hidden);
      for (long r = 0; r < n; r++) rms_norm(stream + r * s.hidden, layer.norm2, s.eps, to + r * s.hidden, s.hidden);
    }, layer.gate_up, wide, 2 * s.intermediate, false);
    rows.product_of([&] {
      float* to = rows.input.room(n, s.intermediate);
      for (long r = 0; r < n; r++)
        for (long i = 0; i < s.intermediate; i += WIDTH) {
          const float* gate = wide + r * 2 * s.intermediate + i;
          store(to + r * s.intermediate + i, silu_and_mul(load(gate), load(gate + s.intermediate)));
        }
    }, layer.down, stream, s.hidden, true);
  }

  void mix_experts(const Layer& layer, float* stream, long n, Rows& rows) {
    const Experts& e = layer.experts;
    const int hidden = s.hidden;
    thread_local Routed own;
    Routed& routed = alone ? own : shared;
    if (alone) own.room(n, e, hidden);
    rows.product_of([&] {
      float* to = rows.input.room(n, hidden);
      for (long r = 0; r < n; r++) rms_norm(stream + r * hidden, layer.norm2, s.eps, to + r * hidden, hidden);
    }, e.router, routed.scores.data(), e.router.out, false);
    rows.each(n, [&](long r) {
      rms_norm(stream + r * hidden, layer.norm2, s.eps, &routed.normed[r * hidden], hidden);
      choose(&routed.scores[r * e.router.out], e, &routed.chosen[r * e.active], &routed.weights[r * e.active]);
    });
    rows.each(e.count, [&](long i) { run_expert(e, i, n, hidden, routed, form, parts(), rows.input, rows.tiles_set); });
    rows.each(n, [&](long r) {
      for (int k = 0; k < e.active; k++)
        for (int i = 0; i < hidden; i += WIDTH) {
          float* to = stream + r * hidden + i;
          store(to, load(to) + load(&routed.outputs[(r * e.active + k) * hidden + i]));
        }
    });
  }

  void work(Member& member) {
    thread_local Rows rows;
    thread_local std::vector<float> own;
    rows.team = alone ? nullptr : &member, rows.form = form, rows.parts = parts();
    rows.pieces = 3 * num_threads, rows.tiles_set = -1;
    if (alone) own.resize(block * std::max(qkv_width, 2 * s.intermediate));
    float* to = alone ? own.data() : wide.data();
    for (int l = 0; l <= s.num_layers; l++) {  // what follows a layer's attention runs up to the next one's
      auto between = [&](long i) {
        const long first = i * block, n = std::min(block, b.num_tokens - first);
        if (l > 0) after_attention(layers[l - 1], first, n, rows, to);
        if (l < s.num_layers) {
          before_attention(layers[l], keys(l), first, n, rows, to);
        } else {
          rows.each(n, [&](long r) {
            float* row = x + (first + r) * s.hidden;
            rms_norm(row, last_norm, s.eps, row, s.hidden);
          });
        }
      };
      if (alone) member.share(blocks(), between);
      else for (long i = 0; i < blocks(); i++) between(i);
      if (l == s.num_layers) break;
      member.share(tiles.size(), [&](long i) {
        attend(tiles[i], q.data(), attended.data(), keys(l), keys(l) + s.layer_stride, b, s);
      });
    }
    if (form == TILES) leave_tiles();
  }
};
