// y = x w^T + bias for any number of rows. The weight lies in panels of 32 features, each read from one end to the other.
#pragma once
#include <algorithm>
#include <vector>
#include "tiles.h"

constexpr int PANEL = 32;  // features
constexpr int BLOCK = 32;  // rows that pass a panel together

// How a weight lies in memory, and who multiplies. FLOATS: panels of [in][32] float32. HALVES: [in / 2][2][16][2] bfloat16: two
// neighbours of the input side by side, for 16 features and then the other 16, which is what the matrix unit reads, and which
// a vector takes apart with a shift and a mask. TILES: the same numbers, for the matrix unit.
enum Form : int { FLOATS, HALVES, TILES };

struct Weight {  // `in` is a multiple of 16; panels of bfloat16 are filled up with zeros to 32. bias may be null.
  const void* panels;
  const float* bias;
  int in, out;
};

// Rows of a product's input as its form wants them. parts: bfloat16 numbers that add up to each: three to a float32 exactly.
struct Input {
  std::vector<float> floats;
  std::vector<bfloat16> planes;
  long rows = 0, stride = 0, plane = 0;
  int parts = 0;

  float* room(long n, int in) {  // to be filled with n rows
    rows = n;
    if ((long)floats.size() < n * in) floats.resize(n * in);
    return floats.data();
  }

  void split(int in, int in_parts) {
    parts = in_parts, stride = (in + 31) / 32 * 32 + 32;  // 64 bytes more: rows a page apart would push each other out of L1
    plane = rows * stride;
    if ((long)planes.size() < parts * plane) planes.resize(parts * plane);
    for (long r = 0; r < rows; r++) {
      bfloat16* to = &planes[r * stride];
      for (int i = 0; i < in; i += WIDTH) {
        Vector x = load(&floats[r * in + i]);
        for (int part = 0; part < parts; part++) {  // the upper half of what is left
          Ints upper = (Ints)x >> 16;
          Halves h = __builtin_convertvector(upper, Halves);
          memcpy(to + part * plane + i, &h, sizeof h);
          x -= (Vector)(upper << 16);
        }
      }
      if (in % 32)
        for (int part = 0; part < parts; part++) memset(to + part * plane + in, 0, 16 * sizeof(bfloat16));
    }
  }
};

#ifdef __AVX512F__
constexpr int TOGETHER = 8;  // rows whose sums stay in registers
#else
constexpr int TOGETHER = 2;
#endif

template <int R>
void panel_product(const float* x, int in, const float* panel, float (*c)[PANEL]) {
  Vector low[R] = {}, high[R] = {};
  for (int k = 0; k < in; k++, panel += PANEL) {
    Vector first = load(panel), second = load(panel + WIDTH);
    for (int r = 0; r < R; r++) low[r] += x[(long)r * in + k] * first, high[r] += x[(long)r * in + k] * second;
  }
  for (int r = 0; r < R; r++) store(c[r], low[r]), store(c[r] + WIDTH, high[r]);
}

template <int R>
void panel_product(const float* x, int in, const bfloat16* panel, float (*c)[PANEL]) {
  Vector low[R] = {}, high[R] = {};
  for (int k = 0; k < in; k += 2, panel += 2 * PANEL) {
    Ints first, second;
    memcpy(&first, panel, sizeof first);
    memcpy(&second, panel + PANEL, sizeof second);
    Vector first_even = (Vector)(first << 16), first_odd = (Vector)(first & (int)0xffff0000);
    Vector second_even = (Vector)(second << 16), second_odd = (Vector)(second & (int)0xffff0000);
    for (int r = 0; r < R; r++) {
      const float even = x[(long)r * in + k], odd = x[(long)r * in + k + 1];
      low[r] += even * first_even, high[r] += even * second_even;
      low[r] += odd * first_odd, high[r] += odd * second_odd;
    }
  }
  for (int r = 0; r < R; r++) store(c[r], low[r]), store(c[r] + WIDTH, high[r]);
}

template <class W>
void panel_rows(const float* x, int rows, int in, const W* panel, float (*c)[PANEL]) {
  int r = 0;
  for (; r + TOGETHER <= rows; r += TOGETHER) panel_product<TOGETHER>(x + (long)r * in, in, panel, c + r);
  if (TOGETHER > 4 && r + 4 <= rows) panel_product<4>(x + (long)r * in, in, panel, c + r), r += 4;
  if (TOGETHER > 2 && r + 2 <= rows) panel_product<2>(x + (long)r * in, in, panel, c + r), r += 2;
  for (; r < rows; r++) panel_product<1>(x + (long)r * in, in, panel, c + r);
}

// Panels [from, to) of the product for all rows of x, into y [rows][stride], or added to what is there.
inline void product(Form form, const Input& x, const Weight& w, float* y, long stride, bool add, int from, int to, int& tiles_set) {
  const int padded = form == FLOATS ? w.in : (w.in + 31) / 32 * 32;
  alignas(64) float c[BLOCK][PANEL];
  for (int p = from; p < to; p++)
    for (long first = 0; first < x.rows; first += BLOCK) {
      const int rows = std::min<long>(BLOCK, x.rows - first);
      const long at = (long)p * padded * PANEL;
      if (form == FLOATS) {
        panel_rows(&x.floats[first * w.in], rows, w.in, (const float*)w.panels + at, c);
      } else if (form == HALVES) {
        panel_rows(&x.floats[first * w.in], rows, w.in, (const bfloat16*)w.panels + at, c);
      } else {
        set_tiles(rows, tiles_set);
        tile_product(&x.planes[first * x.stride], x.parts, x.plane, x.stride, (const bfloat16*)w.panels + at, padded / 32, rows, c);
      }
      for (int i = 0; i < PANEL && p * PANEL + i < w.out; i += WIDTH) {
        const Vector bias = w.bias ? load(w.bias + p * PANEL + i) : Vector{};
        for (int r = 0; r < rows; r++) {
          float* to_y = y + (first + r) * stride + p * PANEL + i;
          store(to_y, add ? load(to_y) + (load(&c[r][i]) + bias) : load(&c[r][i]) + bias);
        }
      }
    }
}
