// The linear layers: selects gemv, gemm or oneDNN for a product, and computes gated_mlp from
// products.
#pragma once

#include <memory>
#include <string>

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu {

std::string linear_layer_library();  // for AMX: "oneDNN 2.6.3", else "built in"

class LinearLayers {
 public:
  LinearLayers(const Kernels& kernels, Arena& arena);
  ~LinearLayers();

  void matmul(const MatmulParams& p);       // matmul.cc
  void gated_mlp(const GatedMlpParams& p);  // gated_mlp.cc

 private:
  // Up to this number of tokens, gemv is faster. At least 16: up to 16 sequences decode together, and
  // gemv computes the same bits for each of them as for that sequence alone.
  int64_t max_gemv_tokens(DType weight_dtype) const;
  // Whether weights of this type are multiplied by x in bf16 without converting x to f32.
  bool multiplies_bf16(DType weight_dtype, bool by_gemv) const;
  // Whether oneDNN multiplies weights of this type by x: in bf16, by AMX.
  bool uses_onednn(DType weight_dtype, DType x_dtype, int64_t in_features) const;
  // x, or its normalized rows in scratch memory, of type `dtype`.
  const void* normalized(const void* x, const InputNorm& norm, DType dtype, int64_t num_tokens, int64_t in_features);
  // By oneDNN: inner = activation(x gate^T) * (x up^T), or activation(x up^T), all of them bf16,
  // rounded once.
  void gated_product_onednn(const GatedMlpParams& p, const void* x, int64_t num_tokens, void* inner);
  struct OneDnn;  // engine, stream and compiled products; only if AMX is used

  const Kernels& kernels_;
  Arena& arena_;
  std::unique_ptr<OneDnn> onednn_;
};

}  // namespace diffqkv::cpu
