// Element types of operators that take any of them: the choice made on the host, once a launch, or in the kernel, once an
// access where so many types meet that a kernel for each combination would be too many.
#pragma once

#include <initializer_list>

#include <device/memory.h>
#include "backend/error.h"
#include "conversions.h"
#include "kernels.h"

namespace diffqkv::cuda {

template <typename T, int kElements>
struct alignas(sizeof(T) * kElements) Elements {
  T v[kElements];
};

template <typename T, int kElements>
bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * kElements) == 0;
}

struct NamedType {
  const char* name;
  DType dtype;
};

// Throws unless all are f32, f16 or bf16.
inline void check_float_types(const char* kernel, std::initializer_list<NamedType> tensors) {
  for (const NamedType& tensor : tensors) {
    if (tensor.dtype == DType::f32 || tensor.dtype == DType::f16 || tensor.dtype == DType::bf16) continue;
    fail(ErrorCode::invalid_argument, "%s: %s of type %s; f32, f16 and bf16 are known", kernel, tensor.name,
         dtype_name(tensor.dtype));
  }
}

// Calls f with a value of the element type, which is one of f32, f16 and bf16.
template <typename F>
void visit_float(DType dtype, const F& f) {
  switch (dtype) {
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
    default: return f(float{});
  }
}

__host__ __device__ __forceinline__ constexpr bool is_quantized(DType dtype) {
  return dtype == DType::i8 || dtype == DType::f8e4m3;
}

// Throws unless all are f32, f16, bf16, i8 or f8e4m3, the types of a cache.
inline void check_cache_types(const char* kernel, std::initializer_list<NamedType> tensors) {
  for (const NamedType& tensor : tensors) {
    if (is_quantized(tensor.dtype)) continue;
    check_float_types(kernel, {tensor});
  }
}

// As visit_float, of i8 and f8e4m3.
template <typename F>
void visit_quantized(DType dtype, const F& f) {
  return dtype == DType::i8 ? f(i8{}) : f(f8e4m3{});
}

// As visit_float, of all types of a cache.
template <typename F>
void visit_cache(DType dtype, const F& f) {
  return is_quantized(dtype) ? visit_quantized(dtype, f) : visit_float(dtype, f);
}

// One element as f32.
template <typename T>
__device__ __forceinline__ float load_float(const T* p) {
  return to_float(ld_global(p));
}

// data[i] of f32, f16 or bf16.
__device__ __forceinline__ float load_any(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16: return load_float(static_cast<const bf16*>(data) + i);
    case DType::f16: return load_float(static_cast<const f16*>(data) + i);
    default: return ld_global(static_cast<const float*>(data) + i);
  }
}

// data[i] = x.
__device__ __forceinline__ void store_any(void* data, DType dtype, int64_t i, float x) {
  switch (dtype) {
    case DType::bf16: return st_global(static_cast<bf16*>(data) + i, from_float<bf16>(x));
    case DType::f16: return st_global(static_cast<f16*>(data) + i, from_float<f16>(x));
    default: return st_global(static_cast<float*>(data) + i, x);
  }
}

// kCount elements at once, aligned to kCount of them or to 16 bytes, whichever is less.
template <typename T, int kCount>
__device__ __forceinline__ void load_elements(const T* p, float (&x)[kCount]) {
  constexpr int kAtOnce = kCount * sizeof(T) > 16 ? 16 / sizeof(T) : kCount;
#pragma unroll
  for (int i = 0; i < kCount; i += kAtOnce) {
    const auto v = ld_global(reinterpret_cast<const Elements<T, kAtOnce>*>(p + i));
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) x[i + j] = to_float(v.v[j]);
  }
}
// x becomes what was stored.
template <typename T, int kCount>
__device__ __forceinline__ void store_elements(T* p, float (&x)[kCount]) {
  constexpr int kAtOnce = kCount * sizeof(T) > 16 ? 16 / sizeof(T) : kCount;
#pragma unroll
  for (int i = 0; i < kCount; i += kAtOnce) {
    Elements<T, kAtOnce> v;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      v.v[j] = from_float<T>(x[i + j]);
      x[i + j] = to_float(v.v[j]);
    }
    st_global(reinterpret_cast<Elements<T, kAtOnce>*>(p + i), v);
  }
}
template <int kCount>
__device__ __forceinline__ void load_any(const void* data, DType dtype, int64_t i, float (&x)[kCount]) {
  switch (dtype) {
    case DType::bf16: return load_elements(static_cast<const bf16*>(data) + i, x);
    case DType::f16: return load_elements(static_cast<const f16*>(data) + i, x);
    default: return load_elements(static_cast<const float*>(data) + i, x);
  }
}
template <int kCount>
__device__ __forceinline__ void store_any(void* data, DType dtype, int64_t i, float (&x)[kCount]) {
  switch (dtype) {
    case DType::bf16: return store_elements(static_cast<bf16*>(data) + i, x);
    case DType::f16: return store_elements(static_cast<f16*>(data) + i, x);
    default: return store_elements(static_cast<float*>(data) + i, x);
  }
}

}  // namespace diffqkv::cuda
