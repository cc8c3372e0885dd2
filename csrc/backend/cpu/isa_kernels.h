// The kernels of one instruction set.
#pragma once

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {

extern const Kernels kernels;

void embed(const EmbedParams& p);
void rms_norm(const RmsNormParams& p);
void gemv(const MatmulParams& p, Arena& arena);
void gated_gemv(const AugmentedQParams& p, void* inner, DType inner_dtype, Arena& arena);
void matmul_blocked(const MatmulParams& p, Arena& arena);
void silu_mul(const SiluMulParams& p);
void rope(const RopeParams& p);
void kv_append(const KvAppendParams& p);
void kv_gather(const KvGatherParams& p);
void quantize(const QuantizeParams& p);
void attention_prefill(const AttentionPrefillParams& p, Arena& arena);
void attention_decode(const AttentionDecodeParams& p, Arena& arena);
void convert(DType to, void* dst, DType from, const void* src, int64_t count);
uint32_t read_stream(const void* data, int64_t bytes, int streams, int64_t prefetch_bytes);
double multiply_registers(MultiplyUnit unit, int64_t rounds, float* sink);

}  // namespace diffqkv::cpu::DIFFQKV_ISA
