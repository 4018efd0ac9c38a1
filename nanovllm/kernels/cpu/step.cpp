// What Python calls through ctypes; see kernels/cpu/library.py.
#include <memory>
#include "decode.h"
#include "step.h"

template <class T>
void take_step(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, float* x, T* cache, int form,
               int num_threads) {
  auto step = std::make_shared<Step<T>>(*s, *b, layers, last_norm, x, cache, (Form)form, num_threads);
  run(num_threads, step->stretches(), [step](Member& member) { step->work(member); });
}

template <class T>
void attend_all(const T* q, T* out, const T* k_cache, const T* v_cache, const Shape* s, const Batch* b, int num_threads) {
  auto tiles = std::make_shared<std::vector<Tile>>(tiles_of(*b, s->num_kv_heads, s->num_heads / s->num_kv_heads, num_threads));
  run(num_threads, 1, [=, shape = *s, batch = *b](Member& member) {
    member.share(tiles->size(), [&](long i) { attend((*tiles)[i], q, out, k_cache, v_cache, batch, shape); });
  });
}

extern "C" {
int has_tiles() { return tiles_work(); }

// x: [num_tokens, hidden] float32, the residual stream; the final norm of it comes back in its place.
void step_float32(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, float* x, float* cache, int form,
                  int num_threads) {
  take_step(s, b, layers, last_norm, x, cache, form, num_threads);
}
void step_bfloat16(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, float* x, bfloat16* cache,
                   int form, int num_threads) {
  take_step(s, b, layers, last_norm, x, cache, form, num_threads);
}

// The same from token ids to token ids; see decode.h.
void decode_float32(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, const Draws* d, float* cache,
                    int form, int num_threads) {
  decode(s, b, layers, last_norm, d, cache, form, num_threads);
}
void decode_bfloat16(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, const Draws* d,
                     bfloat16* cache, int form, int num_threads) {
  decode(s, b, layers, last_norm, d, cache, form, num_threads);
}

// And from its tokens on to the next ones.
void draft_float32(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, const Draws* d, const int* limits,
                   int most, int64_t* drafts, float* cache, int form, int num_threads) {
  draft(s, b, layers, last_norm, d, limits, most, drafts, cache, form, num_threads);
}
void draft_bfloat16(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, const Draws* d, const int* limits,
                    int most, int64_t* drafts, bfloat16* cache, int form, int num_threads) {
  draft(s, b, layers, last_norm, d, limits, most, drafts, cache, form, num_threads);
}

void attention_float32(const float* q, float* out, const float* k_cache, const float* v_cache, const Shape* s, const Batch* b,
                       int num_threads) {
  attend_all(q, out, k_cache, v_cache, s, b, num_threads);
}
void attention_bfloat16(const bfloat16* q, bfloat16* out, const bfloat16* k_cache, const bfloat16* v_cache, const Shape* s,
                        const Batch* b, int num_threads) {
  attend_all(q, out, k_cache, v_cache, s, b, num_threads);
}

// tokens [rows]: drawn from logits [rows, stride], whose first vocab_size columns count.
void draw_float32(const float* logits, const float* temperatures, const int64_t* seeds, const int64_t* offsets, int64_t* tokens,
                  int rows, int stride, int vocab_size, int masked, int num_threads) {
  run(num_threads, 1, [=](Member& member) {
    member.share(rows, [&](long r) {
      tokens[r] = draw(logits + r * stride, vocab_size, Draw{temperatures[r], seeds[r], offsets[r], masked != 0});
    });
  });
}

// y [rows, stride] = x [rows, in] w^T. parts: see Input.
void product_of(const float* x, const Weight* w, float* y, long rows, long stride, int form, int parts, int num_threads) {
  const Weight weight = *w;
  run(num_threads, (int)((rows + MANY - 1) / MANY), [=](Member& member) {
    Rows block{&member, parts, 3 * num_threads, (Form)form};
    for (long first = 0; first < rows; first += MANY) {
      const long n = std::min<long>(MANY, rows - first);
      block.product_of([&] { memcpy(block.input.room(n, weight.in), x + first * weight.in, n * weight.in * sizeof(float)); },
                       weight, y + first * stride, stride, false);
    }
    if (form == TILES) leave_tiles();
  });
}
}
