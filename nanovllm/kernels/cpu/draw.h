// From scores to tokens, as `layers/sampler.py` says it: the highest of scores plus Gumbel noise, which `layers/noise.py` makes
// of a request's seed, how many tokens it has drawn and the token. The same random bits; logarithms within 2 ulp.
#pragma once
#include <cmath>
#include "vector.h"

typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));

inline uint64_t mix64(uint64_t x) {  // SplitMix64 (Steele, Lea and Flood 2014)
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline Bits mix32(Bits x) {
  x = (x ^ (x >> 16)) * 0x21F0AAADu;
  x = (x ^ (x >> 15)) * 0xD35A2D97u;
  return x ^ (x >> 15);
}

// ln x for normal x > 0 (Cephes, Moshier).
inline Vector log(Vector x) {
  const Ints bits = (Ints)x, above = bits - 0x3f3504f3;  // the bits of sqrt(1/2)
  const Vector power = __builtin_convertvector(above >> 23, Vector);
  const Vector r = (Vector)((above & 0x7fffff) + 0x3f3504f3) - 1.0f;
  Vector p = all(7.0376836292e-2f);
  for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f, 2.0000714765e-1f,
                  -2.4999993993e-1f, 3.3333331174e-1f})
    p = p * r + c;
  p = p * r * r * r - 2.12194440e-4f * power - 0.5f * r * r;
  return r + p + 0.693359375f * power;
}

// -log(-log(u)) for the tokens `at`. key: of a request and a position.
inline Vector gumbel_noise(uint64_t key, Ints at) {
  const Bits bits = mix32(mix32((Bits)at + (uint32_t)key) ^ (uint32_t)(key >> 32));
  Vector rest = (__builtin_convertvector(bits, Vector) + 0.5f) * 0x1p-32f;  // 1 - u
  rest = (rest > 1 - 0x1p-24f) ? all(1 - 0x1p-24f) : rest;
  const Vector u = 1.0f - rest, lost = u - 1.0f;  // which differs from -rest by what u was rounded
  const Vector ln = (lost == 0.0f) ? -rest : log(u) * (-rest / lost);
  return -log(-ln);
}

struct Draw {  // temperature 0: no noise. masked: -inf marks a token that is forbidden
  float temperature = 0;
  int64_t seed = 0, offset = 0;
  bool masked = false;
};

// The first of the highest of n scores, noise included; -1 where they are not all finite, or all forbidden.
template <class T>
int64_t draw(const T* scores, int n, const Draw& d) {
  const uint64_t key = mix64(mix64(d.seed) + d.offset * 0x9E3779B97F4A7C15u);
  Vector highest = all(-INFINITY), zeros = {};
  Ints where = {}, at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int i = 0; i < n; i += WIDTH, at += WIDTH) {
    T some[WIDTH];
    const T* from = scores + i;
    if (i + WIDTH > n) {  // the last one stands in for those behind it
      for (int j = 0; j < WIDTH; j++) some[j] = scores[i + j < n ? i + j : n - 1];
      from = some;
    }
    const Vector x = load(from);
    zeros += ((d.masked ? x == -INFINITY : Ints{}) ? Vector{} : x) * 0.0f;  // which is no number where x is not finite
    Vector score = d.temperature == 0 ? x : x / d.temperature + gumbel_noise(key, at);
    score = (at < n) ? score : all(-INFINITY);
    const Ints higher = score > highest;
    highest = higher ? score : highest;
    where = higher ? at : where;
  }
  float best = -INFINITY;
  int64_t token = -1;
  for (int lane = 0; lane < WIDTH; lane++)
    if (highest[lane] > best || (highest[lane] == best && where[lane] < token)) best = highest[lane], token = where[lane];
  return sum(zeros) == 0.0f ? token : -1;
}
