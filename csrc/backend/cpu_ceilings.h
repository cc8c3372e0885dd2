// The highest rates of this CPU, for bench/, which puts them beside its figures. No operator's kernel takes part in the
// measurement. Every method measures once, with the threads of the CPU device. The object allocates its buffers when it
// first needs them and frees them when it is destroyed. One thread at a time uses it: the executor of a CPU device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace diffqkv {

class CpuCeilings {
 public:
  enum class WeightLayout { packed, plain };  // as oneDNN prefers it, or row-major as in a checkpoint
  enum class OutType { bf16, f32 };

  // out [m, n] = x [m, k] weight [n, k]^T; x and weight are bf16.
  struct Matrix {
    int64_t m, k, n;
    OutType out_type;
  };

  CpuCeilings();
  ~CpuCeilings();

  // GB/s (1e9) of reading a buffer that is larger than the caches. Each thread reads `streams` (1, 2 or 4) parts of its
  // share side by side and prefetches `prefetch_bytes` ahead (0: no prefetch). Which pattern is fastest depends on the
  // machine: the number of streams sets how many hardware prefetchers work.
  double read_gb_per_s(int streams, int64_t prefetch_bytes);

  // GB/s, read and written, of copying one half of that buffer to the other half.
  double copy_gb_per_s();

  // GFLOP/s on registers of the fastest multiply instruction in use: FMA, AVX512-BF16 or AMX.
  double multiply_gflop_per_s();

  // Milliseconds of each product by oneDNN: all matrices with their first weight, then all with their second, up to
  // `num_weights`, as a model walks its layers. Throws ERR_DEVICE_UNAVAILABLE if oneDNN is not built in.
  std::vector<double> matrices_ms(const std::vector<Matrix>& matrices, int64_t num_weights, WeightLayout layout);

 private:
  struct Buffer;
  struct Products;  // of oneDNN
  char* stream_buffer();

  std::unique_ptr<Buffer> buffer_;
  std::unique_ptr<Products> products_;
};

}  // namespace diffqkv
