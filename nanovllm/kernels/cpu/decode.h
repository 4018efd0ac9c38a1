// A step from token ids to token ids in one call: embeddings, layers, the head, and a draw from each row's logits.
#pragma once
#include <memory>
#include <vector>
#include "draw.h"
#include "step.h"

struct Draws {  // embedding, logits: numbers of the model's own type
  const void* embedding;              // [vocab_size, hidden]
  const int64_t *input_ids, *rows;    // of every token of the step; which of them draw
  void* logits;                       // [num_rows, stride], whose first vocab_size columns count
  int64_t* tokens;                    // [num_rows]
  const float* temperatures;          // [num_rows], and seeds and offsets, of each draw; null: all are greedy
  const int64_t *seeds, *offsets;
  Weight head;
  int num_rows, vocab_size, stride;
};

// As numbers of type T and back: hidden states are of the model's own type.
template <class T>
void round_to(const float* x, float* out, int n) {
  for (int i = 0; i < n; i += WIDTH) {
    T numbers[WIDTH];
    store(numbers, load(x + i));
    store(out + i, load(numbers));
  }
}

// The residual stream of a step's tokens, to begin with.
template <class T>
std::vector<float> embedded(const Draws& d, int num_tokens, int hidden) {
  std::vector<float> x((long)num_tokens * hidden);
  for (long r = 0; r < num_tokens; r++) {
    const T* from = (const T*)d.embedding + d.input_ids[r] * hidden;
    for (int i = 0; i < hidden; i += WIDTH) store(&x[r * hidden + i], load(from + i));
  }
  return x;
}

template <class T>
struct Decode {
  Draws d;
  std::vector<float> x, scores;  // scores: [num_rows, stride], where the model's own type is another
  Step<T> step;

  Decode(const Shape& s, const Batch& b, const Layer* layers, const float* last_norm, const Draws& d, T* cache, Form form,
         int num_threads)
      : d(d), x(embedded<T>(d, b.num_tokens, s.hidden)), step(s, b, layers, last_norm, x.data(), cache, form, num_threads) {
    if (sizeof(T) != sizeof(float)) scores.resize((long)d.num_rows * d.stride);
  }

  int stretches() const { return step.stretches() + (d.num_rows + MANY - 1) / MANY + 1; }

  void work(Member& member) {
    thread_local Rows rows;
    step.work(member);
    rows.team = &member, rows.form = step.form, rows.parts = step.parts(), rows.pieces = 3 * step.num_threads;
    rows.tiles_set = -1;
    const int hidden = step.s.hidden;
    float* to = sizeof(T) == sizeof(float) ? (float*)d.logits : scores.data();
    for (long first = 0; first < d.num_rows; first += MANY) {
      const long n = std::min<long>(MANY, d.num_rows - first);
      rows.product_of([&] {
        float* in = rows.input.room(n, hidden);
        for (long r = 0; r < n; r++) round_to<T>(&x[d.rows[first + r] * hidden], in + r * hidden, hidden);
      }, d.head, to + first * d.stride, d.stride, false);
    }
    member.share(d.num_rows, [&](long r) {
      T* logits = (T*)d.logits + r * d.stride;
      if (sizeof(T) != sizeof(float))
        for (int i = 0; i < d.stride; i += WIDTH) store(logits + i, load(to + r * d.stride + i));
      d.tokens[r] = draw(logits, d.vocab_size, d.temperatures ? Draw{d.temperatures[r], d.seeds[r], d.offsets[r]} : Draw{});
    });
    if (rows.form == TILES) leave_tiles();
  }
};

template <class T>
void decode(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, const Draws* d, T* cache, int form,
            int num_threads) {
  auto whole = std::make_shared<Decode<T>>(*s, *b, layers, last_norm, *d, cache, (Form)form, num_threads);
  run(num_threads, whole->stretches(), [whole](Member& member) { whole->work(member); });
}

// The given step, whose sequences draw one token each, and then one after the other those that feed back what the last one drew.
// limits: [num_seqs], how many tokens each is to draw, at most `most`. drafts: [most, num_seqs]; below 0 where there is none.
template <class T>
void draft(const Shape* s, const Batch* b, const Layer* layers, const float* last_norm, const Draws* d, const int* limits, int most,
           int64_t* drafts, T* cache, int form, int num_threads) {
  const int n = b->num_seqs, size = s->block_size;
  Draws next = *d;
  next.tokens = drafts;
  decode(s, b, layers, last_norm, &next, cache, form, num_threads);
  std::fill(drafts + n, drafts + (long)most * n, -1);
  for (int j = 1; j < most; j++) {
    std::vector<int> seqs, starts(1), lengths, tables;
    std::vector<int64_t> ids, positions, slots, rows, seeds, offsets;
    std::vector<float> temperatures;
    for (int i = 0; i < n; i++) {
      const int64_t id = drafts[(long)(j - 1) * n + i];
      if (limits[i] <= j || id < 0) continue;
      const int position = b->lengths[i] - 1 + j;
      const int* table = b->tables + (long)i * b->table_width;
      seqs.push_back(i), starts.push_back(seqs.size()), lengths.push_back(position + 1);
      tables.insert(tables.end(), table, table + b->table_width);
      ids.push_back(id), positions.push_back(position), rows.push_back(rows.size());
      slots.push_back((int64_t)table[position / size] * size + position % size);
      temperatures.push_back(d->temperatures[i]), seeds.push_back(d->seeds[i]), offsets.push_back(d->offsets[i] + j);
    }
    if (seqs.empty()) break;
    std::vector<int64_t> tokens(seqs.size());
    const Batch step{(int)seqs.size(), (int)seqs.size(), b->table_width, positions.data(), slots.data(), starts.data(),
                     lengths.data(), tables.data()};
    next.input_ids = ids.data(), next.rows = rows.data(), next.num_rows = seqs.size(), next.tokens = tokens.data();
    next.temperatures = temperatures.data(), next.seeds = seeds.data(), next.offsets = offsets.data();
    decode(s, &step, layers, last_norm, &next, cache, form, num_threads);
    for (size_t k = 0; k < seqs.size(); k++) drafts[(long)j * n + seqs[k]] = tokens[k];
  }
}
