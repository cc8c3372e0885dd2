// dst[i] = src[i] between any two float types, round to nearest even. Bound by memory.
#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/simd.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

template <typename F>
DIFFQKV_INLINE bool visit_float(DType dtype, F&& f) {
  if (dtype == DType::f8e4m3) {
    f(f8e4m3{});
    return true;
  }
  return visit(dtype, f);
}

template <typename To, typename From>
void convert_range(To* dst, const From* src, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(dst + i, load(src + i));
  if (i < end) store_n(dst + i, load_n(src + i, end - i), end - i);
}

}  // namespace

void convert(DType to, void* dst, DType from, const void* src, int64_t count) {
  if (!dtype_is_float(to) || !dtype_is_float(from)) {
    fail(ErrorCode::invalid_argument,
         "convert: %s cannot be converted to %s; both types must be f32, f16, bf16 or f8e4m3", dtype_name(from),
         dtype_name(to));
  }
  visit_float(to, [&](auto to_tag) {
    visit_float(from, [&](auto from_tag) {
      using To = decltype(to_tag);
      using From = decltype(from_tag);
      parallel_ranges(count, 64, count, [&](int64_t begin, int64_t end) {
        if (to == from) {
          __builtin_memcpy(static_cast<To*>(dst) + begin, static_cast<const From*>(src) + begin,
                           (end - begin) * sizeof(To));
        } else {
          convert_range(static_cast<To*>(dst), static_cast<const From*>(src), begin, end);
        }
      });
    });
  });
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
