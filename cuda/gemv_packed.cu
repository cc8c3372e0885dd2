// out (+)= x weight^T, and activation(x gate^T) * (x up^T) in one pass over both weights, for few
// tokens and weights of i8 or i4 by group. Bound by reading each weight and scale once from memory;
// up to 16 tokens share one reading.
//
// out[token][row] = sum over groups of scale[row][group] * (sum over the group of x[token][i] *
// integer[row][i]). Integers and x are exact operands of m16n8k16, and the inner sums are f32, so
// no weight is rounded. x of f32 is the exact sum of three bf16, each a tile of its own. So a token
// has the same bits whatever the other tokens are, and how many.
//
// A unit of work is 16 or 32 weight rows, the rows of one or two A tiles; gated, 16 rows of gate
// and the same of up. It belongs to one warp or to several that split its columns, as many as give
// every multiprocessor a block, and add up in shared memory. A warp copies its rows by cp.async
// into a ring of its own of 8 KiB, kStages pieces of 64 bytes a row. A stage is filled again as
// soon as it is multiplied, so a warp has 8 KiB under way when it waits: 64 KiB for a block. A
// multiprocessor of an H200 needs about 36 KiB. Nothing waits for other warps.
//
// An mma sums over one block of 32 columns in two steps, for which lane t of a quad needs 8 columns
// that follow each other, of x 16 bytes and of the weight a word or two. They come from the ring,
// whose chunks are permuted so that no bank conflicts, because 16 bytes straight from memory would
// be of another group in each lane. Loads of scales run one piece ahead, in registers.
#include <algorithm>

#include <device/async.h>
#include <device/mma.h>
#include "activation.h"
#include "linear.h"
#include "packed_weights.h"
#include "stage_x.h"

namespace diffqkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kPieceBytes = 64;    // of a row, in a stage
constexpr int kBlockColumns = 32;  // whose sum is multiplied by a scale
constexpr int kNormBytes = kMaxNormedTokens * kWarps * sizeof(double);

struct PackedGemvParams {
  const void* x;
  RowOutputs outputs;
  bool accumulate;
  int64_t num_tokens, in_features;
  int64_t x_stride;       // elements, a multiple of 8; what a row has beyond in_features is 0
  int64_t row_bytes;      // of a weight
  int64_t row_groups;     // scales of a row
  int group_log2;         // columns of a group
  bool f16_scales;        // else bf16
  int num_token_groups;   // of 8 kTilesN
  Activation activation;  // if gated
  int x_pitch;            // of x in shared memory
  InputNorm norm;         // of x, which is f32 then, if it is staged
};

// The shapes of a kernel. kTilesM: A tiles of 16 rows; kTilesN: B tiles of 8 tokens.
template <DType kType, int tiles_m, int tiles_n>
struct Config {
  static constexpr int kTilesM = tiles_m, kTilesN = tiles_n;
  static constexpr int kStages = 8 / kTilesM;
  static constexpr int kRows = 16 * kTilesM;
  static constexpr int kTokens = 8 * kTilesN;
  static constexpr int kBlocks = kType == DType::i4 ? 4 : 2;  // of kBlockColumns, in a piece
  static constexpr int kColumns = kBlocks * kBlockColumns;    // of a piece
  static constexpr int kStageBytes = kRows * kPieceBytes;
  static constexpr int kCopies = kStageBytes / 16 / kWarpSize;         // of a lane, in a stage
  static constexpr int kScaleLoads = kRows * kBlocks / kWarpSize;      // of a lane, in a piece
  static constexpr int kScaleBytes = kRows * kBlocks * sizeof(float);  // of a piece
  static constexpr int kWarpBytes = kStages * kStageBytes + kScaleBytes;
  static constexpr int kSharedBytes = kWarps * kWarpBytes;
  static_assert(kRows * kTokens * sizeof(float) <= kStages * kStageBytes, "the ring has room for a warp's sums");
  static_assert(kSharedBytes <= 99 * 1024);
};

// The byte of a stage at which 16 bytes of a row are. Chunks are turned such that neither words of
// eight rows (i4) nor 32 bytes of four rows (i8) have bank conflicts.
__device__ __forceinline__ int chunk_place(int row, int chunk) {
  const int turn = (row >> 1 & 1) * 2 + (row >> 2 & 1);
  return row * kPieceBytes + (chunk ^ turn) * 16;
}

// The same place in the next stage of the ring.
template <typename C>
__device__ __forceinline__ int next_stage(int place) {
  const int next = place + C::kStageBytes;
  return next < C::kStages * C::kStageBytes ? next : next - C::kStages * C::kStageBytes;
}

// Copies a warp's pieces into its ring. A lane copies one of the four chunks of every eighth row.
// Bytes outside of the matrix become 0.
template <typename C, bool kGated>
struct RingFiller {
  const unsigned char* from[kGated ? 2 : 1];
  int64_t row_step;  // bytes of eight rows
  int bytes_left;
  int rows_left;  // from the lane's first row on
  int place;      // of the next copy in the ring

  __device__ __forceinline__ RingFiller(const PackedGemvParams& p, const RowOutput& output, int64_t first_row,
                                        int slice) {
    const int row = lane_index() / 4, chunk = lane_index() % 4;
    const int column = slice * kPieceBytes + chunk * 16;
#pragma unroll
    for (int half = 0; half < (kGated ? 2 : 1); ++half)
      from[half] = output.weights[half] + (first_row + row) * p.row_bytes + column;
    row_step = 8 * p.row_bytes;
    bytes_left = static_cast<int>(p.row_bytes) - column;
    const int64_t rows = output.out_features - first_row;
    rows_left = static_cast<int>(rows < C::kRows ? rows : C::kRows) - row;
    place = chunk_place(row, chunk);
  }

  // Rows 8 apart have the same turn.
  __device__ __forceinline__ void fill(unsigned char* ring, int step_bytes) {
#pragma unroll
    for (int i = 0; i < C::kCopies; ++i) {
      const int half = kGated ? i / 2 : 0, row = 8 * (kGated ? i % 2 : i);
      cp_async_cg(ring + place + 8 * i * kPieceBytes, from[half] + row / 8 * row_step,
                  bytes_left > 0 && row < rows_left ? 16 : 0);
    }
#pragma unroll
    for (int half = 0; half < (kGated ? 2 : 1); ++half) from[half] += step_bytes;
    bytes_left -= step_bytes;
    place = next_stage<C>(place);
  }
};

// Loads the scales of a piece: a lane those of one block of kBlockColumns of kScaleLoads rows.
template <typename C, bool kGated>
struct ScaleLoader {
  static constexpr int kStep = kWarpSize / C::kBlocks;  // rows
  const uint16_t* from[kGated ? 2 : 1];
  int column;
  int row_step;  // scales of kStep rows
  int rows_left;

  __device__ __forceinline__ ScaleLoader(const PackedGemvParams& p, const RowOutput& output, int64_t first_row,
                                         int slice) {
    const int row = lane_index() / C::kBlocks;
    row_step = kStep * static_cast<int>(p.row_groups);
    column = slice * C::kColumns + lane_index() % C::kBlocks * kBlockColumns;
#pragma unroll
    for (int half = 0; half < (kGated ? 2 : 1); ++half)
      from[half] = output.scales[half] + (first_row + row) * p.row_groups + (column >> p.group_log2);
    const int64_t rows = output.out_features - first_row;
    rows_left = static_cast<int>(rows < C::kRows ? rows : C::kRows) - row;
  }

  __device__ __forceinline__ void load(const PackedGemvParams& p, uint16_t (&scales)[C::kScaleLoads], int step) {
    const bool inside = column < static_cast<int>(p.in_features);
#pragma unroll
    for (int i = 0; i < C::kScaleLoads; ++i) {
      const int half = kGated ? kStep * i / 16 : 0, row = kStep * i - 16 * half;
      scales[i] = 0;
      if (inside && row < rows_left) scales[i] = ld_global(from[half] + row / kStep * row_step);
    }
    const int groups = ((column + step) >> p.group_log2) - (column >> p.group_log2);
#pragma unroll
    for (int half = 0; half < (kGated ? 2 : 1); ++half) from[half] += groups;
    column += step;
  }

  // As f32 [row][block].
  __device__ __forceinline__ static void store(const PackedGemvParams& p, float* shared,
                                               const uint16_t (&scales)[C::kScaleLoads]) {
    float values[C::kScaleLoads];
    if (p.f16_scales) {
#pragma unroll
      for (int i = 0; i < C::kScaleLoads; ++i) values[i] = to_float(f16{scales[i]});
    } else {
#pragma unroll
      for (int i = 0; i < C::kScaleLoads; ++i) values[i] = to_float(bf16{scales[i]});
    }
#pragma unroll
    for (int i = 0; i < C::kScaleLoads; ++i) st_shared(shared + kWarpSize * i + lane_index(), values[i]);
  }
};

// Eight elements of x of one token.
template <typename X>
struct EightElements {
  Words4 chunk[sizeof(X) * 8 / 16];
};

template <typename X>
__device__ __forceinline__ EightElements<X> load_x(const X* x, bool inside) {
  EightElements<X> elements = {};
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(X)) / 2; ++i) {
    if (inside) elements.chunk[i] = ld_global(reinterpret_cast<const Words4*>(x) + i);
  }
  return elements;
}

// x as B fragments: w[2 k] and w[2 k + 1] are those of the block's mma k. x is the sum of kParts of
// them.
template <typename X>
struct Fragments {
  using T = X;
  static constexpr int kParts = 1;
  uint32_t w[1][4];

  __device__ __forceinline__ explicit Fragments(const EightElements<X>& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) w[0][i] = x.chunk[0].w[i];
  }
};
// 24 bits of mantissa are three times 8, each cut off, so that nothing overflows. The second part
// of an infinity is NaN.
template <>
struct Fragments<float> {
  using T = bf16;
  static constexpr int kParts = 3;
  uint32_t w[3][4];

  __device__ __forceinline__ explicit Fragments(const EightElements<float>& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t low = x.chunk[i / 2].w[i % 2 * 2], high = x.chunk[i / 2].w[i % 2 * 2 + 1];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        w[part][i] = __byte_perm(low, high, 0x7632u);
        low = bit_cast<uint32_t>(bit_cast<float>(low) - bit_cast<float>(low & 0xffff0000u));
        high = bit_cast<uint32_t>(bit_cast<float>(high) - bit_cast<float>(high & 0xffff0000u));
      }
    }
  }
};

// Where a warp leaves the sum of a row and a token. Pairs of tokens stay together; neither writing
// fragments nor reading many rows of a token has bank conflicts.
template <typename C>
__device__ __forceinline__ int sum_index(int row, int token) {
  return (token / 8 * C::kRows + row) * 8 + (token % 8 ^ row / 4 % 8);
}

// Blocks of a multiprocessor, by their registers.
template <typename X, typename C>
constexpr int kBlocksPerMultiprocessor = sizeof(X) == 4 && C::kTilesN == 2 ? 1 : 2;

// kStaged: x is in shared memory, and there is one group of tokens.
template <typename X, DType kType, bool kGated, typename C, bool kStaged>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor<X, C>) gemv_packed(PackedGemvParams p) {
  static_assert(!kGated || C::kTilesM == 2);
  using T = typename Fragments<X>::T;
  constexpr int kUnitRows = kGated ? 16 : C::kRows;  // of out
  const int warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
  const int64_t first_token = static_cast<int64_t>(static_cast<int>(blockIdx.x) % p.num_token_groups) * C::kTokens;
  int block = static_cast<int>(blockIdx.x) / p.num_token_groups;
  const RowOutput output = p.outputs.find(block);
  const int64_t first_unit = static_cast<int64_t>(block) * (kWarps >> output.slices_log2);
  const int slice = warp & ((1 << output.slices_log2) - 1);
  const int64_t first_row = (first_unit + (warp >> output.slices_log2)) * kUnitRows;
  unsigned char* ring = dynamic_shared() + warp * C::kWarpBytes;
  float* piece_scales = reinterpret_cast<float*>(ring + C::kStages * C::kStageBytes);

  const int all_pieces = static_cast<int>((p.row_bytes + kPieceBytes - 1) / kPieceBytes);
  const int num_pieces =
      first_row < output.out_features && slice < all_pieces ? ((all_pieces - slice - 1) >> output.slices_log2) + 1 : 0;
  const int step_bytes = kPieceBytes << output.slices_log2;
  const int step_columns = C::kColumns << output.slices_log2;
  RingFiller<C, kGated> filler(p, output, first_row, slice);
  ScaleLoader<C, kGated> loader(p, output, first_row, slice);
#pragma unroll
  for (int piece = 0; piece < C::kStages; ++piece) {
    if (piece < num_pieces) filler.fill(ring, step_bytes);
    cp_async_commit_group();
  }
  wait_for_previous_kernel();  // constant weights need not wait
  start_next_kernel();
  uint16_t scales[C::kScaleLoads] = {};
  if (num_pieces > 0) loader.load(p, scales, step_columns);

  unsigned char* const staged_x = dynamic_shared() + C::kSharedBytes + kNormBytes;
  if constexpr (kStaged) {
    const StagedRows staged = {staged_x, p.x_pitch, reinterpret_cast<double*>(dynamic_shared() + C::kSharedBytes)};
    if (C::kTilesN == 1 && p.norm.weight) {
      stage_normed_rows<X, kThreads>(p.x, p.norm, static_cast<int>(p.num_tokens), static_cast<int>(p.in_features),
                                     staged);
    } else {
      stage_rows<kThreads>(p.x, static_cast<int>(p.num_tokens), static_cast<int>(p.x_stride), staged);
    }
  }

  // The lane's columns of the first block, of tokens g and g + 8.
  const int64_t tokens_left = p.num_tokens - first_token - g;
  int x_left = static_cast<int>(p.x_stride) - slice * C::kColumns - 8 * t;
  const X* x;
  int64_t tile_stride = 8 * p.x_stride;
  if constexpr (kStaged) {
    // A row of the mma without a token multiplies another token's x.
    x = reinterpret_cast<const X*>(staged_x + (tokens_left > 0 ? g : 0) * p.x_pitch);
    tile_stride = tokens_left > 8 ? 4 * p.x_pitch : 0;
  } else {
    x = static_cast<const X*>(p.x) + (first_token + g) * p.x_stride;
  }
  x += slice * C::kColumns + 8 * t;
  const auto load = [&](int tile, int b) {
    if constexpr (kStaged) {
      return EightElements<X>{ld_shared(reinterpret_cast<const Words4*>(x + tile * tile_stride + kBlockColumns * b))};
    } else {
      return load_x(x + tile * tile_stride + kBlockColumns * b, 8 * tile < tokens_left && kBlockColumns * b < x_left);
    }
  };
  float sums[C::kTilesM][C::kTilesN][4] = {};
  // Where the lane's elements of a block are, in row g: its number is in bits that an exclusive or
  // turns. Rows 8 apart have the same turn.
  int place = kType == DType::i4 ? chunk_place(g, 0) + 4 * t : chunk_place(g, t / 2) + 8 * (t % 2);
  constexpr int kBlockStep = kType == DType::i4 ? 16 : 32;
  for (int piece = 0; piece < num_pieces; ++piece) {
    EightElements<X> elements[2][C::kTilesN];  // of two blocks
    const auto load_blocks = [&](int first_block) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
#pragma unroll
        for (int tile = 0; tile < C::kTilesN; ++tile) elements[b][tile] = load(tile, first_block + b);
      }
    };
    load_blocks(0);
    loader.store(p, piece_scales, scales);
    cp_async_wait_group<C::kStages - 1>();
    __syncwarp();  // the copies and scales of all lanes are there
    if (piece + 1 < num_pieces) loader.load(p, scales, step_columns);

      // Two blocks at a time. For many tokens the loop is not unrolled: loads that were all moved
      // to its start would need more registers than there are.
#pragma unroll(C::kTilesN == 1 ? 2 : 1)
    for (int first_block = 0; first_block < C::kBlocks; first_block += 2) {
      if (first_block > 0) load_blocks(first_block);
      Elements<float, 2> row_scales[C::kTilesM][2];
#pragma unroll
      for (int m = 0; m < C::kTilesM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* from = piece_scales + (16 * m + 8 * half + g) * C::kBlocks + first_block;
          row_scales[m][half] = ld_shared(reinterpret_cast<const Elements<float, 2>*>(from));
        }
      }
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        ElementPairs a[C::kTilesM][2];
#pragma unroll
        for (int m = 0; m < C::kTilesM; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned char* from =
                ring + (place ^ (first_block + b) * kBlockStep) + (16 * m + 8 * half) * kPieceBytes;
            a[m][half] = unpack<T>(ld_shared(reinterpret_cast<const PackedWords<kType>*>(from)));
          }
        }
#pragma unroll
        for (int tile = 0; tile < C::kTilesN; ++tile) {
          const Fragments<X> tokens(elements[b][tile]);
#pragma unroll
          for (int m = 0; m < C::kTilesM; ++m) {
            const uint32_t(&low)[4] = a[m][0].pairs;
            const uint32_t(&high)[4] = a[m][1].pairs;
            float sum[4];
#pragma unroll
            for (int part = Fragments<X>::kParts - 1; part >= 0; --part) {  // the smallest first
              const uint32_t(&w)[4] = tokens.w[part];
              const uint32_t first[4] = {low[0], high[0], low[1], high[1]};
              if (part == Fragments<X>::kParts - 1) {
                mma_m16n8k16_zero<T>(sum, first, {w[0], w[1]});
              } else {
                mma_m16n8k16<T>(sum, first, {w[0], w[1]});
              }
              mma_m16n8k16<T>(sum, {low[2], high[2], low[3], high[3]}, {w[2], w[3]});
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
              sums[m][tile][i] = __fmaf_rn(sum[i], row_scales[m][i / 2].v[b], sums[m][tile][i]);
          }
        }
      }
    }
    __syncwarp();  // all lanes are done with the piece
    if (piece + C::kStages < num_pieces) filler.fill(ring, step_bytes);
    cp_async_commit_group();
    x += step_columns;
    x_left -= step_columns;
    place = next_stage<C>(place);
  }

  // The warps' sums, each in the ring of its warp.
  cp_async_wait_group<0>();
  __syncwarp();
  float* own = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int m = 0; m < C::kTilesM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * m + 8 * half + g;
      const bool swapped = row / 4 % 2 == 1;
#pragma unroll
      for (int tile = 0; tile < C::kTilesN; ++tile) {
        const uint32_t first = bit_cast<uint32_t>(sums[m][tile][2 * half]),
                       second = bit_cast<uint32_t>(sums[m][tile][2 * half + 1]);
        const int at = sum_index<C>(row, 8 * tile + 2 * t) & ~1;
        st_shared(reinterpret_cast<Words2*>(own + at), Words2{{swapped ? second : first, swapped ? first : second}});
      }
    }
  }
  __syncthreads();
  const int num_tokens =
      p.num_tokens - first_token < C::kTokens ? static_cast<int>(p.num_tokens - first_token) : C::kTokens;
  const int count = kUnitRows * num_tokens * (kWarps >> output.slices_log2);
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int unit = i / kUnitRows / num_tokens, token = i / kUnitRows % num_tokens;
    const int64_t row = (first_unit + unit) * kUnitRows + i % kUnitRows;
    if (row >= output.out_features) continue;
    const unsigned char* first = dynamic_shared() + (unit << output.slices_log2) * C::kWarpBytes;
    const auto sum = [&](int local_row) {
      float total = 0;
      for (int s = 0; s < 1 << output.slices_log2; ++s) {
        total += ld_shared(reinterpret_cast<const float*>(first + s * C::kWarpBytes) + sum_index<C>(local_row, token));
      }
      return total;
    };
    float value[1] = {sum(i % kUnitRows)};
    const int64_t index = (first_token + token) * output.out_stride + row;
    if constexpr (kGated) {
      const float second = sum(16 + i % kUnitRows);
      if (output.has_gate) {
        activate(p.activation, value);
        value[0] *= second;
      } else {
        put(output.out, output.dtype, index + output.out_features, second, false);
      }
    }
    put(output.out, output.dtype, index, value[0], p.accumulate);
  }
}

// x is read by each warp: with more than a few tokens, it is as many bytes as the weights. Staging is worth a block of a
// multiprocessor then. So it is for a norm, which is a launch less.
template <typename C>
SharedPlan plan_packed(const LinearParams& p, const Context& context) {
  const bool prefers_x = p.num_tokens > 4 || p.norm.weight;
  if (dtype_size(p.x_dtype) != 2) return {1, false, C::kSharedBytes};
  const size_t x_bytes = kNormBytes + staged_bytes(p.num_tokens, p.in_features, C::kTokens);
  return plan_shared(C::kSharedBytes, x_bytes, prefers_x, context.max_shared_bytes);
}

template <typename X, DType kType, bool kGated, typename C>
void launch_gemv(const LinearParams& linear, Context& context) {
  int group_log2 = 5;
  while (1 << group_log2 < linear.weight().group_size) ++group_log2;
  PackedGemvParams p = {linear.x,
                        {},
                        linear.accumulate,
                        linear.num_tokens,
                        linear.in_features,
                        linear.x_stride ? linear.x_stride : linear.in_features,
                        weight_row_bytes(kType, linear.in_features),
                        weight_row_groups(linear.in_features, linear.weight().group_size),
                        group_log2,
                        linear.weight().scale_dtype == DType::f16,
                        static_cast<int>((linear.num_tokens + C::kTokens - 1) / C::kTokens),
                        linear.activation,
                        staged_pitch(linear.in_features),
                        linear.norm};
  constexpr int kUnitRows = kGated ? 16 : C::kRows;
  // As few warps to a unit as give each multiprocessor a block, because the units of a block share
  // x. The choice must not depend on the number of tokens.
  const int64_t pieces = (weight_row_bytes(kType, linear.in_features) + kPieceBytes - 1) / kPieceBytes;
  p.outputs = row_outputs(linear, kUnitRows, kWarps, [&](int64_t units) {
    int slices_log2 = 0;
    while (1 << slices_log2 < kWarps && 1 << slices_log2 < pieces &&
           units << slices_log2 < int64_t{context.num_multiprocessors} * kWarps) {
      ++slices_log2;
    }
    return slices_log2;
  });
  LaunchShape shape;
  shape.waits = linear.weights_are_constant();
  shape.grid[0] = static_cast<unsigned>(p.outputs.num_blocks() * p.num_token_groups);
  shape.threads = kThreads;
  const SharedPlan plan = plan_packed<C>(linear, context);
  shape.shared_bytes = plan.bytes;
  const char* const name = kGated ? "gemv_packed_gated" : "gemv_packed";
  if constexpr (sizeof(X) == 2) {
    if (plan.staged) return launch(name, gemv_packed<X, kType, kGated, C, true>, shape, context.stream, p);
  }
  launch(name, gemv_packed<X, kType, kGated, C, false>, shape, context.stream, p);
}

template <typename X, DType kType, int kTilesN>
void gemv_of_tokens(const LinearParams& p, Context& context) {
  if (p.has_gate()) return launch_gemv<X, kType, true, Config<kType, 2, kTilesN>>(p, context);
  // Half as many rows to a unit if 32 would leave multiprocessors without one.
  if (p.all_features() <= int64_t{context.num_multiprocessors} * 16) {
    return launch_gemv<X, kType, false, Config<kType, 1, kTilesN>>(p, context);
  }
  launch_gemv<X, kType, false, Config<kType, 2, kTilesN>>(p, context);
}

template <DType kType>
void gemv_of(const LinearParams& p, Context& context) {
  visit_float(p.x_dtype, [&](auto x) {
    using X = decltype(x);
    if (p.num_tokens <= 8) return gemv_of_tokens<X, kType, 1>(p, context);
    gemv_of_tokens<X, kType, 2>(p, context);
  });
}

}  // namespace

bool gemv_packed_stages_x(const LinearParams& p, const Context& context) {
  // The largest of both configurations.
  if (p.weight().dtype == DType::i4) return plan_packed<Config<DType::i4, 2, 1>>(p, context).staged;
  return plan_packed<Config<DType::i8, 2, 1>>(p, context).staged;
}

void gemv_packed(const LinearParams& p, Context& context) {
  if (p.weight().dtype == DType::i4) return gemv_of<DType::i4>(p, context);
  gemv_of<DType::i8>(p, context);
}

}  // namespace diffqkv::cuda
