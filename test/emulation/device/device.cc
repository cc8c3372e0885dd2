// The warp-wide operations of device/mma.h, exact to the fragment, and the conversions of device/numbers.h.
#include <device/mma.h>

#include "backend/dtype.h"
#include "conversions.h"

namespace diffqkv::emulated {

void count_mma();

uint16_t round_to_bf16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // what cvt makes of any NaN
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

uint16_t round_to_f16(float x) {
  if (x != x) return 0x7fff;
  uint16_t bits;
  convert_from_f32(DType::f16, &bits, &x, 1);
  return bits;
}

float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, exponent = bits >> 10 & 31,
                 mantissa = bits & 1023u;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

namespace {

// c += a b. Wider registers where the CPU has them; no fused multiply-adds, so that every CPU gives the same bits.
__attribute__((target_clones("avx2", "default"), optimize("O3"))) void multiply(const float (&a)[16][16],
                                                                                const float (&b)[16][8],
                                                                                float (&c)[16][8]) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
}

template <typename T>
void mma_lanes(void* const* lanes) {
  count_mma();
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaLane& l = *static_cast<const MmaLane*>(lanes[lane]);
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = t + i / 2 * 8;
      a[row][column] = unpack_low<T>(l.a[i]), a[row][column + 1] = unpack_high<T>(l.a[i]);
    }
    for (int i = 0; i < 2; ++i) b[t + 8 * i][g] = unpack_low<T>(l.b[i]), b[t + 8 * i + 1][g] = unpack_high<T>(l.b[i]);
    for (int i = 0; i < 4; ++i) c[g + i / 2 * 8][t + i % 2] = l.c[i];
  }
  multiply(a, b, c);
  for (int lane = 0; lane < 32; ++lane) {
    const MmaLane& l = *static_cast<const MmaLane*>(lanes[lane]);
    const int g = lane / 4, t = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) l.c[i] = c[g + i / 2 * 8][t + i % 2];
  }
}

// Lane l's word of an 8 x 8 matrix of 16-bit elements.
uint32_t fragment_word(const uint16_t (&matrix)[8][8], int lane, bool transpose) {
  const int g = lane / 4, t = 2 * (lane % 4);
  const uint16_t low = transpose ? matrix[t][g] : matrix[g][t], high = transpose ? matrix[t + 1][g] : matrix[g][t + 1];
  return low | static_cast<uint32_t>(high) << 16;
}

}  // namespace

void mma_lanes_bf16(void* const* lanes) { mma_lanes<bf16>(lanes); }
void mma_lanes_f16(void* const* lanes) { mma_lanes<f16>(lanes); }

void check_ldmatrix_row(const void* row, int num_matrices, Site site) {
  if (lane_index() < 8 * num_matrices) check_warp_load(row, site);
}

void ldmatrix_lanes(void* const* lanes) {
  const int num_matrices = static_cast<const LdmatrixLane*>(lanes[0])->num_matrices;
  for (int m = 0; m < num_matrices; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const LdmatrixLane& l = *static_cast<const LdmatrixLane*>(lanes[8 * m + row]);
      check_warp_row(l.row, l.site);
      std::memcpy(matrix[row], l.row, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const LdmatrixLane& l = *static_cast<const LdmatrixLane*>(lanes[lane]);
      l.r[m] = fragment_word(matrix, lane, l.transpose);
    }
  }
}

void movmatrix_lanes(void* const* lanes) {
  struct Lane {
    uint32_t word, result;
  };
  uint16_t matrix[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t word = static_cast<const Lane*>(lanes[lane])->word;
    matrix[lane / 4][2 * (lane % 4)] = static_cast<uint16_t>(word);
    matrix[lane / 4][2 * (lane % 4) + 1] = static_cast<uint16_t>(word >> 16);
  }
  for (int lane = 0; lane < 32; ++lane) static_cast<Lane*>(lanes[lane])->result = fragment_word(matrix, lane, true);
}

}  // namespace diffqkv::emulated
