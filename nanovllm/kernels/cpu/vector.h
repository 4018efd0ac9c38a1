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

#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MANY_SUMS 1  // sixteen vectors and more fit the registers
#endif
#endif
#ifdef MANY_SUMS
// The sums of sixteen vectors, each the same as `sum` makes it: in every round all are folded in halves, two into one.
inline Vector sums(const Vector* v) {
  Vector half[8], quarter[4];
  for (int i = 0; i < 8; i++) {
    const Vector a = v[2 * i], b = v[2 * i + 1];
    half[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
              __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  for (int i = 0; i < 4; i++) {
    const Vector a = half[2 * i], b = half[2 * i + 1];
    quarter[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                 __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  for (int i = 0; i < 2; i++) {
    const Vector a = quarter[2 * i], b = quarter[2 * i + 1];
    half[i] = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
              __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  }
  const Vector a = half[0], b = half[1];
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#else
#define MANY_SUMS 0
#endif

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
