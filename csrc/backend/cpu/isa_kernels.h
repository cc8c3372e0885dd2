// The kernels of one instruction set.
#pragma once

#include "backend/cpu/kernels.h"

namespace diffqkv::cpu::DIFFQKV_ISA {

extern const Kernels kernels;

#define DIFFQKV_KERNEL(name, Params) void name(const Params& p, Arena& arena);
DIFFQKV_ISA_OPERATORS(DIFFQKV_KERNEL)
#undef DIFFQKV_KERNEL

void gemv(const MatmulParams& p, Arena& arena);
void gated_gemv(const GatedMlpParams& p, void* inner, DType inner_dtype, Arena& arena);
void gemm(const MatmulParams& p, Arena& arena);
void gated_gemm(const GatedMlpParams& p, void* inner, DType inner_dtype, Arena& arena);
void convert(DType to, void* dst, DType from, const void* src, int64_t count);
void dequantize_rows(void* dst, const WeightView& weight, int64_t in_features, int64_t num_rows);
uint32_t read_stream(const void* data, int64_t bytes, int streams, int64_t prefetch_bytes);
double multiply_registers(MultiplyUnit unit, int64_t rounds, float* sink);

}  // namespace diffqkv::cpu::DIFFQKV_ISA
