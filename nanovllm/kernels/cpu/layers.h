// What stands between a layer's products, for one token at a time.
#pragma once
#include <cmath>
#include "vector.h"

template <class T>
inline float inverse_rms(const T* x, int size, float eps) {
  Vector squares = {};
  for (int i = 0; i < size; i += WIDTH) squares += load(x + i) * load(x + i);
  return 1.0f / std::sqrt(sum(squares) / size + eps);
}

// RMSNorm (Zhang and Sennrich 2019): out = x / rms(x) * weight.
template <class X, class Y>
inline void rms_norm(const X* x, const float* weight, float eps, Y* out, int size) {
  const float scale = inverse_rms(x, size, eps);
  for (int i = 0; i < size; i += WIDTH) store(out + i, load(x + i) * scale * load(weight + i));
}

// The norm of a head, where its family has one, and RoPE (Su et al. 2021). cos, sin: of its position, [head_dim / 2].
template <class X, class Y>
inline void norm_rope(const X* x, const float* weight, float eps, const float* cos, const float* sin, Y* out, int head_dim) {
  const float scale = weight ? inverse_rms(x, head_dim, eps) : 1.0f;
  const int half = head_dim / 2;
  for (int i = 0; i < half; i += WIDTH) {
    Vector first = load(x + i) * scale, second = load(x + half + i) * scale;
    if (weight) first *= load(weight + i), second *= load(weight + half + i);
    Vector c = load(cos + i), s = load(sin + i);
    store(out + i, first * c - second * s);
    store(out + half + i, second * c + first * s);
  }
}

// SwiGLU (Shazeer 2020): silu(gate) * up.
inline Vector silu_and_mul(Vector gate, Vector up) {
  Vector small = exp_below_zero((gate < 0.0f) ? gate : -gate);  // e^-|gate|, which cannot overflow
  Vector sigmoid = ((gate < 0.0f) ? small : all(1.0f)) / (1.0f + small);
  return gate * sigmoid * up;
}
