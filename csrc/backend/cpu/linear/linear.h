// The linear layers: which of gemv, oneDNN and matmul_blocked computes a product, and augmented_q out of products.
#pragma once

#include <memory>
#include <string>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

std::string linear_layers_by();  // "oneDNN 2.6.3" or "plain blocked loop"

class LinearLayers {
 public:
  LinearLayers(const Kernels& kernels, Arena& arena);
  ~LinearLayers();

  void matmul(const MatmulParams& p);           // matmul.cc
  void augmented_q(const AugmentedQParams& p);  // augmented_q.cc

 private:
  bool multiplies_bf16() const;  // as it stands, without widening it first
  // inner = silu(x gate^T) * (x up^T), all of them bf16, rounded once. False where nothing here can do that.
  bool gated_product_bf16(const AugmentedQParams& p, const void* x, int64_t num_tokens, void* inner);
  struct OneDnn;  // engine, stream and the compiled products

  const Kernels& kernels_;
  Arena& arena_;
  std::unique_ptr<OneDnn> onednn_;
};

// Up to so many tokens gemv takes less time than oneDNN. 16 at least: so many sequences may decode together, and gemv
// gives each the bits that it would get alone.
int64_t max_gemv_tokens(DType weight_dtype);

}  // namespace diffqkv::cpu
