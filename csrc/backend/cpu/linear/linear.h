// The linear layers: selects gemv, oneDNN or matmul_blocked for a product, and computes gated_mlp
// from products.
#pragma once

#include <memory>
#include <string>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

std::string linear_layer_library();  // "oneDNN 2.6.3" or "plain blocked loop"

class LinearLayers {
 public:
  LinearLayers(const Kernels& kernels, Arena& arena);
  ~LinearLayers();

  void matmul(const MatmulParams& p);       // matmul.cc
  void gated_mlp(const GatedMlpParams& p);  // gated_mlp.cc

 private:
  // Up to this number of tokens, gemv is faster than oneDNN. At least 16: up to 16 sequences decode
  // together, and gemv computes the same bits for each of them as for that sequence alone.
  int64_t max_gemv_tokens(DType weight_dtype, DType x_dtype) const;
  // Whether bf16 is multiplied directly, without being converted to f32 first.
  bool multiplies_bf16() const;
  // Whether weights of this type are multiplied by x in bf16 directly.
  bool takes_bf16(DType weight_dtype) const {
    return dtype_is_packed(weight_dtype) || (weight_dtype == DType::bf16 && multiplies_bf16());
  }
  // inner = activation(x gate^T) * (x up^T), or activation(x up^T), all of them bf16, rounded once.
  // Returns false if this is not supported; inner is then unchanged.
  bool gated_product_bf16(const GatedMlpParams& p, const void* x, int64_t num_tokens, void* inner);
  struct OneDnn;  // engine, stream and compiled products

  const Kernels& kernels_;
  Arena& arena_;
  std::unique_ptr<OneDnn> onednn_;
};

}  // namespace diffqkv::cpu
