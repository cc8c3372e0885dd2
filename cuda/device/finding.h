// How a kernel reports an argument in device memory that is out of range.
#pragma once

#include "device/memory.h"
#include "kernels.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {

// The first finding stays; the others are dropped. `finding` may be null.
DIFFQKV_DEVICE void report(Finding* finding, Finding::Kind kind, int index, int value, int limit) {
  if (finding == nullptr || atomic_compare_exchange(&finding->kind, Finding::none, kind) != Finding::none) return;
  store(&finding->index, index);
  store(&finding->value, value);
  store(&finding->limit, limit);
}

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
