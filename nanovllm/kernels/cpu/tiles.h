// Products on Intel's matrix unit (AMX): 16 rows by 16 features, 32 numbers of each at a time, bfloat16 in and float32 out.
//
// A float32 is the sum of three bfloat16 numbers, exactly: 24 bits are three times eight. So where the weights are bfloat16
// numbers, three of these products add up to the float32 one, at a fifth of the time that sixteen lanes take.
#pragma once
#include "vector.h"

#if defined(__AMX_BF16__) && defined(__linux__) && defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1

inline bool tiles_work() {  // Linux wants to be asked, once per process
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
  return allowed;
}

// Tiles 0 to 3 hold results, 4 and 5 rows of the input, 6 and 7 features of the weight. rows: up to 32.
inline void set_tiles(int rows, int& set) {
  if (rows == set) return;
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  const uint8_t low = rows < 16 ? rows : 16, high = rows > 16 ? rows - 16 : 16;
  const uint8_t of_tile[8] = {low, low, high, high, low, high, 16, 16};
  for (int t = 0; t < 8; t++) config.bytes[t] = 64, config.rows[t] = of_tile[t];
  _tile_loadconfig(&config);
  set = rows;
}

inline void leave_tiles() { _tile_release(); }

// c [rows][32] = input . panel. a: `parts` planes of [rows][stride] numbers, which add up to the input; steps: of 32 numbers.
inline void tile_product(const bfloat16* a, int parts, long plane, long stride, const bfloat16* panel, int steps, int rows,
                         float (*c)[32]) {
  const long bytes = stride * sizeof(bfloat16);
  _tile_zero(0);
  _tile_zero(1);
  if (rows > 16) {
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; k++, panel += 1024, a += 32) {
      for (int line = 0; line < 32; line++) __builtin_prefetch(panel + 4096 + 32 * line);
      _tile_loadd(6, panel, 128);
      _tile_loadd(7, panel + 32, 128);
      for (int part = 0; part < parts; part++) {
        _tile_loadd(4, a + part * plane, bytes);
        _tile_loadd(5, a + part * plane + 16 * stride, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(2, c[16], 128);
    _tile_stored(3, c[16] + 16, 128);
  } else {
    for (int k = 0; k < steps; k++, panel += 1024, a += 32) {
      for (int line = 0; line < 32; line++) __builtin_prefetch(panel + 4096 + 32 * line);
      _tile_loadd(6, panel, 128);
      _tile_loadd(7, panel + 32, 128);
      for (int part = 0; part < parts; part++) {
        _tile_loadd(4, a + part * plane, bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
    }
  }
  _tile_stored(0, c[0], 128);
  _tile_stored(1, c[0] + 16, 128);
}
#else
inline bool tiles_work() { return false; }
inline void set_tiles(int, int&) {}
inline void leave_tiles() {}
inline void tile_product(const bfloat16*, int, long, long, const bfloat16*, int, int, float (*)[32]) {}
#endif
