// What a row is multiplied by to normalize it, from the sum of its squares.
#pragma once

#include <cmath>

#include "types.h"

namespace diffqkv::cuda {

// Whether a sum of squares in f32 has neither overflowed nor lost the squares that matter.
__device__ __forceinline__ bool squares_are_in_range(double total) { return total >= 1e-28 && total <= 1e38; }

__device__ __forceinline__ float norm_scale(double total, int64_t row_size, float eps) {
  return static_cast<float>(1.0 / sqrt(total / static_cast<double>(row_size) + static_cast<double>(eps)));
}

}  // namespace diffqkv::cuda
