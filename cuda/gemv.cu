// out (+)= x weight^T, and activation(x gate^T) * (x up^T) in one pass over both weights, for few
// tokens. Bound by reading each weight once from memory.
//
// A unit of work is a few weight rows; the warps that share a unit split the columns and add up in
// shared memory, so that few rows fill the card as well as many do. If x and weight are of one
// 16-bit type, the tensor cores multiply: a weight tile of 16 rows is the A of m16n8k16, 8 tokens
// are its N, and up to 16 tokens cost one reading of the weights. An mma's 16 columns are in truth
// 16 of the 64 bytes that four lanes have of a row, because the order in which columns are summed
// is free.
//
// That kernel stays on its multiprocessor and processes every gridDim.x-th block of units. A warp
// copies its weights by cp.async into a ring of its own of 8 KiB, four slots of 2 KiB. Each lane
// reads exactly the 16 bytes that it copied: it waits for its own copies and for no other thread. A
// slot is filled again as soon as it is multiplied, and the copies run ahead over the ends of units,
// so a warp has 8 KiB under way when it waits, and 6 KiB at least. That is 64 KiB for each of one or
// two blocks of a multiprocessor; a multiprocessor of an H200 needs about 36 KiB.
//
// All else is multiplied and added in f32, two rows a warp: with wide loads if x is f32, as it is
// between the two products of augmented Q in f16.
#include <algorithm>

#include <device/async.h>
#include <device/mma.h>
#include "activation.h"
#include "linear.h"
#include "reductions.h"
#include "stage_x.h"

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
  int num_token_groups;   // of the tokens that share one reading
  int num_blocks;         // of units, for each group of tokens
  Activation activation;  // where gated
  int x_pitch;            // of x in shared memory
  InputNorm norm;         // of x, which is f32 then, if it is staged
};

// Where a warp works: on which rows, for which tokens. Blocks of the same rows for other tokens follow each other.
struct Place {
  RowOutput output;    // of the block
  int64_t first_unit;  // of the block, in the output
  int64_t token;
  int num_tokens;
  int unit, slice;  // of the warp, in the block

  // Block `index` of num_blocks, for groups of `tokens` tokens.
  __device__ __forceinline__ Place(const GemvParams& p, int index, int tokens) {
    const int group = index % p.num_token_groups, warp = warp_index();
    int block = index / p.num_token_groups;
    output = p.outputs.find(block);
    first_unit = static_cast<int64_t>(block) * (kWarps >> output.slices_log2);
    token = static_cast<int64_t>(group) * tokens;
    num_tokens = p.num_tokens - token < tokens ? static_cast<int>(p.num_tokens - token) : tokens;
    unit = warp >> output.slices_log2;
    slice = warp & ((1 << output.slices_log2) - 1);
  }
};

// Where in shared memory a warp leaves the sum of row r of its half of the unit and of a token. Tokens come in tiles of 8.
// Rows r and r + 4, and the halves, are turned against each other, so that neither the writing of fragments nor the reading
// of columns has bank conflicts; tokens 2t and 2t + 1 stay together.
template <int kRows, int kTilesN>
__device__ __forceinline__ int sum_index(int warp, int half, int r, int token) {
  return (((warp * 2 + half) * kTilesN + token / 8) * kRows + r) * 8 + (token % 8 ^ (r / 4 % 2 * 4 + half * 2));
}
__host__ __device__ __forceinline__ constexpr int sums_bytes(int rows, int tiles_n) {
  return kWarps * 2 * rows * tiles_n * 8 * static_cast<int>(sizeof(float));
}

// Adds up what the warps of each unit have left, and writes it. A unit's halves are kRows rows of gate and the same of up,
// or kRows rows and the next kRows, of which only kHalves are there.
template <bool kGated, int kHalves, int kRows, int kTilesN>
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
        total += ld_shared(
            sums + sum_index<kRows, kTilesN>((unit << place.output.slices_log2) + slice, half, i % kRows, token));
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
      if (lane_index() == token) st_shared(shared + sum_index<1, 1>(warp_index(), half, 0, token), sum);
    }
  }
  write_sums<kGated, 2, 1, 1>(p, place, shared);
}

// ---- One 16-bit type, rows aligned to 16 bytes.

constexpr int kTileRows = 8;                 // of each half
constexpr int kChunks = 4;                   // of a piece: 32 columns, 16 bytes of a row for each lane
constexpr int kPieceColumns = 32 * kChunks;  // 256 bytes a row
constexpr int kCopyBytes = 16 * kWarpSize;   // of a warp's chunk of 8 rows
constexpr int kSlots = 4, kSlotBytes = 2048, kRingBytes = kSlots * kSlotBytes;

// The weights of a warp: of all its units, one after the other, through its ring. A piece is one slot if a unit has one
// half, else two slots of half its columns.
template <int kHalves, bool kGated, int kTokens>
class WeightStream {
 public:
  static constexpr int kSlotChunks = kChunks / kHalves;
  static constexpr int kUnitRows = kGated ? kTileRows : kHalves * kTileRows;

  __device__ __forceinline__ WeightStream(const GemvParams& p, unsigned char* ring)
      : ring_(ring + lane_index() * 16), index_(static_cast<int>(blockIdx.x)) {
    find_unit(p);
#pragma unroll 1  // find_unit() is long
    for (int piece = 0; piece < kSlots / kHalves; ++piece) {
#pragma unroll
      for (int part = 0; part < kHalves; ++part) fill_next(p, part);
    }
  }

  // The pieces of the warp in a unit.
  __device__ __forceinline__ static int num_pieces(const GemvParams& p, const Place& place) {
    const int64_t row = (place.first_unit + place.unit) * kUnitRows;
    const int pieces = (static_cast<int>(p.in_features) + kPieceColumns - 1) / kPieceColumns;
    const int own = (pieces - place.slice + (1 << place.output.slices_log2) - 1) >> place.output.slices_log2;
    return row < place.output.out_features ? own : 0;
  }

  // The lane's chunks of the next slot.
  __device__ __forceinline__ void take(Words4 (&weights)[kHalves][kSlotChunks]) const {
    cp_async_wait_group<kSlots - 1>();
#pragma unroll
    for (int chunk = 0; chunk < kSlotChunks; ++chunk) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const unsigned char* from = ring_ + slot_ + (chunk * kHalves + half) * kCopyBytes;
        weights[half][chunk] = ld_shared(reinterpret_cast<const Words4*>(from));
      }
    }
  }

  // Fills the slot that take() gave, with part `part` of a piece: one copy group each time, empty past the end.
  __device__ __forceinline__ void fill_next(const GemvParams& p, int part) {
    if (pieces_ > 0) {
#pragma unroll
      for (int chunk = 0; chunk < kSlotChunks; ++chunk) {
        const int column = 32 * (part * kSlotChunks + chunk);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          cp_async_cg(ring_ + slot_ + (chunk * kHalves + half) * kCopyBytes, from_[half] + 2 * column,
                      column < left_[half] ? 16 : 0);
        }
      }
      if (part == kHalves - 1) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          from_[half] += 2 * step_;
          left_[half] -= step_;
        }
        if (--pieces_ == 0) {
          index_ += static_cast<int>(gridDim.x);
          find_unit(p);
        }
      }
    }
    cp_async_commit_group();
    slot_ = (slot_ + kSlotBytes) & (kRingBytes - 1);
  }

 private:
  // From index_ on, the first unit of which the warp has a piece.
  __device__ __forceinline__ void find_unit(const GemvParams& p) {
    for (; index_ < p.num_blocks * p.num_token_groups; index_ += static_cast<int>(gridDim.x)) {
      const Place place(p, index_, kTokens);
      pieces_ = num_pieces(p, place);
      if (pieces_ == 0) continue;
      step_ = kPieceColumns << place.output.slices_log2;
      const int column = kPieceColumns * place.slice + lane_index() % 4 * 8;
      const int64_t row = (place.first_unit + place.unit) * kUnitRows + lane_index() / 4;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int64_t own = kGated ? row : row + half * kTileRows;
        from_[half] = place.output.weights[half] + (own * p.in_features + column) * 2;
        left_[half] = own < place.output.out_features ? static_cast<int>(p.in_features) - column : 0;
      }
      return;
    }
  }

  unsigned char* ring_;  // the lane's first 16 bytes
  int slot_ = 0;
  int index_, pieces_ = 0, step_ = 0;   // of the next copy: its block of units; pieces left in it; columns between them
  const unsigned char* from_[kHalves];  // its row of each half, at the lane's column
  int left_[kHalves];                   // columns of that row from there on
};

// kStaged: x is in shared memory, and there is one group of tokens.
template <typename T, bool kGated, int kHalves, int kTilesN, bool kStaged>
__global__ void __launch_bounds__(kThreads, 2) gemv_tensor(GemvParams p) {
  static_assert(kHalves == 2 || !kGated);
  constexpr int kTokens = 8 * kTilesN, kSumsBytes = sums_bytes(kTileRows, kTilesN);
  using Stream = WeightStream<kHalves, kGated, kTokens>;
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  unsigned char* const shared = dynamic_shared();
  Stream stream(p, shared + warp * kRingBytes);
  // Sums of this unit and of the one before, which other warps may still read.
  float* sums = reinterpret_cast<float*>(shared + kWarps * kRingBytes);
  int next_sums = kSumsBytes / static_cast<int>(sizeof(float));
  unsigned char* const staged_x = shared + kWarps * kRingBytes + 2 * kSumsBytes;
  if constexpr (kStaged) {
    const StagedRows staged = {staged_x, p.x_pitch, reinterpret_cast<double*>(sums)};
    const int num_tokens = static_cast<int>(p.num_tokens), row_size = static_cast<int>(p.in_features);
    static_assert(kMaxNormedTokens <= 8 && kMaxNormedTokens * kWarps * sizeof(double) <= kSumsBytes);
    if (kTilesN == 1 && p.norm.weight) {
      stage_normed_rows<T, kThreads>(p.x, p.norm, num_tokens, row_size, staged);
    } else {
      stage_rows<kThreads>(p.x, num_tokens, row_size, staged);
    }
  }

  for (int index = static_cast<int>(blockIdx.x); index < p.num_blocks * p.num_token_groups;
       index += static_cast<int>(gridDim.x)) {
    const Place place(p, index, kTokens);
    const int step = kPieceColumns << place.output.slices_log2, column = kPieceColumns * place.slice + 8 * t;
    const T* x[kTilesN];
#pragma unroll
    for (int tile = 0; tile < kTilesN; ++tile) {
      const int token = 8 * tile + g;
      if constexpr (kStaged) {
        // A row of the mma without a token multiplies another token's x.
        const int row = token < place.num_tokens ? token : 0;
        x[tile] = reinterpret_cast<const T*>(staged_x + row * p.x_pitch) + column;
      } else {
        x[tile] = static_cast<const T*>(p.x) + (place.token + token) * p.in_features + column;
      }
    }
    int left = static_cast<int>(p.in_features) - column;
    float even[kTilesN][4] = {}, odd[kTilesN][4] = {};
    for (int piece = Stream::num_pieces(p, place); piece > 0; --piece) {
      Words4 tokens[kTilesN][kChunks];
#pragma unroll
      for (int tile = 0; tile < kTilesN; ++tile) {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
          const Words4* from = reinterpret_cast<const Words4*>(x[tile] + 32 * chunk);
          if constexpr (kStaged) {
            tokens[tile][chunk] = ld_shared(from);
          } else {
            tokens[tile][chunk] = Words4{};
            if (32 * chunk < left && 8 * tile + g < place.num_tokens) tokens[tile][chunk] = ld_global(from);
          }
        }
        x[tile] += step;
      }
#pragma unroll
      for (int part = 0; part < kHalves; ++part) {
        Words4 weights[kHalves][Stream::kSlotChunks];
        stream.take(weights);
#pragma unroll
        for (int chunk = 0; chunk < Stream::kSlotChunks; ++chunk) {
          const uint32_t(&first)[4] = weights[0][chunk].w;
          const uint32_t(&second)[4] = weights[kHalves - 1][chunk].w;
          const uint32_t none = 0;
#pragma unroll
          for (int tile = 0; tile < kTilesN; ++tile) {
            const uint32_t(&b)[4] = tokens[tile][part * Stream::kSlotChunks + chunk].w;
            mma_m16n8k16<T>(even[tile],
                            {first[0], kHalves == 2 ? second[0] : none, first[1], kHalves == 2 ? second[1] : none},
                            {b[0], b[1]});
            mma_m16n8k16<T>(odd[tile],
                            {first[2], kHalves == 2 ? second[2] : none, first[3], kHalves == 2 ? second[3] : none},
                            {b[2], b[3]});
          }
        }
        stream.fill_next(p, part);
      }
      left -= step;
    }
#pragma unroll
    for (int tile = 0; tile < kTilesN; ++tile) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const float* e = even[tile] + 2 * half;
        const float* o = odd[tile] + 2 * half;
        const Words2 pair = {{bit_cast<uint32_t>(e[0] + o[0]), bit_cast<uint32_t>(e[1] + o[1])}};
        st_shared(reinterpret_cast<Words2*>(sums + sum_index<kTileRows, kTilesN>(warp, half, g, 8 * tile + 2 * t)),
                  pair);
      }
    }
    write_sums<kGated, kHalves, kTileRows, kTilesN>(p, place, sums);
    sums += next_sums;
    next_sums = -next_sums;
  }
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
  const Place place(p, static_cast<int>(blockIdx.x), kGemvTokens);
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
  const Place place(p, static_cast<int>(blockIdx.x), kGemvTokens);
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

// How a kernel divides the product.
struct Split {
  int rows_per_unit;
  int64_t columns_per_warp;
  size_t shared_bytes;
  int tokens = kGemvTokens;  // that share one reading
  int max_blocks = 0;        // blocks that are launched at most; 0: one for each block of units
  int x_pitch = 0;           // of x in shared memory
};

// Spreads the units: as many warps to each as have `columns_per_warp` twice over, so that the last blocks are short; or, to
// fill the card, once.
void launch_gemv(const char* name, void (*kernel)(GemvParams), const LinearParams& linear, Context& context,
                 const Split& split) {
  GemvParams p = {linear.x,
                  {},
                  linear.x_dtype,
                  linear.weight().dtype,
                  linear.accumulate,
                  linear.num_tokens,
                  linear.in_features,
                  static_cast<int>((linear.num_tokens + split.tokens - 1) / split.tokens),
                  0,
                  linear.activation,
                  split.x_pitch,
                  linear.norm};
  const int64_t wanted_warps = int64_t{context.num_multiprocessors} * 2 * kWarps;
  p.outputs = row_outputs(linear, split.rows_per_unit, kWarps, [&](int64_t units) {
    const auto has_columns_for = [&](int slices) {
      const int times = units * slices <= wanted_warps ? 1 : 2;
      return split.columns_per_warp * times * (slices - 1) < p.in_features;
    };
    int slices_log2 = 0;
    while (1 << slices_log2 < kWarps && has_columns_for(2 << slices_log2)) ++slices_log2;
    return slices_log2;
  });
  p.num_blocks = p.outputs.num_blocks();
  const int blocks = p.num_blocks * p.num_token_groups;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(split.max_blocks > 0 ? std::min(blocks, split.max_blocks) : blocks);
  shape.threads = kThreads;
  shape.shared_bytes = split.shared_bytes;
  launch(name, kernel, shape, context.stream, p);
}

template <typename T, int kTilesN, bool kStaged>
void gemv_tensor_launch(const LinearParams& p, Context& context, Split split) {
  if (p.has_gate()) return launch_gemv("gemv_gated", gemv_tensor<T, true, 2, kTilesN, kStaged>, p, context, split);
  // Half as many rows to a block where 16 would leave multiprocessors without one. A row's slices are the same.
  if (p.all_features() <= int64_t{context.num_multiprocessors} * kTileRows)
    return launch_gemv("gemv", gemv_tensor<T, false, 1, kTilesN, kStaged>, p, context, split);
  split.rows_per_unit = 2 * kTileRows;
  launch_gemv("gemv", gemv_tensor<T, false, 2, kTilesN, kStaged>, p, context, split);
}

// 16 tokens are as many bytes as the weights of a unit that they multiply, and all blocks read them from the L2: staging is
// worth a block of a multiprocessor. So it is for a norm, which is a launch less.
SharedPlan plan_tensor(const LinearParams& p, int tiles_n, const Context& context) {
  const size_t bytes = static_cast<size_t>(kWarps * kRingBytes + 2 * sums_bytes(kTileRows, tiles_n));
  const bool prefers_x = tiles_n == 2 || p.norm.weight;
  return plan_shared(bytes, staged_bytes(p.num_tokens, p.in_features, 8 * tiles_n), prefers_x,
                     context.max_shared_bytes);
}

template <typename T, int kTilesN>
void gemv_tensor_of(const LinearParams& p, Context& context) {
  const SharedPlan plan = plan_tensor(p, kTilesN, context);
  const Split split = {.rows_per_unit = kTileRows,
                       .columns_per_warp = kPieceColumns,
                       .shared_bytes = plan.bytes,
                       .tokens = 8 * kTilesN,
                       .max_blocks = context.num_multiprocessors * plan.blocks,
                       .x_pitch = staged_pitch(p.in_features)};
  if (plan.staged) return gemv_tensor_launch<T, kTilesN, true>(p, context, split);
  gemv_tensor_launch<T, kTilesN, false>(p, context, split);
}

constexpr size_t kPlainSharedBytes = sums_bytes(1, 1);

template <typename W, int kTokens>
void gemv_plain_launch(const LinearParams& p, Context& context) {
  constexpr int64_t kColumns = int64_t{Weights<W>::kCount} * kWarpSize * 4;
  if (p.has_gate()) {
    return launch_gemv("gemv_plain_gated", gemv_plain<W, true, kTokens>, p, context, {1, kColumns, kPlainSharedBytes});
  }
  launch_gemv("gemv_plain", gemv_plain<W, false, kTokens>, p, context, {2, kColumns, kPlainSharedBytes});
}

}  // namespace

bool gemv_stages_x(const LinearParams& p, const Context& context) { return plan_tensor(p, 1, context).staged; }

void gemv(const LinearParams& p, Context& context) {
  const DType weight_dtype = p.weight().dtype;
  if (!gemv_is_aligned(p) || (p.x_dtype != DType::f32 && p.x_dtype != weight_dtype)) {
    if (p.has_gate())
      return launch_gemv("gemv_any_gated", gemv_any<true>, p, context, {1, 4 * kWarpSize, kPlainSharedBytes});
    return launch_gemv("gemv_any", gemv_any<false>, p, context, {2, 4 * kWarpSize, kPlainSharedBytes});
  }
  visit_float(weight_dtype, [&](auto w) {
    using W = decltype(w);
    if constexpr (sizeof(W) == 2) {
      if (p.x_dtype == weight_dtype)
        return p.num_tokens <= kGemvTokens ? gemv_tensor_of<W, 1>(p, context) : gemv_tensor_of<W, 2>(p, context);
    }
    if (p.num_tokens == 1) return gemv_plain_launch<W, 1>(p, context);
    gemv_plain_launch<W, kGemvTokens>(p, context);
  });
}

}  // namespace diffqkv::cuda
