// out (+)= x weight^T, and activation(x gate^T) * (x up^T) in one pass over both weights, for few tokens. Bound by reading each
// weight once from memory.
//
// A unit of work is a few weight rows; the warps that share a unit split the columns and add up in shared memory, so that
// few rows fill the card as well as many do. Where x and weight are of one 16-bit type the tensor cores multiply: a weight
// tile of 16 rows is the A of m16n8k16, up to 8 tokens are its N, and any number of tokens costs what one does. An mma's
// 16 columns are in truth 16 of the 64 bytes that four lanes hold of a row: in which order columns are summed is free.
// All else is multiplied and added in f32, two rows a warp: with wide loads where x is f32, as it is between the two
// products of augmented Q in f16.
#include <algorithm>

#include <device/mma.h>
#include "activation.h"
#include "linear.h"
#include "reductions.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

struct GemvParams {
  const void* x;
  RowOutputs outputs;
  DType x_dtype, weight_dtype;
  bool accumulate;
  int64_t num_tokens, in_features;
  int num_token_groups;   // of kGemvTokens
  Activation activation;  // where gated
};

// Where a warp works. Blocks that read the same rows for other tokens follow each other.
struct Place {
  RowOutput output;    // of the block
  int64_t first_unit;  // of the block, in the output
  int64_t token;
  int num_tokens;
  int unit, slice;  // of the warp, in the block

  __device__ __forceinline__ explicit Place(const GemvParams& p) {
    const int group = static_cast<int>(blockIdx.x) % p.num_token_groups, warp = warp_index();
    int block = static_cast<int>(blockIdx.x) / p.num_token_groups;
    output = p.outputs.find(block);
    first_unit = static_cast<int64_t>(block) * (kWarps >> output.slices_log2);
    token = static_cast<int64_t>(group) * kGemvTokens;
    num_tokens = p.num_tokens - token < kGemvTokens ? static_cast<int>(p.num_tokens - token) : kGemvTokens;
    unit = warp >> output.slices_log2;
    slice = warp & ((1 << output.slices_log2) - 1);
  }
};

// Where in shared memory a warp leaves the sum of row r of its half of the unit and of a token. Rows r and r + 4, and the
// halves, are turned against each other, so that neither the writing of fragments nor the reading of columns has bank
// conflicts; tokens 2t and 2t + 1 stay together.
template <int kRows>
__device__ __forceinline__ int sum_index(int warp, int half, int r, int token) {
  return ((warp * 2 + half) * kRows + r) * kGemvTokens + (token ^ (r / 4 % 2 * 4 + half * 2));
}

// Adds up what the warps of each unit have left, and writes it. A unit's halves are kRows rows of gate and the same of up,
// or kRows rows and the next kRows, of which only kHalves are there.
template <bool kGated, int kHalves, int kRows>
__device__ __forceinline__ void write_sums(const GemvParams& p, const Place& place, const float* sums) {
  __syncthreads();
  constexpr int kOutRows = kGated ? kRows : kHalves * kRows;
  const int units_log2 = 3 - place.output.slices_log2, count = (kOutRows * place.num_tokens) << units_log2;
  static_assert(kWarps == 8);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int unit = i / kOutRows & ((1 << units_log2) - 1), token = i / kOutRows >> units_log2;
    const int64_t row = (place.first_unit + unit) * kOutRows + i % kOutRows;
    if (row >= place.output.out_features) continue;
    const auto sum = [&](int half) {
      float total = 0;
      for (int slice = 0; slice < 1 << place.output.slices_log2; ++slice)
        total += ld_shared(sums + sum_index<kRows>((unit << place.output.slices_log2) + slice, half, i % kRows, token));
      return total;
    };
    float value[1] = {sum(kGated ? 0 : i % kOutRows / kRows)};
    const int64_t index = (place.token + token) * place.output.out_stride + row;
    if constexpr (kGated) {
      const float second = sum(1);
      if (place.output.has_gate) {
        activate(p.activation, value);
        value[0] *= second;
      } else {
        put(place.output.out, place.output.dtype, index + place.output.out_features, second, false);
      }
    }
    put(place.output.out, place.output.dtype, index, value[0], p.accumulate);
  }
}

// The same for a warp of two rows whose lanes each hold a part of the sums.
template <bool kGated, int kTokens>
__device__ __forceinline__ void write_warp_sums(const GemvParams& p, const Place& place,
                                                const float (&sums)[2][kTokens]) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      const float sum = warp_sum(sums[half][token]);
      if (lane_index() == token) st_shared(shared + sum_index<1>(warp_index(), half, 0, token), sum);
    }
  }
  write_sums<kGated, 2, 1>(p, place, shared);
}

// ---- One 16-bit type, rows aligned to 16 bytes.

constexpr int kTileRows = 8;                 // of each half
constexpr int kChunks = 4;                   // loads of 32 columns of each row, with as many more under way
constexpr int kPieceColumns = 32 * kChunks;  // 256 bytes a row

template <typename T, bool kGated, int kHalves>
__global__ void __launch_bounds__(kThreads, kHalves) gemv_tensor(GemvParams p) {
  static_assert(kHalves == 2 || !kGated);
  const Place place(p);
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  const int64_t row = (place.first_unit + place.unit) * (kGated ? kTileRows : kHalves * kTileRows) + g;
  const T* rows[kHalves];
  int64_t row_ends[kHalves];
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int64_t own = kGated ? row : row + half * kTileRows;
    rows[half] = reinterpret_cast<const T*>(place.output.weights[half]) + own * p.in_features;
    row_ends[half] = own < place.output.out_features ? p.in_features : 0;
  }
  const T* x = static_cast<const T*>(p.x) + (place.token + g) * p.in_features;
  const int64_t x_end = g < place.num_tokens ? p.in_features : 0;

  // What a lane holds of a piece of kPieceColumns columns: 16 bytes of each chunk, of row g of each half.
  Words4 weights[kHalves][kChunks], next[kHalves][kChunks], tokens[kChunks];
  const auto read = [&](Words4(&to)[kHalves][kChunks], int64_t column) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t at = column + 32 * chunk + 8 * t;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        to[half][chunk] = Words4{};
        if (at < row_ends[half]) to[half][chunk] = ld_global_nc(rows[half] + at);
      }
    }
  };

  float even[4] = {}, odd[4] = {};
  const int64_t step = static_cast<int64_t>(kPieceColumns) << place.output.slices_log2;
  const int64_t end = row - g < place.output.out_features ? p.in_features : 0;
  int64_t column = static_cast<int64_t>(kPieceColumns) * place.slice;
  read(weights, column);
  for (; column < end; column += step) {
    // Before x, so that no wait for x holds a load of weights back. Past the end it reads nothing.
    read(next, column + step);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int64_t at = column + 32 * chunk + 8 * t;
      tokens[chunk] = Words4{};
      if (at < x_end) tokens[chunk] = ld_global(reinterpret_cast<const Words4*>(x + at));
    }
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const uint32_t(&first)[4] = weights[0][chunk].w;
      const uint32_t(&second)[4] = weights[kHalves - 1][chunk].w;
      const uint32_t(&b)[4] = tokens[chunk].w;
      const uint32_t none = 0;
      mma_m16n8k16<T>(even, {first[0], kHalves == 2 ? second[0] : none, first[1], kHalves == 2 ? second[1] : none},
                      {b[0], b[1]});
      mma_m16n8k16<T>(odd, {first[2], kHalves == 2 ? second[2] : none, first[3], kHalves == 2 ? second[3] : none},
                      {b[2], b[3]});
    }
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) weights[half][chunk] = next[half][chunk];
    }
  }

  float* sums = reinterpret_cast<float*>(dynamic_shared());
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const Words2 pair = {{bit_cast<uint32_t>(even[2 * half] + odd[2 * half]),
                          bit_cast<uint32_t>(even[2 * half + 1] + odd[2 * half + 1])}};
    st_shared(reinterpret_cast<Words2*>(sums + sum_index<kTileRows>(warp, half, g, 2 * t)), pair);
  }
  write_sums<kGated, kHalves, kTileRows>(p, place, sums);
}

// ---- Everything else.

// 16 bytes of a weight row.
template <typename W>
struct alignas(16) Weights {
  static constexpr int kCount = 16 / sizeof(W);
  W v[kCount];
};

// Weights of any type with x of f32, rows aligned to 16 bytes. All kTokens sums are formed; those past the block's own
// tokens stay 0.
template <typename W, bool kGated, int kTokens>
__global__ void __launch_bounds__(kThreads, 2) gemv_plain(GemvParams p) {
  constexpr int kElements = Weights<W>::kCount, kColumns = kElements * kWarpSize;
  constexpr int kLoads = kElements == 8 && kTokens > 1 ? 2 : 4;  // of each row, in flight
  const Place place(p);
  const int64_t row = (place.first_unit + place.unit) * (kGated ? 1 : 2);
  const float* x = static_cast<const float*>(p.x) + place.token * p.in_features;
  const W* rows[2];
  int64_t row_ends[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t own = kGated ? row : row + half;
    rows[half] = reinterpret_cast<const W*>(place.output.weights[half]) + own * p.in_features;
    row_ends[half] = own < place.output.out_features ? p.in_features : 0;
  }
  float sums[2][kTokens] = {};
  const int64_t end = row_ends[0];
  for (int64_t column = int64_t{kColumns} * kLoads * place.slice; column < end;
       column += int64_t{kColumns} * kLoads << place.output.slices_log2) {
    Weights<W> weights[2][kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t at = column + i * kColumns + lane_index() * kElements;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        weights[half][i] = Weights<W>{};
        if (at < row_ends[half]) weights[half][i] = bit_cast<Weights<W>>(ld_global_nc(rows[half] + at));
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t at = column + i * kColumns + lane_index() * kElements;
      if (at >= end) continue;
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        if (token >= place.num_tokens) continue;
#pragma unroll
        for (int j = 0; j < kElements; j += 4) {
          const Words4 four = ld_global(reinterpret_cast<const Words4*>(x + token * p.in_features + at + j));
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sums[0][token] += bit_cast<float>(four.w[e]) * to_float(weights[0][i].v[j + e]);
            sums[1][token] += bit_cast<float>(four.w[e]) * to_float(weights[1][i].v[j + e]);
          }
        }
      }
    }
  }
  write_warp_sums<kGated>(p, place, sums);
}

// Any types and any alignment, an element at once.
template <bool kGated>
__global__ void __launch_bounds__(kThreads, 2) gemv_any(GemvParams p) {
  const Place place(p);
  const int64_t row = (place.first_unit + place.unit) * (kGated ? 1 : 2);
  const int64_t x_row = place.token * p.in_features, own[2] = {row, kGated ? row : row + 1};
  float sums[2][kGemvTokens] = {};
  const int64_t end = row < place.output.out_features ? p.in_features : 0;
  for (int64_t at = kWarpSize * place.slice + lane_index(); at < end; at += kWarpSize << place.output.slices_log2) {
    float weights[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weights[half] = own[half] < place.output.out_features
                          ? load_any(place.output.weights[half], p.weight_dtype, own[half] * p.in_features + at)
                          : 0.0f;
    }
#pragma unroll
    for (int token = 0; token < kGemvTokens; ++token) {
      if (token >= place.num_tokens) continue;
      const float value = load_any(p.x, p.x_dtype, x_row + token * p.in_features + at);
      sums[0][token] += value * weights[0];
      sums[1][token] += value * weights[1];
    }
  }
  write_warp_sums<kGated>(p, place, sums);
}

// ---- Launchers.

// Spreads the units: as many warps to each as have `columns_per_warp` twice over, so that the last blocks are short; or, to
// fill the card, once.
void launch_gemv(const char* name, void (*kernel)(GemvParams), const LinearParams& linear, Context& context,
                 int rows_per_unit, int64_t columns_per_warp, size_t shared_bytes) {
  GemvParams p = {linear.x,           {},
                  linear.x_dtype,     linear.weight().dtype,
                  linear.accumulate,  linear.num_tokens,
                  linear.in_features, static_cast<int>((linear.num_tokens + kGemvTokens - 1) / kGemvTokens),
                  linear.activation};
  const int64_t wanted_warps = int64_t{context.num_multiprocessors} * 2 * kWarps;
  p.outputs = row_outputs(linear, rows_per_unit, kWarps, [&](int64_t units) {
    const auto has_columns_for = [&](int slices) {
      const int times = units * slices <= wanted_warps ? 1 : 2;
      return columns_per_warp * times * (slices - 1) < p.in_features;
    };
    int slices_log2 = 0;
    while (1 << slices_log2 < kWarps && has_columns_for(2 << slices_log2)) ++slices_log2;
    return slices_log2;
  });
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(p.outputs.num_blocks() * p.num_token_groups);
  shape.threads = kThreads;
  shape.shared_bytes = shared_bytes;
  launch(name, kernel, shape, context.stream, p);
}

template <typename T>
void gemv_tensor_launch(const LinearParams& p, Context& context) {
  constexpr size_t kSharedBytes = sizeof(float) * kWarps * 2 * kTileRows * kGemvTokens;
  if (p.has_gate()) {
    return launch_gemv("gemv_gated", gemv_tensor<T, true, 2>, p, context, kTileRows, kPieceColumns, kSharedBytes);
  }
  // Half as many rows to a block where 16 would leave multiprocessors without one. A row's slices are the same.
  if (p.all_features() <= int64_t{context.num_multiprocessors} * kTileRows) {
    return launch_gemv("gemv", gemv_tensor<T, false, 1>, p, context, kTileRows, kPieceColumns, kSharedBytes);
  }
  launch_gemv("gemv", gemv_tensor<T, false, 2>, p, context, 2 * kTileRows, kPieceColumns, kSharedBytes);
}

constexpr size_t kPlainSharedBytes = sizeof(float) * kWarps * 2 * kGemvTokens;

template <typename W, int kTokens>
void gemv_plain_launch(const LinearParams& p, Context& context) {
  constexpr int64_t kColumns = int64_t{Weights<W>::kCount} * kWarpSize * 4;
  if (p.has_gate()) {
    return launch_gemv("gemv_plain_gated", gemv_plain<W, true, kTokens>, p, context, 1, kColumns, kPlainSharedBytes);
  }
  launch_gemv("gemv_plain", gemv_plain<W, false, kTokens>, p, context, 2, kColumns, kPlainSharedBytes);
}

}  // namespace

void gemv(const LinearParams& p, Context& context) {
  const DType weight_dtype = p.weight().dtype;
  bool aligned = rows_aligned(p.x, p.in_features, p.x_dtype);
  for (int i = 0; i < p.num_outputs; ++i) {
    aligned &= rows_aligned(p.outputs[i].weight.data, p.in_features, weight_dtype) &&
               rows_aligned(p.outputs[i].gate.data, p.in_features, weight_dtype);
  }
  if (!aligned || (p.x_dtype != DType::f32 && p.x_dtype != weight_dtype)) {
    if (p.has_gate())
      return launch_gemv("gemv_any_gated", gemv_any<true>, p, context, 1, 4 * kWarpSize, kPlainSharedBytes);
    return launch_gemv("gemv_any", gemv_any<false>, p, context, 2, 4 * kWarpSize, kPlainSharedBytes);
  }
  visit_float(weight_dtype, [&](auto w) {
    using W = decltype(w);
    if constexpr (sizeof(W) == 2) {
      if (p.x_dtype == weight_dtype) return gemv_tensor_launch<W>(p, context);
    }
    if (p.num_tokens == 1) return gemv_plain_launch<W, 1>(p, context);
    gemv_plain_launch<W, kGemvTokens>(p, context);
  });
}

}  // namespace diffqkv::cuda
