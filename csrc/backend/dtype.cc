#include "backend/dtype.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>

#include "backend/error.h"

namespace diffqkv {
namespace {

constexpr const char* kNames[] = {"f32", "f16", "bf16", "i32", "i8", "f8e4m3", "i4"};

uint16_t bf16_from_f32(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if (value != value) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// 2^exponent. The result must be a normal float.
constexpr float power_of_two(int exponent) { return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23); }

// Rounds a non-negative float that is not NaN to kExponentBits and kMantissaBits, without a sign.
// The result may be one past the largest finite value; the caller handles that.
template <int kExponentBits, int kMantissaBits>
uint32_t small_from_f32(float magnitude) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr int kShift = 23 - kMantissaBits;
  if (magnitude < power_of_two(1 - kBias)) {
    // A denormal of the small type is a whole number of units of 2^(1 - kBias - kMantissaBits).
    // That is also the unit of floats at `kOffset`, so an addition rounds.
    constexpr float kOffset = power_of_two(1 - kBias + kShift);
    return std::bit_cast<uint32_t>(magnitude + kOffset) - std::bit_cast<uint32_t>(kOffset);
  }
  const uint32_t rebased = std::bit_cast<uint32_t>(magnitude) - (static_cast<uint32_t>(127 - kBias) << 23);
  return (rebased + (1u << (kShift - 1)) - 1 + ((rebased >> kShift) & 1)) >> kShift;
}

uint16_t f16_from_f32(float value) {
  const uint32_t sign = (std::bit_cast<uint32_t>(value) >> 16) & 0x8000;
  if (value != value) return static_cast<uint16_t>(sign | 0x7e00 | ((std::bit_cast<uint32_t>(value) >> 13) & 0x3ff));
  const float magnitude = std::fabs(value);
  return static_cast<uint16_t>(sign | (magnitude >= 65520.0f ? 0x7c00 : small_from_f32<5, 10>(magnitude)));
}

uint8_t f8e4m3_from_f32(float value) {
  const uint32_t sign = (std::bit_cast<uint32_t>(value) >> 24) & 0x80;
  const float magnitude = std::fabs(value);
  // 464 is halfway between the largest value, 448 (even), and what would be the next one, 480.
  return static_cast<uint8_t>(sign | (magnitude <= 464.0f ? small_from_f32<4, 3>(magnitude) : 0x7f));
}

// For any finite value, denormals included. As bits of a float, it is wrong by only the difference
// of the biases.
template <int kExponentBits, int kMantissaBits>
float f32_from_small(uint32_t bits) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  const uint32_t magnitude = bits & ((1u << (kExponentBits + kMantissaBits)) - 1);
  const float value = std::bit_cast<float>(magnitude << (23 - kMantissaBits)) * power_of_two(127 - kBias);
  return magnitude == bits ? value : -value;
}

float f32_from_f16(uint16_t bits) {
  if ((bits & 0x7c00) != 0x7c00) return f32_from_small<5, 10>(bits);
  return std::bit_cast<float>((static_cast<uint32_t>(bits & 0x8000) << 16) | 0x7f800000u |
                              (static_cast<uint32_t>(bits & 0x3ff) << 13) | ((bits & 0x3ff) ? 0x400000u : 0u));
}

float f32_from_f8e4m3(uint8_t bits) {
  if ((bits & 0x7f) != 0x7f) return f32_from_small<4, 3>(bits);
  return std::bit_cast<float>((static_cast<uint32_t>(bits & 0x80) << 24) | 0x7fc00000u);
}

}  // namespace

const char* dtype_name(DType dtype) { return kNames[static_cast<int>(dtype)]; }

std::optional<DType> dtype_from_name(const char* name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    const auto dtype = static_cast<DType>(i);
    if (std::strcmp(name, kNames[i]) == 0 && dtype != DType::i4) return dtype;
  }
  return std::nullopt;
}

void require_compute_type(const char* tensor, DType dtype) {
  if (dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16) return;
  fail(ErrorCode::invalid_argument, "%s has type %s; it must be f32, f16 or bf16", tensor, dtype_name(dtype));
}

void require_weight_type(const char* tensor, DType dtype) {
  if (!dtype_is_packed(dtype)) require_compute_type(tensor, dtype);
}

void require_accumulator_type(const char* tensor, DType dtype) {
  if (dtype == DType::f32) return;
  fail(ErrorCode::invalid_argument, "%s has type %s; it must be f32 to accumulate", tensor, dtype_name(dtype));
}

void require_cache_type(const char* tensor, DType dtype) {
  if (dtype != DType::i32 && dtype != DType::i4) return;
  fail(ErrorCode::invalid_argument, "%s has type %s; it must be f32, f16, bf16, i8 or f8e4m3", tensor,
       dtype_name(dtype));
}

void convert_from_f32(DType to, void* dst, const float* src, size_t count) {
  switch (to) {
    case DType::f32:
      if (count) std::memmove(dst, src, count * sizeof(float));
      return;
    case DType::bf16:
      for (size_t i = 0; i < count; ++i) static_cast<uint16_t*>(dst)[i] = bf16_from_f32(src[i]);
      return;
    case DType::f16:
      for (size_t i = 0; i < count; ++i) static_cast<uint16_t*>(dst)[i] = f16_from_f32(src[i]);
      return;
    case DType::f8e4m3:
      for (size_t i = 0; i < count; ++i) static_cast<uint8_t*>(dst)[i] = f8e4m3_from_f32(src[i]);
      return;
    case DType::i32:
    case DType::i8:
    case DType::i4: break;
  }
  fail(ErrorCode::invalid_argument, "f32 cannot be converted to %s; the type must be f32, f16, bf16 or f8e4m3",
       dtype_name(to));
}

void convert_to_f32(DType from, float* dst, const void* src, size_t count) {
  switch (from) {
    case DType::f32:
      if (count) std::memmove(dst, src, count * sizeof(float));
      return;
    case DType::bf16:
      for (size_t i = 0; i < count; ++i)
        dst[i] = std::bit_cast<float>(static_cast<uint32_t>(static_cast<const uint16_t*>(src)[i]) << 16);
      return;
    case DType::f16:
      for (size_t i = 0; i < count; ++i) dst[i] = f32_from_f16(static_cast<const uint16_t*>(src)[i]);
      return;
    case DType::f8e4m3:
      for (size_t i = 0; i < count; ++i) dst[i] = f32_from_f8e4m3(static_cast<const uint8_t*>(src)[i]);
      return;
    case DType::i32:
    case DType::i8:
    case DType::i4: break;
  }
  fail(ErrorCode::invalid_argument, "%s cannot be converted to f32; the type must be f32, f16, bf16 or f8e4m3",
       dtype_name(from));
}

}  // namespace diffqkv
