// Products by oneDNN. Each shape has one compiled primitive, which is kept for later calls.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include <dnnl.hpp>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

// What happens to y = x weight^T in f32 before it is rounded to out.
enum class Epilogue {
  none,
  add,       // out += y
  silu,      // out = silu(y)
  multiply,  // out = y * factor
};

// x and weight are bf16, out is f32 or bf16.
struct Product {
  const void* x;       // [num_tokens, in_features]
  const void* weight;  // [out_features, in_features]
  void* out;           // [num_tokens, stride_out], of which the first out_features are written
  DType out_dtype;
  int64_t num_tokens, in_features, out_features, stride_out;
  Epilogue epilogue = Epilogue::none;
  const float* factor = nullptr;  // [num_tokens, out_features], for Epilogue::multiply
};

class OneDnnProducts {
 public:
  OneDnnProducts();
  // Odd in_features use gemm: with AMX and 63 features, oneDNN 2.6.3 stops the process with SIGILL,
  // because its tiles are configured for another width than its code uses.
  bool multiplies_bf16(int64_t in_features) const { return multiplies_bf16_ && in_features % 2 == 0; }
  void run(const Product& product, Arena& arena);

 private:
  struct Compiled {
    Product shape;  // without its pointers
    dnnl::matmul primitive;
    dnnl::memory::desc x, weight, out, scratchpad;
  };
  const Compiled& compiled(const Product& product);

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::list<Compiled> cache_;  // most recently used first
  bool multiplies_bf16_;
};

}  // namespace diffqkv::cpu
