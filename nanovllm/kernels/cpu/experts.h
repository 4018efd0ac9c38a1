// A feed-forward network of many experts, of which each token uses a few (Shazeer et al. 2017).
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>
#include "layers.h"
#include "product.h"

struct Experts {  // of a layer; count 0: it has none. gate_up, down: [count]
  Weight router;
  const Weight *gate_up, *down;
  int count, active, normalize;
};

// What a block of rows holds between its router and its sum.
struct Routed {
  std::vector<float> normed, scores, weights, outputs;  // [rows, hidden], [rows, count], [rows, active], [rows, active, hidden]
  std::vector<int> chosen;                              // [rows, active], experts

  void room(long rows, const Experts& e, int hidden) {
    const auto grow = [](auto& numbers, long n) { if ((long)numbers.size() < n) numbers.resize(n); };
    grow(normed, rows * hidden), grow(scores, rows * e.router.out), grow(weights, rows * e.active);
    grow(outputs, rows * e.active * hidden), grow(chosen, rows * e.active);
  }
};

// The `active` experts of the highest scores, the first of equals, and their weights: shares of the softmax over all, or of
// those chosen.
inline void choose(const float* scores, const Experts& e, int* chosen, float* weights) {
  float total = 0, highest = scores[0];
  for (int i = 1; i < e.count; i++) highest = std::max(highest, scores[i]);
  for (int k = 0; k < e.active; k++) {
    int best = -1;
    for (int i = 0; i < e.count; i++)
      if (std::find(chosen, chosen + k, i) == chosen + k && (best < 0 || scores[i] > scores[best])) best = i;
    chosen[k] = best, weights[k] = std::exp(scores[best] - highest);
    total += weights[k];
  }
  if (!e.normalize) {
    total = 0;
    for (int i = 0; i < e.count; i++) total += std::exp(scores[i] - highest);
  }
  for (int k = 0; k < e.active; k++) weights[k] /= total;
}

// One expert's output for those of n rows that chose it. input, tiles_set: the thread's own.
inline void run_expert(const Experts& e, int expert, long n, int hidden, Routed& routed, Form form, int parts, Input& input,
                       int& tiles_set) {
  thread_local std::vector<long> places;  // in [rows, active]
  thread_local std::vector<float> wide, narrow;
  places.clear();
  for (long i = 0; i < n * e.active; i++)
    if (routed.chosen[i] == expert) places.push_back(i);
  const long rows = places.size();
  if (!rows) return;
  const Weight &gate_up = e.gate_up[expert], &down = e.down[expert];
  wide.resize(std::max<size_t>(wide.size(), rows * gate_up.out)), narrow.resize(std::max<size_t>(narrow.size(), rows * down.out));
  const auto multiply = [&](const Weight& w, float* y) {
    if (form == TILES) input.split(w.in, parts);
    product(form, input, w, y, w.out, false, 0, (w.out + PANEL - 1) / PANEL, tiles_set);
  };
  float* in = input.room(rows, hidden);
  for (long r = 0; r < rows; r++)
    std::copy_n(&routed.normed[places[r] / e.active * hidden], hidden, in + r * hidden);
  multiply(gate_up, wide.data());
  const int inner = down.in;
  in = input.room(rows, inner);
  for (long r = 0; r < rows; r++)
    for (int i = 0; i < inner; i += WIDTH) {
      const float* gate = &wide[r * gate_up.out + i];
      store(in + r * inner + i, silu_and_mul(load(gate), load(gate + inner)));
    }
  multiply(down, narrow.data());
  for (long r = 0; r < rows; r++)
    for (int i = 0; i < hidden; i += WIDTH)
      store(&routed.outputs[places[r] * hidden + i], load(&narrow[r * down.out + i]) * routed.weights[places[r]]);
}
