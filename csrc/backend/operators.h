// The list of operators, from which the code derives everything that names all of them: the methods
// of Backend and their overrides, the launchers of cuda/kernels.h, and the tables of CPU kernels.
// X is called with the name of each operator and its Params struct (ops.h).
#pragma once

// A handwritten CPU kernel, compiled once for each instruction set.
#define DIFFQKV_ISA_OPERATORS(X)               \
  X(embed, EmbedParams)                        \
  X(rms_norm, RmsNormParams)                   \
  X(add_bias, AddBiasParams)                   \
  X(gated_activation, GatedActivationParams)   \
  X(softcap, SoftcapParams)                    \
  X(rope, RopeParams)                          \
  X(kv_append, KvAppendParams)                 \
  X(kv_gather, KvGatherParams)                 \
  X(quantize, QuantizeParams)                  \
  X(quantize_weight, QuantizeWeightParams)     \
  X(attention_prefill, AttentionPrefillParams) \
  X(attention_decode, AttentionDecodeParams)

// On the CPU, ordinary C++ that selects or combines kernels.
#define DIFFQKV_OTHER_OPERATORS(X) \
  X(matmul, MatmulParams)          \
  X(gated_mlp, GatedMlpParams)     \
  X(sample, SampleParams)          \
  X(log_probs, LogProbsParams)

#define DIFFQKV_OPERATORS(X) \
  DIFFQKV_ISA_OPERATORS(X)   \
  DIFFQKV_OTHER_OPERATORS(X)
