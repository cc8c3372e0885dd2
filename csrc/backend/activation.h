// The activations of an FFN, and the constants that the CPU and CUDA kernels share.
#pragma once

#include <cstdint>

namespace diffqkv {

enum class Activation : uint8_t {
  silu,       // x / (1 + exp(-x))
  gelu,       // x (1 + erf(x / sqrt(2))) / 2
  gelu_tanh,  // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
  relu,       // max(x, 0)
  relu2,      // max(x, 0)^2
};

// The normal distribution's tail, for gelu. For 0 <= a <= kMax and t = (a - kCenter) / (a + kCenter),
//   P(N(0, 1) > a) = exp(-a^2 / 2) (c0 + c1 t + ... + c9 t^9) / (a + kCenter)
// within 1e-8, relative: the Chebyshev approximation of the scaled tail, which varies slowly in t.
// Beyond kMax, the tail is 0 in float32.
struct NormalTail {
  static constexpr float kMax = 15, kCenter = 4;
  static constexpr float c0 = 0x1.82b4bcp-1f, c1 = -0x1.373e38p-1f, c2 = 0x1.8c6d9ep-2f, c3 = -0x1.7e001ep-3f,
                         c4 = 0x1.eed34cp-5f, c5 = -0x1.ed17d8p-8f, c6 = -0x1.cc1722p-9f, c7 = 0x1.9b261ap-10f,
                         c8 = 0x1.6e4974p-13f, c9 = -0x1.196e20p-13f;
};

// gelu_tanh(x) = x / (1 + exp(-x (kLinear + kCubic x^2))), each constant with what its rounding
// leaves. kLinear is a multiple of 2^-20, so that subtracting it from a sum below 16 is exact.
// Beyond kMax, the exponential is 0 or infinite in float32.
struct GeluTanh {
  static constexpr double kExactLinear = 1.5957691216057307117597842397375, kExactCubic = 0.044715 * kExactLinear;
  static constexpr float kMax = 11;
  static constexpr float kLinear = static_cast<int>(kExactLinear * 0x1p20) * 0x1p-20f;
  static constexpr float kLinearLow = static_cast<float>(kExactLinear - kLinear);
  static constexpr float kCubic = static_cast<float>(kExactCubic);
  static constexpr float kCubicLow = static_cast<float>(kExactCubic - kCubic);
};

}  // namespace diffqkv
