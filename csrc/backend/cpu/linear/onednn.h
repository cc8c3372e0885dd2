// Products by oneDNN: one compiled primitive for each shape, kept for the next call.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include <dnnl.hpp>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

// What becomes of y = x weight^T in f32, before it is rounded to out.
enum class Epilogue {
  none,
  add,       // out += y
  silu,      // out = silu(y)
  multiply,  // out = y * factor
};

// x and weight of one type, f32 or bf16, out f32 or (where they are bf16) bf16.
struct Product {
  const void* x;       // [num_tokens, in_features]
  const void* weight;  // [out_features, in_features]
  void* out;           // [num_tokens, stride_out], of which the first out_features are written
  DType dtype, out_dtype;
  int64_t num_tokens, in_features, out_features, stride_out;
  Epilogue epilogue = Epilogue::none;
  const float* factor = nullptr;  // [num_tokens, out_features], of Epilogue::multiply
};

class OneDnnProducts {
 public:
  OneDnnProducts();
  // Odd in_features are left to f32: with AMX and 63 of them, oneDNN 2.6.3 stops the process with SIGILL, its tiles
  // configured for another width than its code uses.
  bool multiplies_bf16(int64_t in_features) const { return multiplies_bf16_ && in_features % 2 == 0; }
  void run(const Product& product, Arena& arena);

 private:
  struct Compiled {
    Product shape;  // its pointers mean nothing
    dnnl::matmul primitive;
    dnnl::memory::desc x, weight, out, scratchpad;
  };
  const Compiled& compiled(const Product& product);

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::list<Compiled> cache_;  // the last used first
  bool multiplies_bf16_;
};

}  // namespace diffqkv::cpu
