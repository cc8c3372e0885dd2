// device_check: every wrapper of the device layer on a GPU against its emulation, on the same random words. Prints
// [{"name", "exact", "words", "different", "largest"}, ...]: of how many words how many differ, and by how much at most,
// relative to the largest of the warp, where they are numbers. Status 1 where a wrapper differs whose every bit the ISA
// defines, or another one by more than its sums' rounding or its approximation explains.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "wrapper_inputs.h"
#include "wrappers.h"

namespace diffqkv::check {

std::vector<uint32_t> emulated_output(size_t wrapper, const std::vector<uint32_t>& in);  // emulated_output.cc

namespace {

constexpr int kBlocks = 256;

void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "device_check: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(2);
}

std::vector<uint32_t> gpu_output(const cuda::Wrapper& wrapper, const std::vector<uint32_t>& in) {
  const size_t out_words = in.size() / cuda::kIn * cuda::kOut;
  uint32_t *device_in, *device_out;
  must(cudaMalloc(&device_in, in.size() * 4), "cudaMalloc");
  must(cudaMalloc(&device_out, out_words * 4), "cudaMalloc");
  must(cudaMemcpy(device_in, in.data(), in.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  must(cudaMemset(device_out, 0xff, out_words * 4), "cudaMemset");
  wrapper.kernel<<<kBlocks, 32, 512>>>(device_in, device_out);
  must(cudaGetLastError(), wrapper.name);
  std::vector<uint32_t> out(out_words);
  must(cudaMemcpy(out.data(), device_out, out_words * 4, cudaMemcpyDeviceToHost), wrapper.name);
  cudaFree(device_in), cudaFree(device_out);
  return out;
}

float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace
}  // namespace diffqkv::check

int main() {
  using namespace diffqkv;
  using namespace diffqkv::check;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a run that is killed has told what it has found
  const std::vector<cuda::Wrapper> wrappers = cuda::wrappers();
  bool failed = false;
  for (size_t i = 0; i < wrappers.size(); ++i) {
    const std::vector<uint32_t> in = wrapper_input(wrappers[i].input, kBlocks, 100 + i);
    const std::vector<uint32_t> gpu = gpu_output(wrappers[i], in), emulated = emulated_output(i, in);
    size_t different = 0;
    double largest = 0, of_warp = 0;
    constexpr size_t kWarpWords = 32 * cuda::kOut;
    for (size_t w = 0; w < gpu.size(); ++w) {
      if (w % kWarpWords == 0) {
        of_warp = 0;
        for (size_t other = w; other < w + kWarpWords; ++other) {
          const double size = std::fabs(as_float(emulated[other]));
          if (std::isfinite(size)) of_warp = std::fmax(of_warp, size);
        }
      }
      if (gpu[w] == emulated[w]) continue;
      const float a = as_float(gpu[w]), b = as_float(emulated[w]);
      const bool numbers = wrappers[i].input != cuda::Input::bits;
      if (numbers && a != a && b != b) continue;  // which NaN it is, nobody defines
      ++different;
      // A sum may cancel, an exponential is relative to itself.
      const double size = wrappers[i].approximate ? std::fabs(b) : of_warp;
      const double error = std::fabs(static_cast<double>(a) - b) / size;
      if (numbers && !(error <= largest)) largest = error;
    }
    failed |= wrappers[i].exact ? different > 0 : !(largest <= (wrappers[i].approximate ? 1e-6 : 1e-5));
    std::printf("%s{\"name\": \"%s\", \"exact\": %s, \"words\": %zu, \"different\": %zu, \"largest\": %.3g}",
                i ? ",\n " : "[", wrappers[i].name, wrappers[i].exact ? "true" : "false", gpu.size(), different,
                largest);
  }
  std::printf("]\n");
  return failed ? 1 : 0;
}
