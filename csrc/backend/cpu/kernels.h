// The handwritten CPU kernels, compiled once for each instruction set and picked at run time.
//
// Every file listed in CMakeLists.txt as DIFFQKV_ISA_SOURCES is compiled four times, with DIFFQKV_ISA set to baseline,
// avx2 (AVX2, FMA, F16C), avx512 (F, BW, CD, DQ, VL) and avx512_bf16 (the same and AVX512-BF16), and puts its functions
// in namespace diffqkv::cpu::DIFFQKV_ISA. AMX is a run-time flag inside avx512_bf16 (`use_amx()`), by function
// attributes.
//
// Such a file must emit no weak symbols: the linker would keep one copy, perhaps the AVX-512 one, for everybody, and an
// older CPU would stop with SIGILL. So: no std containers or other header templates and no inline functions that may
// stay out of line; scratch memory from an Arena, errors by fail(). scripts/check-isa.sh holds it with nm.
#pragma once

#include "backend/cpu/arena.h"
#include "backend/ops.h"

namespace diffqkv::cpu {

struct Kernels {
  const char* name;
  void (*embed)(const EmbedParams& p);
  void (*rms_norm)(const RmsNormParams& p);
  void (*gemv)(const MatmulParams& p, Arena& arena);  // few tokens: bound by reading the weight once
  // inner = silu(x gate^T) * (x up^T), [num_tokens, inner_size]
  void (*gated_gemv)(const AugmentedQParams& p, void* inner, DType inner_dtype, Arena& arena);
  void (*matmul_blocked)(const MatmulParams& p, Arena& arena);  // any shape, where oneDNN is not built in
  void (*silu_mul)(const SiluMulParams& p);
  void (*rope)(const RopeParams& p);
  void (*kv_append)(const KvAppendParams& p);
  void (*kv_gather)(const KvGatherParams& p);
  void (*quantize)(const QuantizeParams& p);
  void (*attention_prefill)(const AttentionPrefillParams& p, Arena& arena);
  void (*attention_decode)(const AttentionDecodeParams& p, Arena& arena);
  void (*convert)(DType to, void* dst, DType from, const void* src, int64_t count);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}

bool use_amx();  // the CPU has AMX-BF16, the kernel lets this process use it, and DIFFQKV_CPU_ISA does not forbid it

}  // namespace diffqkv::cpu
