// Calls of softcap.
#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

struct SoftcapCase {
  int64_t count;
  float cap;
};

Call softcap_call(const SoftcapCase& c) {
  Call call;
  SoftcapParams p;
  p.x = reinterpret_cast<const float*>(add_random(call, "x", DType::f32, count_of({c.count}), 30, 1));
  p.out = reinterpret_cast<float*>(
      add_output(call, "out", DType::f32, count_of({c.count}), Comparison::values, c.count, DType::f32));
  p.count = c.count;
  p.cap = c.cap;
  set_operator(call, softcap, p);
  return call;
}

// Tensors that begin an element past an aligned address.
Call shifted_call(const SoftcapCase& c) {
  return changed(softcap_call({c.count + 1, c.cap}), softcap, [](Call&, SoftcapParams& p) {
    ++p.x;
    ++p.out;
    --p.count;
  });
}

__global__ void __launch_bounds__(kPlainThreads, 1) softcap_element(SoftcapParams p) {
  const int64_t i = output_index();
  if (i >= p.count) return;
  st_global(p.out + i, p.cap * static_cast<float>(tanh(static_cast<double>(ld_global(p.x + i)) / p.cap)));
}

}  // namespace

void reference(const SoftcapParams& p, Context& context) { run_over(p.count, softcap_element, p, context); }

OperatorCalls softcap_calls() {
  OperatorCalls calls;
  calls.small.add("softcap", softcap_call, {1003, 30});
  for (const int64_t count : {300, 40003}) {
    const std::string size = std::to_string(count);
    calls.ptx.add("softcap, " + size, softcap_call, {count, 20}, kTinyGpu);
    calls.ptx.add("softcap, not aligned, " + size, shifted_call, {count, 30}, kTinyGpu);
  }
  return calls;
}

}  // namespace diffqkv::cuda
