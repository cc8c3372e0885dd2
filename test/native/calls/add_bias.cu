// Calls of add_bias.
#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

struct AddBiasCase {
  DType dtype;
  int64_t num_tokens, num_features;
};

Call add_bias_call(const AddBiasCase& c) {
  const size_t count = count_of({c.num_tokens, c.num_features});
  Call call;
  AddBiasParams p;
  p.x = add_random(call, "x", c.dtype, count, 1, 1);
  p.bias = reinterpret_cast<const float*>(add_random(call, "bias", DType::f32, count_of({c.num_features}), 1, 2));
  p.out = add_output(call, "out", c.dtype, count, Comparison::values, c.num_features, c.dtype);
  p.dtype = c.dtype;
  p.num_tokens = c.num_tokens;
  p.num_features = c.num_features;
  set_operator(call, add_bias, p);
  return call;
}

__global__ void __launch_bounds__(kPlainThreads, 1) add_bias_element(AddBiasParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.num_features) return;
  store_any(p.out, p.dtype, i, load_any(p.x, p.dtype, i) + ld_global(p.bias + i % p.num_features));
}

}  // namespace

void reference(const AddBiasParams& p, Context& context) {
  run_over(p.num_tokens * p.num_features, add_bias_element, p, context);
}

OperatorCalls add_bias_calls() {
  OperatorCalls calls;
  for (const DType dtype : kFloats) {
    const std::string name = "add_bias, " + text_of(dtype);
    calls.small.add(name, add_bias_call, {dtype, 5, 1028});
    calls.small.add(name + ", rows not aligned", add_bias_call, {dtype, 3, 601});
    for (const int64_t features : {33, 1028})
      calls.ptx.add(name + ", rows of " + std::to_string(features), add_bias_call, {dtype, 3, features});
  }
  return calls;
}

}  // namespace diffqkv::cuda
