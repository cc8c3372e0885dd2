// What the machine can do at best, measured without any code of diffqkv: the limits that bench/ sets its figures beside.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace ceilings {

inline double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Huge pages where the system gives them; never freed (the program measures until it ends).
void* allocate(size_t bytes);

// GB/s (1e9) of one pass over a buffer that no cache holds, by all threads: one list of samples per access pattern.
struct BandwidthSamples {
  const char* pattern;
  std::vector<double> gb_per_s;
};
std::vector<BandwidthSamples> read_bandwidth(int rounds, int only = -1);  // only: the one pattern of that number
size_t bandwidth_buffer_bytes();
// GB/s, read and written, of copying one half of that buffer to the other by all threads.
std::vector<double> copy_bandwidth(int rounds);

// out [m, n] = x [m, k] weight [n, k]^T, all bf16 but for out where out_f32 is set.
struct Matrix {
  long m, k, n;
  bool out_f32;
};
struct LinearSamples {
  Matrix matrix;
  std::vector<double> packed_ms;  // the weight in the layout that oneDNN picks
  std::vector<double> plain_ms;   // the weight row-major, as in a checkpoint
};
// Every matrix in `sets` copies, walked set by set as a model walks its layers, so that weights come from memory.
// Empty where the program was built without oneDNN.
std::vector<LinearSamples> onednn_linear(const std::vector<Matrix>& matrices, int sets, int rounds);
std::string onednn_version();  // empty without oneDNN

}  // namespace ceilings
