// How the matrices of a public checkpoint are quantized.
#pragma once

#include <cstdint>

namespace diffqkv {

class Fields;

// quantization_config of config.json.
struct Quantization {
  enum Method {
    none,
    gptq,        // X.qweight, X.qzeros, X.scales and maybe X.g_idx
    awq,         // X.qweight, X.qzeros and X.scales, in the order of the "gemm" kernel
    compressed,  // X.weight_packed or X.weight, X.weight_scale, and maybe X.weight_zero_point and X.weight_g_idx
    fp8,         // X.weight in f8e4m3, X.weight_scale_inv
  };
  Method method = none;
  const char* name = "";  // in messages
  int bits = 0;
  int64_t group_size = 0;        // elements of a row with one scale; 0: the whole row
  bool has_zeros = false;        // each group has a zero
  bool has_group_index = false;  // the columns of a group are not neighbors
  bool adds_one = false;         // gptq: the stored zero is one less
  int64_t block_rows = 0;        // fp8: rows and columns with one scale
  int64_t block_columns = 0;
};

// Reads quantization_config, if config.json has it.
Quantization read_quantization(const Fields& config);

}  // namespace diffqkv
