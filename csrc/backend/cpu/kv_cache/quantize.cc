// out, scales = rows of K or V quantised, see QuantizeParams. Split by rows. Bound by memory.
#include "backend/cpu/kv_cache/quantize_row.h"

#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {

void quantize(const QuantizeParams& p) {
  if (p.out_dtype != DType::i8 && p.out_dtype != DType::f8e4m3) {
    fail(ErrorCode::invalid_argument, "quantize: out of type %s, not i8 or f8e4m3", dtype_name(p.out_dtype));
  }
  const auto rows_to = [&](auto out_tag) {
    using Out = decltype(out_tag);
    return visit(p.x_dtype, [&](auto tag) {
      using X = decltype(tag);
      parallel_ranges(p.num_rows, 1, p.num_rows * p.head_dim, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          quantize_row(static_cast<const X*>(p.x) + row * p.head_dim, static_cast<Out*>(p.out) + row * p.head_dim,
                       static_cast<bf16*>(p.scales) + row, p.head_dim);
        }
      });
    });
  };
  const bool known = p.out_dtype == DType::i8 ? rows_to(int8_t{}) : rows_to(f8e4m3{});
  if (!known) {
    fail(ErrorCode::invalid_argument, "quantize: x of type %s; f32, f16 and bf16 are known", dtype_name(p.x_dtype));
  }
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
