// The kernel table of one instruction set.
#include "backend/cpu/isa_kernels.h"

#define DIFFQKV_STRING_(x) #x
#define DIFFQKV_STRING(x) DIFFQKV_STRING_(x)

namespace diffqkv::cpu::DIFFQKV_ISA {

// clang-format off
#define DIFFQKV_ENTRY(operator_name, Params) .operator_name = operator_name,
const Kernels kernels = {
    .name = DIFFQKV_STRING(DIFFQKV_ISA),
#if defined(__AVX512BF16__)
    .multiplies_bf16 = true,
#else
    .multiplies_bf16 = false,
#endif
    DIFFQKV_ISA_OPERATORS(DIFFQKV_ENTRY)
    .gemv = gemv,
    .gated_gemv = gated_gemv,
    .gemm = gemm,
    .gated_gemm = gated_gemm,
    .convert = convert,
    .dequantize_rows = dequantize_rows,
    .read_stream = read_stream,
    .multiply_registers = multiply_registers,
};
// clang-format on

}  // namespace diffqkv::cpu::DIFFQKV_ISA
