// Splits a range evenly over the OpenMP threads. For the per-ISA files: internal linkage, and f must not throw.
#pragma once

#include <omp.h>
#include <stdint.h>

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// Below this many elements one thread is done before a second one has woken up.
constexpr int64_t kParallelElements = 16384;

// f(begin, end) on every thread, borders at multiples of `grain`; on this thread alone where the work is too small.
template <typename F>
DIFFQKV_INLINE void parallel_ranges(int64_t count, int64_t grain, int64_t num_elements, const F& f) {
  const int64_t grains = (count + grain - 1) / grain;
  if (grains < 2 || num_elements < kParallelElements) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num(), num_threads = omp_get_num_threads();
    const int64_t begin = grains * thread / num_threads * grain;
    const int64_t end = min_of(grains * (thread + 1) / num_threads * grain, count);
    if (begin < end) f(begin, end);
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
