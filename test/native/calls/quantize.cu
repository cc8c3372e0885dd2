// Calls of quantize.
#include "calls/plain.h"
#include "random.h"

namespace diffqkv::cuda {

Call quantize_call(const QuantizeCase& c) {
  check::Random random(5);
  std::vector<float> values(count_of({c.num_rows, c.dim}));
  const auto row_of = [&](int64_t row) { return values.begin() + row * c.dim; };
  for (int64_t row = 0; row < c.num_rows; ++row) {
    const float size = row == 3 ? 0.0f : row == 4 ? 0x1p-110f : std::exp2(random.normal(10));
    for (int64_t d = 0; d < c.dim; ++d) row_of(row)[d] = random.normal(size);
  }
  row_of(7)[2] = NAN;
  row_of(8)[1] = -INFINITY;
  Call call;
  QuantizeParams p;
  p.x = add_tensor(call, "x", c.x, bytes_of_floats(c.x, values));
  p.out = add_output(call, "out", c.out, values.size(), Comparison::bits);
  p.scales = add_output(call, "scales", DType::bf16, count_of({c.num_rows}), Comparison::bits);
  p.x_dtype = c.x;
  p.out_dtype = c.out;
  p.num_rows = c.num_rows;
  p.head_dim = c.dim;
  set_operator(call, quantize, p);
  return call;
}

namespace {

__global__ void __launch_bounds__(kPlainThreads, 1) quantize_row_of(QuantizeParams p) {
  const int64_t row = output_index(), first = row * p.head_dim;
  if (row >= p.num_rows) return;
  const auto value = [&](int64_t d) { return load_any(p.x, p.x_dtype, first + d); };
  const auto code = [&](int64_t d) { return static_cast<unsigned char*>(p.out) + first + d; };
  quantize_plainly(p.head_dim, p.out_dtype, value, code, static_cast<bf16*>(p.scales) + row);
}

}  // namespace

void reference(const QuantizeParams& p, Context& context) { run_over(p.num_rows, quantize_row_of, p, context); }

OperatorCalls quantize_calls() {
  OperatorCalls calls;
  calls.seeded.add("quantize", quantize_call, {kF16, kI8, 40});
  for (const DType out : {kI8, kF8}) {
    for (const DType x : kFloats) {
      const std::string types = text_of(x) + " to " + text_of(out);
      if (x != kF16) {
        calls.small.add("quantize " + types, quantize_call, {x, out, 64});
        calls.small.add("quantize " + types + ", rows of 33", quantize_call, {x, out, 33});
      }
      for (const int64_t dim : {33, 300})
        calls.ptx.add("quantize, " + types + ", rows of " + std::to_string(dim), quantize_call, {x, out, dim});
    }
  }
  for (const Sigma& model : kSigmas)
    calls.sigma.add(model.name + "quantize to i8, 8k rows", quantize_call, {kBf16, kI8, model.head_dim, 8192});
  return calls;
}

}  // namespace diffqkv::cuda
