// Element types, and their conversions one element at a time (round to nearest even).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace diffqkv {

enum class DType : uint8_t { f32, f16, bf16, i32, i8, f8e4m3, i4 };

constexpr size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::i8:
    case DType::f8e4m3: return 1;
    case DType::i4: break;  // only of weights: weight_row_bytes (ops.h)
  }
  return 0;
}

const char* dtype_name(DType dtype);                     // "f32", "bf16", ...
std::optional<DType> dtype_from_name(const char* name);  // of a tensor: not i4

constexpr bool dtype_is_float(DType dtype) { return dtype != DType::i32 && dtype != DType::i8 && dtype != DType::i4; }
// The types of a weight that is quantized by group (WeightView).
constexpr bool dtype_is_packed(DType dtype) { return dtype == DType::i8 || dtype == DType::i4; }
// The types that have one scale per row of K or V.
constexpr bool dtype_is_scaled(DType dtype) { return dtype == DType::i8 || dtype == DType::f8e4m3; }

// Throws ERR_INVALID_ARGUMENT unless `dtype` is f32, f16 or bf16. `tensor` is for the message, for
// example "matmul: x".
void require_compute_type(const char* tensor, DType dtype);
// The same, or i8 or i4: the types of a weight.
void require_weight_type(const char* tensor, DType dtype);
// Throws ERR_INVALID_ARGUMENT unless `dtype` is f32, the type of an output that is added to.
void require_accumulator_type(const char* tensor, DType dtype);
// As require_compute_type, for the types of K and V: f32, f16, bf16, i8 and f8e4m3.
void require_cache_type(const char* tensor, DType dtype);

// Converts `count` elements between f32 and any float type on the host. NaN stays NaN. Values
// beyond the range of f8e4m3, which has no infinity, become NaN, as the OCP format defines.
void convert_from_f32(DType to, void* dst, const float* src, size_t count);
void convert_to_f32(DType from, float* dst, const void* src, size_t count);

}  // namespace diffqkv
