// Cases that go wrong deliberately, to show what the program makes of them.
#include <cstdlib>

#include "device_cases.h"

namespace diffqkv::cuda {
namespace {

using driver::Result;

__global__ void __launch_bounds__(32, 1) wait_forever(uint32_t* never) {
  while (atomicAdd(never, 0) == 0) {}
}

__global__ void __launch_bounds__(32, 1) write_anywhere(uint32_t* nowhere) { st_global(nowhere + threadIdx.x, 1u); }

void run_kernel(void (*kernel)(uint32_t*), uint32_t* argument) {
  launch("broken", kernel, {}, nullptr, argument);
  check_cuda(cudaDeviceSynchronize(), "broken");
}

Result hang() {
  const Memory<uint32_t> never(std::vector<uint32_t>(1, 0));
  run_kernel(wait_forever, never.data());
  return {};
}

Result crash() {
  run_kernel(write_anywhere, reinterpret_cast<uint32_t*>(uintptr_t{4096}));
  return {};
}

// The weights change their sign between the operator and what it is compared with.
Result fail_comparison() {
  Call call = matmul_call({DType::bf16, 4, 64, 48});
  const auto enqueue = call.enqueue;
  call.enqueue = [&](Context& context) {
    enqueue(context);
    check_cuda(cudaStreamSynchronize(context.stream), "broken");
    Memory<uint8_t>& weight = call.tensor("weight").memory;
    std::vector<uint8_t> bytes = weight.values();
    for (size_t i = 1; i < bytes.size(); i += 2) bytes[i] ^= 0x80;
    weight.upload(bytes);
  };
  return check_call(call, nullptr);
}

}  // namespace

driver::Case broken_case(const std::string& kind) {
  const std::string name = "deliberate: " + kind;
  if (kind == "hang") return {name, hang};
  if (kind == "crash") return {name, crash};
  if (kind == "abort") return {name, []() -> Result { std::abort(); }};
  return {name, fail_comparison};
}

}  // namespace diffqkv::cuda
