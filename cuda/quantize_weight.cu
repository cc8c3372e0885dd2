// Quantized weights are not supported on CUDA.
#include "linear.h"

namespace diffqkv::cuda {

void check_not_packed(DType dtype) {
  if (!dtype_is_packed(dtype)) return;
  fail(ErrorCode::unsupported_model,
       "weights of type %s are not supported on CUDA; load the model without weightType, or on the CPU",
       dtype_name(dtype));
}

void quantize_weight(const QuantizeWeightParams& p, Context&) { check_not_packed(p.dtype); }

}  // namespace diffqkv::cuda
