// Calls of gated_activation.
#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

struct GatedActivationCase {
  DType dtype;
  int64_t count;
  Activation activation = Activation::silu;
  bool has_gate = true;
};

Call gated_activation_call(const GatedActivationCase& c) {
  Call call;
  GatedActivationParams p;
  if (c.has_gate) p.gate = add_random(call, "gate", c.dtype, count_of({c.count}), 3, 1);
  p.up = add_random(call, "up", c.dtype, count_of({c.count}), c.has_gate ? 0.1f : 3, 2);
  p.out = add_output(call, "out", c.dtype, count_of({c.count}), Comparison::values, c.count, c.dtype);
  p.dtype = c.dtype;
  p.count = c.count;
  p.activation = c.activation;
  set_operator(call, gated_activation, p);
  return call;
}

// Tensors that begin an element past an aligned address.
Call shifted_call(const GatedActivationCase& c) {
  return changed(gated_activation_call({c.dtype, c.count + 1, c.activation}), gated_activation,
                 [](Call&, GatedActivationParams& p) {
                   const size_t bytes = dtype_size(p.dtype);
                   p.gate = static_cast<const uint8_t*>(p.gate) + bytes;
                   p.up = static_cast<const uint8_t*>(p.up) + bytes;
                   p.out = static_cast<uint8_t*>(p.out) + bytes;
                   --p.count;
                 });
}

__global__ void __launch_bounds__(kPlainThreads, 1) gated_activation_element(GatedActivationParams p) {
  const int64_t i = output_index();
  if (i >= p.count) return;
  const float up = load_any(p.up, p.dtype, i);
  store_any(
      p.out, p.dtype, i,
      p.gate ? plain_activation(p.activation, load_any(p.gate, p.dtype, i)) * up : plain_activation(p.activation, up));
}

}  // namespace

void reference(const GatedActivationParams& p, Context& context) {
  run_over(p.count, gated_activation_element, p, context);
}

OperatorCalls gated_activation_calls() {
  OperatorCalls calls;
  for (const DType dtype : kFloats) {
    const std::string name = "gated_activation, " + text_of(dtype);
    calls.small.add(name, gated_activation_call, {dtype, 1003});
    calls.small.add(name + ", no gate", gated_activation_call, {dtype, 1003, Activation::gelu, false});
    for (const NamedActivation& other : kOtherActivations) {
      const std::string start = name + ", " + other.name;
      calls.small.add(start, gated_activation_call, {dtype, 1003, other.activation});
      calls.ptx.add(start + ", not aligned", shifted_call, {dtype, 300, other.activation});
      calls.ptx.add(start + ", no gate", gated_activation_call, {dtype, 1003, other.activation, false});
    }
    for (const int64_t count : {300, 40000}) {
      const std::string size = std::to_string(count);
      calls.ptx.add(name + ", not aligned, " + size, shifted_call, {dtype, count}, kTinyGpu);
      calls.ptx.add(name + ", " + size, gated_activation_call, {dtype, count + 3}, kTinyGpu);
    }
  }
  for (const Sigma& model : kSigmas) {
    calls.sigma.add(model.name + "gated_activation, 512 tokens", gated_activation_call,
                    {kBf16, 512 * model.intermediate_size});
  }
  return calls;
}

}  // namespace diffqkv::cuda
