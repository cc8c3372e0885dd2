// Calls of rms_norm.
#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

struct RmsNormCase {
  DType x, residual, weight, out;
  int64_t num_tokens, hidden_size;
  bool has_residual = true;
  bool accumulate = false;  // into f32, without a residual
};

Call rms_norm_call(const RmsNormCase& c) {
  const size_t count = count_of({c.num_tokens, c.hidden_size});
  Call call;
  RmsNormParams p;
  p.x = add_random(call, "x", c.x, count, 0.1f, 1);
  if (c.has_residual) {
    p.residual = add_output(call, "residual", c.residual, count, Comparison::bits);
    call.tensor("residual").memory.upload(random_bytes(c.residual, count, 0.1f, 2));
  }
  p.weight = add_random(call, "weight", c.weight, count_of({c.hidden_size}), 0.1f, 3);
  p.out = add_output(call, "out", c.out, count, Comparison::values, c.hidden_size,
                     coarsest({c.x, c.has_residual ? c.residual : DType::f32, c.weight, c.out}));
  if (c.accumulate) call.tensor("out").memory.upload(random_bytes(c.out, count, 1, 4));
  p.x_dtype = c.x;
  p.residual_dtype = c.residual;
  p.weight_dtype = c.weight;
  p.out_dtype = c.out;
  p.num_tokens = c.num_tokens;
  p.hidden_size = c.hidden_size;
  p.eps = 1e-5f;
  p.accumulate = c.accumulate;
  set_operator(call, rms_norm, p);
  return call;
}

__global__ void __launch_bounds__(kPlainThreads, 1) add_residual_element(RmsNormParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  store_any(p.residual, p.residual_dtype, i, load_any(p.residual, p.residual_dtype, i) + load_any(p.x, p.x_dtype, i));
}

struct NormParams {
  RmsNormParams p;
  float* factors;  // [num_tokens]
};

__device__ __forceinline__ float norm_input(const RmsNormParams& p, int64_t i) {
  return p.residual ? load_any(p.residual, p.residual_dtype, i) : load_any(p.x, p.x_dtype, i);
}

__global__ void __launch_bounds__(kPlainThreads, 1) norm_factor_row(NormParams n) {
  const int64_t t = output_index();
  if (t >= n.p.num_tokens) return;
  float sum = 0;
  for (int64_t d = 0; d < n.p.hidden_size; ++d) {
    const float h = norm_input(n.p, t * n.p.hidden_size + d);
    sum += h * h;
  }
  st_global(n.factors + t, 1.0f / sqrtf(sum / static_cast<float>(n.p.hidden_size) + n.p.eps));
}

__global__ void __launch_bounds__(kPlainThreads, 1) norm_element(NormParams n) {
  const RmsNormParams& p = n.p;
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  const float weight = load_any(p.weight, p.weight_dtype, i % p.hidden_size);
  const float before = p.accumulate ? load_any(p.out, p.out_dtype, i) : 0.0f;
  store_any(p.out, p.out_dtype, i, before + norm_input(p, i) * ld_global(n.factors + i / p.hidden_size) * weight);
}

}  // namespace

void reference(const RmsNormParams& p, Context& context) {
  const int64_t count = p.num_tokens * p.hidden_size;
  const size_t bytes = static_cast<size_t>(p.num_tokens) * sizeof(float);
  const NormParams n = {p, static_cast<float*>(context.scratch(bytes))};
  if (p.residual) run_over(count, add_residual_element, p, context);
  run_over(p.num_tokens, norm_factor_row, n, context);
  run_over(count, norm_element, n, context);
}

OperatorCalls rms_norm_calls() {
  OperatorCalls calls;
  calls.seeded.add("RMSNorm", rms_norm_call, {kF32, kF32, kF32, kBf16, 3, 600});
  calls.seeded.add("RMSNorm, rows not aligned", rms_norm_call, {kF32, kF32, kF32, kBf16, 2, 601});
  for (const DType dtype : kFloats) {
    const std::string name = "RMSNorm, " + text_of(dtype);
    calls.small.add(name + ", no residual", rms_norm_call, {dtype, dtype, dtype, dtype, 3, 2056, false});
    calls.small.add(name, rms_norm_call, {dtype, dtype, dtype, dtype, 2, 4104});
    calls.small.add(name + ", accumulated", rms_norm_call, {dtype, dtype, dtype, kF32, 3, 2056, false, true});
    for (const DType residual : kFloats) {
      for (const int64_t hidden : {601, 5003, 4104}) {
        const DType weight = hidden == 601 ? kBf16 : dtype, out = hidden == 5003 ? residual : kF32;
        calls.ptx.add(name + " and " + text_of(residual) + ", rows of " + std::to_string(hidden), rms_norm_call,
                      {dtype, residual, weight, out, 2, hidden, hidden != 5003});
      }
    }
    for (const int64_t hidden : {601, 4104}) {
      calls.ptx.add(name + ", accumulated, rows of " + std::to_string(hidden), rms_norm_call,
                    {dtype, dtype, dtype, kF32, 2, hidden, false, true});
    }
  }
  for (const Sigma& model : kSigmas) {
    for (const int64_t tokens : kSigmaTokens) {
      calls.sigma.add(model.name + "RMSNorm, " + tokens_text(tokens), rms_norm_call,
                      {kF32, kF32, kF32, kBf16, tokens, model.hidden_size, false});
    }
  }
  return calls;
}

}  // namespace diffqkv::cuda
