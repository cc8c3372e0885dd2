// How a kernel reports an argument in device memory that is out of range.
#pragma once

#include <device/memory.h>

#include "kernels.h"

namespace diffqkv::cuda {

// The first finding stays; the others are dropped. `finding` may be null.
__device__ __forceinline__ void report(Finding* finding, Finding::Kind kind, int index, int value, int limit) {
  if (finding == nullptr || atomicCAS(&finding->kind, Finding::none, kind) != Finding::none) return;
  st_global(&finding->index, index);
  st_global(&finding->value, value);
  st_global(&finding->limit, limit);
}

}  // namespace diffqkv::cuda
