// Sixteen floats at a time, in the vector notation that gcc and clang share; the compiler makes of it what the machine has.
#pragma once
#include <cstdint>
#include <cstring>

constexpr int WIDTH = 16;
typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

struct bfloat16 {  // the upper half of a float
  uint16_t bits;
};

inline Vector load(const float* p) {
  Vector v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline Vector load(const bfloat16* p) {
  Halves h;
  memcpy(&h, p, sizeof h);
  return (Vector)(__builtin_convertvector(h, Ints) << 16);
}

inline void store(float* p, Vector v) { memcpy(p, &v, sizeof v); }

inline void store(bfloat16* p, Vector v) {  // round to nearest, ties to even; a NaN stays one
  Ints bits = (Ints)v;
  Ints rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
  Ints quiet = ((bits >> 16) & 0xffff) | 0x40;
  Halves h = __builtin_convertvector((v == v) ? rounded : quiet, Halves);
  memcpy(p, &h, sizeof h);
}

inline Vector all(float x) { return x - Vector{}; }

template <int N>
inline float sum_of(const float* p) {  // in halves: log2(N) additions that wait for each other, not N
  if constexpr (N == 1) {
    return *p;
  } else {
    typedef float Half __attribute__((vector_size(2 * N)));
    Half low, high;
    memcpy(&low, p, sizeof low);
    memcpy(&high, p + N / 2, sizeof high);
    low += high;
    float halves[N / 2];
    memcpy(halves, &low, sizeof low);
    return sum_of<N / 2>(halves);
  }
}

inline float sum(Vector v) {
  float lanes[WIDTH];
  store(lanes, v);
  return sum_of<WIDTH>(lanes);
}

// e^x within 2 ulp for x <= 0, where a softmax needs it: 2^round(x / ln 2) times a polynomial of the rest (Cephes, Moshier).
inline Vector exp_below_zero(Vector x) {
  Vector y = (x < -87.0f) ? all(-87.0f) : x;
  Vector n = y * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  Ints power = (Ints)n << 23;
  n -= 12582912.0f;
  Vector r = y - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  p = p * r * r + r + 1.0f;
  Vector result = (Vector)((Ints)p + power);
  return (x == x) ? result : x;
}
