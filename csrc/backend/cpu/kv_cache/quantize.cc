// out, scales = quantized rows of K or V (see QuantizeParams). Split by rows. Bound by memory.
#include "backend/cpu/kv_cache/quantize_row.h"

#include "backend/cpu/isa_kernels.h"
#include "backend/cpu/parallel.h"
#include "backend/error.h"

namespace diffqkv::cpu::DIFFQKV_ISA {

void quantize(const QuantizeParams& p, Arena&) {
  if (!dtype_is_scaled(p.out_dtype)) {
    fail(ErrorCode::invalid_argument, "quantize: out has type %s; it must be i8 or f8e4m3", dtype_name(p.out_dtype));
  }
  require_compute_type("quantize: x", p.x_dtype);
  const auto rows_to = [&](auto out_tag) {
    using Out = decltype(out_tag);
    visit(p.x_dtype, [&](auto tag) {
      using X = decltype(tag);
      parallel_ranges(p.num_rows, 1, p.num_rows * p.head_dim, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          quantize_row(static_cast<const X*>(p.x) + row * p.head_dim, static_cast<Out*>(p.out) + row * p.head_dim,
                       static_cast<bf16*>(p.scales) + row, p.head_dim);
        }
      });
    });
  };
  if (p.out_dtype == DType::i8) {
    rows_to(int8_t{});
  } else {
    rows_to(f8e4m3{});
  }
}

}  // namespace diffqkv::cpu::DIFFQKV_ISA
