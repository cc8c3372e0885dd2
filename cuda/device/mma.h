// Tensor cores: mma.sync m16n8k16 and the loads that feed it. Fragments as the PTX ISA lays them out; with
// g = lane / 4 and t = lane % 4:
//
//   A (16 x 16, row):  a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t, 2t+1]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//   B (16 x 8, col):   b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]
//   C (16 x 8):        c[0] = C[g][2t]  c[1] = C[g][2t+1]  c[2] = C[g+8][2t]  c[3] = C[g+8][2t+1]
//
// ldmatrix: 8 x 8 matrices of 16-bit elements, 16 bytes a row; lane i of the first 8 (16, 32) gives the address of row
// i % 8 of matrix i / 8. Lane l gets of each matrix M the word M[g][2t, 2t+1], transposed M[2t, 2t+1][g].
#pragma once

#include "device/warp.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {

#if !defined(DIFFQKV_EMULATION)

// c += A B; T is bf16 or f16, sums are f32.
template <typename T>
DIFFQKV_DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (__is_same(T, bf16)) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(__is_same(T, f16));
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

DIFFQKV_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
DIFFQKV_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
DIFFQKV_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(at)
               : "memory");
}
DIFFQKV_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(at)
               : "memory");
}

// Lane l holds M[g][2t, 2t+1] of an 8 x 8 matrix; it gets M[2t, 2t+1][g].
DIFFQKV_DEVICE uint32_t movmatrix_trans(uint32_t word) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(word));
  return r;
}

#else

struct MmaLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};
void mma_lanes_bf16(void* const* lanes);
void mma_lanes_f16(void* const* lanes);

template <typename T>
DIFFQKV_DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] DIFFQKV_SITE) {
  static_assert(__is_same(T, bf16) || __is_same(T, f16));
  MmaLane lane = {c, a, b};
  warp_collective("mma_m16n8k16", &lane, __is_same(T, bf16) ? mma_lanes_bf16 : mma_lanes_f16, site);
}

struct LdmatrixLane {
  uint32_t* r;
  const void* row;
  int num_matrices;
  bool transpose;
};
void ldmatrix_lanes(void* const* lanes);
void movmatrix_lanes(void* const* lanes);
void check_ldmatrix_row(const void* row, int num_matrices, Site site);

DIFFQKV_DEVICE void ldmatrix_any(uint32_t* r, const void* row, int num_matrices, bool transpose, Site site) {
  check_ldmatrix_row(row, num_matrices, site);
  LdmatrixLane lane = {r, row, num_matrices, transpose};
  warp_collective("ldmatrix", &lane, ldmatrix_lanes, site);
}
DIFFQKV_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row DIFFQKV_SITE) {
  ldmatrix_any(r, row, 4, false, site);
}
DIFFQKV_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row DIFFQKV_SITE) {
  ldmatrix_any(r, row, 4, true, site);
}
DIFFQKV_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row DIFFQKV_SITE) {
  ldmatrix_any(r, row, 2, false, site);
}
DIFFQKV_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row DIFFQKV_SITE) {
  ldmatrix_any(r, row, 2, true, site);
}
DIFFQKV_DEVICE uint32_t movmatrix_trans(uint32_t word DIFFQKV_SITE) {
  struct Lane {
    uint32_t word, result;
  } lane = {word, 0};
  warp_collective("movmatrix", &lane, movmatrix_lanes, site);
  return lane.result;
}

#endif

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
