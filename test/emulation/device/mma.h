// cuda/device/mma.h as C++. The operations are in device.cc.
#pragma once

#include "types.h"

namespace diffqkv::emulated {

struct MmaLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};
void mma_lanes_bf16(void* const* lanes);
void mma_lanes_f16(void* const* lanes);

template <typename T>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], DIFFQKV_SITE) {
  static_assert(__is_same(T, bf16) || __is_same(T, f16));
  MmaLane lane = {c, a, b};
  warp_collective("mma_m16n8k16", &lane, __is_same(T, bf16) ? mma_lanes_bf16 : mma_lanes_f16, site);
}

template <typename T>
inline void mma_m16n8k16_zero(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], DIFFQKV_SITE) {
  for (float& sum : c) sum = 0;
  mma_m16n8k16<T>(c, a, b, site);
}

struct LdmatrixLane {
  uint32_t* r;
  const void* row;
  int num_matrices;
  bool transpose;
  Site site;
};
void ldmatrix_lanes(void* const* lanes);
void movmatrix_lanes(void* const* lanes);
void check_ldmatrix_row(const void* row, int num_matrices, Site site);

inline void ldmatrix_any(uint32_t* r, const void* row, int num_matrices, bool transpose, Site site) {
  check_ldmatrix_row(row, num_matrices, site);
  LdmatrixLane lane = {r, row, num_matrices, transpose, site};
  warp_collective("ldmatrix", &lane, ldmatrix_lanes, site);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, DIFFQKV_SITE) { ldmatrix_any(r, row, 4, false, site); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, DIFFQKV_SITE) { ldmatrix_any(r, row, 4, true, site); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, DIFFQKV_SITE) { ldmatrix_any(r, row, 2, false, site); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, DIFFQKV_SITE) { ldmatrix_any(r, row, 2, true, site); }
inline uint32_t movmatrix_trans(uint32_t word, DIFFQKV_SITE) {
  struct Lane {
    uint32_t word, result;
  } lane = {word, 0};
  warp_collective("movmatrix", &lane, movmatrix_lanes, site);
  return lane.result;
}

}  // namespace diffqkv::emulated
