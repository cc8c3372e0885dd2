// The kernel table of one instruction set.
#include "backend/cpu/isa_kernels.h"

#define DIFFQKV_STRING_(x) #x
#define DIFFQKV_STRING(x) DIFFQKV_STRING_(x)

namespace diffqkv::cpu::DIFFQKV_ISA {

const Kernels kernels = {
    DIFFQKV_STRING(DIFFQKV_ISA),
    embed,
    rms_norm,
    gemv,
    gated_gemv,
    matmul_blocked,
    silu_mul,
    rope,
    kv_append,
    kv_gather,
    quantize,
    attention_prefill,
    attention_decode,
    convert,
    read_stream,
    multiply_registers,
};

}  // namespace diffqkv::cpu::DIFFQKV_ISA
