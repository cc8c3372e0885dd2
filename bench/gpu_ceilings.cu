// gpu_ceilings [ROUNDS [DEVICE]]: the highest rates of a GPU. It shares no code with diffqkv. Prints
// {"copyGbPerS": [...], "readGbPerS": [...], "mmaTflops": [...]}: a copy of 1 GiB in the memory of the GPU (bytes read and
// written), a reduction over 4 GiB, and the rate of the bf16 mma.sync instruction on registers.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstdio>
#include <cstdlib>
#include <functional>

namespace {

constexpr size_t kCopyBytes = size_t{1} << 30, kReadBytes = size_t{4} << 30;
constexpr int kMmaRounds = 4096, kTiles = 4;

void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "gpu_ceilings: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

__global__ void read_all(const uint4* data, size_t count, unsigned* out) {
  unsigned sum = 0;
  const size_t step = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    const uint4 a = __ldcs(data + i), b = __ldcs(data + i + step), c = __ldcs(data + i + 2 * step),
                d = __ldcs(data + i + 3 * step);
    sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  if (sum == 0x12345678u) *out = sum;  // keeps the loads: the compiler does not know that this is false
}

__global__ void multiply_all(float* out) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, __nv_bfloat16, row_major> a;
  fragment<matrix_b, 16, 16, 16, __nv_bfloat16, col_major> b;
  fragment<accumulator, 16, 16, 16, float> c[kTiles];
  fill_fragment(a, __float2bfloat16(1.0f));
  fill_fragment(b, __float2bfloat16(1.0f));
  for (auto& tile : c) fill_fragment(tile, 0.0f);
  for (int round = 0; round < kMmaRounds; ++round) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) mma_sync(c[tile], a, b, c[tile]);
  }
  float sum = 0;
  for (auto& tile : c) sum += tile.x[0];
  if (sum < 0) *out = sum;
}

// Prints the rate of each of `rounds` runs, after a run that is not counted.
void measure(const char* name, int rounds, double amount, double unit, const std::function<void()>& work) {
  cudaEvent_t start, stop;
  must(cudaEventCreate(&start), "event");
  must(cudaEventCreate(&stop), "event");
  std::printf("\"%s\": [", name);
  for (int round = -1; round < rounds; ++round) {
    must(cudaEventRecord(start), name);
    work();
    must(cudaGetLastError(), name);
    must(cudaEventRecord(stop), name);
    must(cudaEventSynchronize(stop), name);
    float ms;
    must(cudaEventElapsedTime(&ms, start, stop), name);
    if (round >= 0) std::printf("%s%.2f", round ? ", " : "", amount / ms / unit);
  }
  std::printf("]");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
  const int device = argc > 2 ? std::atoi(argv[2]) : 0;
  must(cudaSetDevice(device), "device");
  cudaDeviceProp gpu;
  must(cudaGetDeviceProperties(&gpu, device), "properties");
  unsigned char* data;
  unsigned* sink;
  must(cudaMalloc(&data, kReadBytes), "4 GiB");
  must(cudaMalloc(&sink, 256), "memory");
  must(cudaMemset(data, 1, kReadBytes), "memset");
  std::printf("{");
  measure("copyGbPerS", rounds, 2.0 * kCopyBytes, 1e6,
          [&] { cudaMemcpyAsync(data + kCopyBytes, data, kCopyBytes, cudaMemcpyDeviceToDevice); });
  std::printf(", ");
  measure("readGbPerS", rounds, kReadBytes, 1e6, [&] {
    read_all<<<gpu.multiProcessorCount * 8, 256>>>(reinterpret_cast<uint4*>(data), kReadBytes / 16, sink);
  });
  std::printf(", ");
  const int blocks = gpu.multiProcessorCount * 4, warps = 4;
  measure("mmaTflops", rounds, 2.0 * 16 * 16 * 16 * kTiles * kMmaRounds * warps * blocks, 1e9,
          [&] { multiply_all<<<blocks, warps * 32>>>(reinterpret_cast<float*>(sink)); });
  std::printf("}\n");
  return 0;
}
