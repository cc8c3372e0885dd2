// Divides a range evenly among the OpenMP threads. For the files of one instruction set: internal
// linkage, and f must not throw.
#pragma once

#include <omp.h>
#include <stdint.h>

#include "backend/cpu/simd.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// With fewer elements, one thread finishes before a second one has woken up.
constexpr int64_t kParallelElements = 16384;

// Calls f(begin, end) on every thread. Ranges begin and end at multiples of `grain`. Uses only this
// thread if there is little work.
template <typename F>
DIFFQKV_INLINE void parallel_ranges(int64_t count, int64_t grain, int64_t num_elements, const F& f) {
  const int64_t grains = ceil_div(count, grain);
  if (grains < 2 || num_elements < kParallelElements) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num();
    const int64_t num_threads = omp_get_num_threads();
    const int64_t begin = grains * thread / num_threads * grain;
    const int64_t end = min_of(grains * (thread + 1) / num_threads * grain, count);
    if (begin < end) f(begin, end);
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
