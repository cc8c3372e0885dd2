// The handwritten CPU kernels, compiled once for each instruction set and selected at run time.
//
// Every file in DIFFQKV_ISA_SOURCES (CMakeLists.txt) is compiled four times, with DIFFQKV_ISA set
// to baseline, avx2 (AVX2, FMA, F16C), avx512 (F, BW, CD, DQ, VL) and avx512_bf16 (avx512,
// AVX512-BF16 and AVX512-VNNI, which every CPU with the former has). Its functions are in namespace diffqkv::cpu::DIFFQKV_ISA. AMX is a run-time choice
// in avx512_bf16 (`use_amx()`).
//
// Such a file must not define weak symbols. The linker keeps one copy of a weak symbol for all
// callers, perhaps the AVX-512 one, and an older CPU would stop with SIGILL. So it uses no std
// containers or other header templates, and no inline functions that may stay out of line. It gets
// scratch memory from an Arena and reports errors with fail(). test/tools/check-isa.sh checks the
// objects with nm.
#pragma once

#include "backend/cpu/arena.h"
#include "backend/operators.h"
#include "backend/ops.h"

namespace diffqkv::cpu {

enum class MultiplyUnit { f32, bf16, tiles };  // FMA, AVX512-BF16, AMX

struct Kernels {
  const char* name;
  bool multiplies_bf16;  // without converting it to f32
#define DIFFQKV_KERNEL(name, Params) void (*name)(const Params& p, Arena& arena);
  DIFFQKV_ISA_OPERATORS(DIFFQKV_KERNEL)
#undef DIFFQKV_KERNEL

  // Parts of the linear layers.
  void (*gemv)(const MatmulParams& p, Arena& arena);  // few tokens; bound by reading the weight once
  // inner = activation(x gate^T) * (x up^T), or activation(x up^T), [num_tokens, inner_size]
  void (*gated_gemv)(const GatedMlpParams& p, void* inner, DType inner_dtype, Arena& arena);
  void (*gemm)(const MatmulParams& p, Arena& arena);  // many tokens; bound by arithmetic
  // inner as in gated_gemv, for many tokens
  void (*gated_gemm)(const GatedMlpParams& p, void* inner, DType inner_dtype, Arena& arena);
  void (*convert)(DType to, void* dst, DType from, const void* src, int64_t count);
  // The values of num_rows rows of a quantized weight, in order, as bf16.
  void (*dequantize_rows)(void* dst, const WeightView& weight, int64_t in_features, int64_t num_rows);

  // For CpuCeilings, on the calling thread only.
  // Reads all bytes in `streams` parts (1, 2 or 4) side by side; returns the bitwise or of some of them.
  uint32_t (*read_stream)(const void* data, int64_t bytes, int streams, int64_t prefetch_bytes);
  // Multiplies registers and returns the number of FLOPs: 0 if this instruction set does not have the unit. *sink is 0
  // before the call.
  double (*multiply_registers)(MultiplyUnit unit, int64_t rounds, float* sink);
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

// Whether the CPU has AMX-BF16, the kernel lets this process use it, and DIFFQKV_CPU_ISA allows it.
bool use_amx();

// Whether attention prefetches in one stream, else in four. On a Zen 5, whose hardware prefetcher of
// L2 follows one stream, one is up to a quarter faster. On Intel, the hardware prefetcher stops at
// each 4 KiB page, and one is a fifth slower. AMD's other CPUs are not measured.
bool one_prefetch_stream();

}  // namespace diffqkv::cpu
