// out (+)= x weight^T, and silu(x gate^T) * (x up^T) in one kernel, for many tokens; x of a 16-bit
// type, the weight of the same type or of i8 or i4. Bound by arithmetic, for few tokens by reading
// the weights.
//
// A block makes a tile of out: tiles of x and of the weight come by cp.async in several stages into swizzled shared
// memory, and each warp multiplies its part by m16n8k16 with the fragments of the next step already on their way. Gated,
// half of each warp's weight rows are gate's and half are up's, so that both sums of an element end in one lane. Blocks
// that share weight rows follow each other, so that the second and later ones find them in the L2.
//
// Integers come by cp.async as they are. A thread turns the 32 columns of a row that it has copied
// itself into x's type, each element its scale times its integer, rounded once, one step ahead of
// the products, into one of two tiles. So a block unpacks each weight once, and a step has one
// barrier, as without.
#include <algorithm>
#include <type_traits>

#include <device/async.h>
#include <device/mma.h>
#include "activation.h"
#include "linear.h"
#include "packed_weights.h"

namespace diffqkv::cuda {
namespace {

struct GemmParams {
  const void* x;
  const void* weight;
  const void* up;
  void* out;
  const float* row_scale;
  bool f32_out;  // else of x's type
  bool accumulate;
  int64_t num_tokens, in_features, out_features;
  int num_token_tiles;
  // If the weight is i8 or i4.
  const uint16_t* scales = nullptr;
  const uint16_t* up_scales = nullptr;
  int64_t row_bytes = 0;
  int row_groups = 0;       // scales of a row
  int group_log2 = 0;       // columns of a group
  bool f16_scales = false;  // else bf16
};

// A tile of kM tokens by kN weight rows, kK columns at once in each of kStages, by kWarpsM x kWarpsN warps.
template <int m, int n, int k, int stages, int warps_m, int warps_n>
struct Config {
  static constexpr int kM = m, kN = n, kK = k, kStages = stages, kWarpsM = warps_m, kWarpsN = warps_n;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpSize;
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;
  static constexpr int kTilesM = kWarpM / 16, kTilesN = kWarpN / 8;
  static constexpr int kRowChunks = kK / 8;                                // of 16 bytes
  static constexpr int kXBytes = kM * kK * 2, kWeightBytes = kN * kK * 2;  // of tiles
  static constexpr int kStageBytes = kXBytes + kWeightBytes, kSharedBytes = kStages * kStageBytes;
  static_assert(kTilesN % 2 == 0 && kK % 16 == 0 && (kRowChunks == 4 || kRowChunks % 8 == 0));
  static_assert(kSharedBytes <= 99 * 1024);
  // With packed weights stages have x only, followed by two tiles of weights and stages of
  // integers.
  static constexpr int kBlocks = kK / 32;  // of a row, each of them a thread's
  static_assert(kN * kBlocks == kThreads);
  static constexpr int packed_stage_bytes(int block_bytes) { return kThreads * block_bytes; }
  static constexpr int packed_shared_bytes(int block_bytes) {
    return kStages * (kXBytes + packed_stage_bytes(block_bytes)) + 2 * kWeightBytes;
  }
  static_assert(packed_shared_bytes(32) <= 99 * 1024);
};
using Large = Config<128, 128, 32, 4, 2, 2>;
using Small = Config<64, 64, 64, 4, 2, 2>;
using Narrow = Config<64, 32, 128, 4, 4, 1>;  // few tokens, few rows: more blocks, and more bytes in flight of each row

// The byte of a stage at which 16 bytes of a row stand: eight rows' same chunk lies in eight different places of a line.
template <typename C>
__device__ __forceinline__ int place_of(int row, int chunk) {
  const int turn = C::kRowChunks == 4 ? row / 2 & 3 : row & 7;
  return row * (C::kK * 2) + (chunk ^ turn) * 16;
}

// Fills stages with tiles of x and, below them unless kPacked, of the weights, kK columns further
// each time. What lies outside of a matrix is filled with 0. A thread copies the same chunk of
// every kPassRows-th row.
template <typename T, typename C, bool kGated, bool kAligned, bool kPacked>
struct Filler {
  static constexpr int kPassRows = C::kThreads / C::kRowChunks, kHalf = C::kWarpN / 2;
  static_assert(C::kM % kPassRows == 0 && C::kN % kPassRows == 0 && (!kGated || kHalf % kPassRows == 0));
  static constexpr int kPlaceStep = kPassRows * C::kK * 2;
  static_assert(kPassRows % 8 == 0, "the swizzle is the same in all rows of a thread");

  const T* x;
  const T* weight;
  const T* up;
  int64_t in_features, columns_left;
  int tokens_left, rows_left;  // from the thread's first row on
  int place;

  __device__ __forceinline__ Filler(const GemmParams& p, int64_t first_token, int64_t first_row) {
    const int thread = threadIdx.x, row = thread / C::kRowChunks, chunk = thread % C::kRowChunks;
    in_features = p.in_features;
    columns_left = in_features - chunk * 8;
    x = static_cast<const T*>(p.x) + (first_token + row) * in_features + chunk * 8;
    const int64_t at = (first_row + row) * in_features + chunk * 8;
    weight = static_cast<const T*>(p.weight) + at;
    if constexpr (kGated) up = static_cast<const T*>(p.up) + at;
    tokens_left = rows_in_tile(p.num_tokens - first_token, C::kM) - row;
    rows_left = rows_in_tile(p.out_features - first_row, C::kN) - row;
    place = place_of<C>(row, chunk);
  }

  __device__ __forceinline__ static int rows_in_tile(int64_t left, int tile) {
    return left < tile ? static_cast<int>(left) : tile;
  }

  __device__ __forceinline__ void fill(unsigned char* stage) {
    const int count = columns_left >= 8 ? 8 : columns_left > 0 ? static_cast<int>(columns_left) : 0;
    unsigned char* to = stage + place;
#pragma unroll
    for (int row = 0; row < C::kM; row += kPassRows, to += kPlaceStep)
      copy(to, x + row * in_features, row < tokens_left ? count : 0);
    if constexpr (!kPacked) {
#pragma unroll
      for (int n = 0; n < C::kN; n += kPassRows, to += kPlaceStep) {
        if constexpr (kGated) {
          // Of each warp's rows the first half is gate's, the second half the same rows of up.
          const int row = n / C::kWarpN * kHalf + n % kHalf;
          copy(to, (n % C::kWarpN < kHalf ? weight : up) + row * in_features, row < rows_left ? count : 0);
        } else {
          copy(to, weight + n * in_features, n < rows_left ? count : 0);
        }
      }
    }
    x += C::kK, weight += C::kK, columns_left -= C::kK;
    if constexpr (kGated) up += C::kK;
  }

  __device__ __forceinline__ static void copy(unsigned char* to, const T* from, int count) {
    if constexpr (kAligned) {
      cp_async_cg(to, from, 2 * count);
    } else {
      Words4 words = {};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j < count) words.w[j / 2] |= static_cast<uint32_t>(ld_global(from + j).bits) << 16 * (j % 2);
      }
      st_shared(reinterpret_cast<Words4*>(to), words);
    }
  }
};

constexpr int packed_block_bytes(DType dtype) { return dtype == DType::i4 ? 16 : 32; }

// A thread's share of packed weights: 32 columns, a block, of one row of each tile. Blocks outside
// of the matrix are 0.
template <typename T, DType kWeight, typename C, bool kGated>
struct Unpacker {
  static constexpr int kWords = packed_block_bytes(kWeight) / 16;  // of 16 bytes

  const unsigned char* from;
  const uint16_t* scales;
  unsigned char* ring;  // the thread's first 16 bytes of the first stage
  unsigned char* tiles;
  int column, in_features;  // of the next scale
  int bytes_left;           // 0 if there is no such row
  int group_log2;
  int row, block;
  bool f16_scales;
  uint16_t scale;  // of the next block

  __device__ __forceinline__ Unpacker(const GemmParams& p, int64_t first_row, unsigned char* tiles)
      : ring(tiles + 2 * C::kWeightBytes + threadIdx.x * 16),
        tiles(tiles),
        group_log2(p.group_log2),
        f16_scales(p.f16_scales) {
    constexpr int kHalf = C::kWarpN / 2;
    const int thread = threadIdx.x;
    row = thread / C::kBlocks;
    block = thread % C::kBlocks;
    // Rows of gate and up as Filler has them.
    const bool is_up = kGated && row % C::kWarpN >= kHalf;
    const int64_t own = first_row + (kGated ? row / C::kWarpN * kHalf + row % kHalf : row);
    const bool inside = own < p.out_features;
    from = static_cast<const unsigned char*>(is_up ? p.up : p.weight) + own * p.row_bytes + block * 16 * kWords;
    scales = (is_up ? p.up_scales : p.scales) + own * p.row_groups;
    bytes_left = inside ? static_cast<int>(p.row_bytes) - block * 16 * kWords : 0;
    in_features = inside ? static_cast<int>(p.in_features) : 0;
    column = block * 32;
    load_scale();
  }

  __device__ __forceinline__ void load_scale() {
    scale = 0;
    if (column < in_features) scale = ld_global(scales + (column >> group_log2));
    column += C::kK;
  }

  __device__ __forceinline__ void copy(int slot) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      cp_async_cg(ring + (slot * kWords + i) * (C::kThreads * 16), from + 16 * i, bytes_left > 0 ? 16 : 0);
    }
    from += C::kBlocks * 16 * kWords;
    bytes_left -= C::kBlocks * 16 * kWords;
  }

  // Unpacks the block that the thread has copied to the slot into a tile.
  __device__ __forceinline__ void unpack_to(int tile, int slot) {
    Words4 words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      words[i] = ld_shared(reinterpret_cast<const Words4*>(ring + (slot * kWords + i) * (C::kThreads * 16)));
    const float factor = scale_of(scale, f16_scales);
    const uint32_t factors = scale * 0x10001u;
    load_scale();
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      PackedWords<kWeight> packed;
      if constexpr (kWeight == DType::i4) {
        packed.w = words[0].w[chunk];
      } else {
        packed.w[0] = words[chunk / 2].w[chunk % 2 * 2];
        packed.w[1] = words[chunk / 2].w[chunk % 2 * 2 + 1];
      }
      const ElementPairs elements = unpack<T>(packed);
      Words4 scaled;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A bf16 scale may be too large or too small for f16, and an f16 scale has too many bits for bf16.
        if (__is_same(T, bf16) && !f16_scales) {
          scaled.w[i] = fma_rn_x2<T>(elements.pairs[i], factors, 0x80008000u);
        } else {
          scaled.w[i] =
              cvt_rn_x2<T>(unpack_low<T>(elements.pairs[i]) * factor, unpack_high<T>(elements.pairs[i]) * factor);
        }
      }
      st_shared(reinterpret_cast<Words4*>(tiles + tile * C::kWeightBytes + place_of<C>(row, 4 * block + chunk)),
                scaled);
    }
  }
};

struct NoUnpacker {
  __device__ __forceinline__ NoUnpacker(const GemmParams&, int64_t, unsigned char*) {}
};

template <typename C>
struct Fragments {
  uint32_t a[C::kTilesM][4], b[C::kTilesN][2];

  // Reads columns 16 step to 16 step + 15 of a tile of x and of one of weights, which begins at row
  // kFirstRow.
  template <int kFirstRow>
  __device__ __forceinline__ void read(const unsigned char* x, const unsigned char* weights, int warp_m, int warp_n,
                                       int step) {
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < C::kTilesM; ++i) {
      const int row = warp_m * C::kWarpM + i * 16 + lane % 16;
      ldmatrix_x4(a[i], x + place_of<C>(row, 2 * step + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < C::kTilesN; j += 2) {
      const int row = kFirstRow + warp_n * C::kWarpN + j * 8 + lane / 16 * 8 + lane % 8;
      uint32_t two[4];
      ldmatrix_x4(two, weights + place_of<C>(row, 2 * step + lane / 8 % 2));
      b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
    }
  }
};

// Lane t of a quad holds the t-th word of kTiles rows of 4 words; it gets kTiles words that follow each other: of 4 rows
// the t-th whole, of 2 rows half a row.
template <int kTiles>
__device__ __forceinline__ void gather_words(uint32_t (&w)[kTiles]) {
  const int t = lane_index() % 4;
  if constexpr (kTiles == 4) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & bit) continue;
        const uint32_t got = __shfl_xor_sync(kAllLanes, t & bit ? w[i] : w[i | bit], bit);
        if (t & bit) {
          w[i] = got;
        } else {
          w[i | bit] = got;
        }
      }
    }
  } else {
    static_assert(kTiles == 2);
    const uint32_t mine[2] = {w[0], w[1]};
    const int from = lane_index() / 4 * 4 + t % 2 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t first = __shfl_sync(kAllLanes, mine[0], from + i),
                     second = __shfl_sync(kAllLanes, mine[1], from + i);
      w[i] = t < 2 ? first : second;
    }
  }
}

template <int kWords>
struct alignas(4 * kWords) Words {
  uint32_t w[kWords];
};

// Stores one row's part of a warp's tile: kTiles times 8 columns from `column` on, of which this lane holds columns 2t and
// 2t + 1 of each. All lanes take part, those whose row lies outside too.
template <typename Out, bool kAligned, int kTiles>
__device__ __forceinline__ void store_row(const GemmParams& p, int64_t token, int64_t column,
                                          const float (&values)[kTiles][2]) {
  const int t = lane_index() % 4;
  const bool inside = token < p.num_tokens;
  Out* out = static_cast<Out*>(p.out) + token * p.out_features;
  if constexpr (!kAligned) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int64_t at = column + 8 * i + 2 * t + j;
        if (!inside || at >= p.out_features) continue;
        float value = values[i][j];
        if constexpr (sizeof(Out) == 4) value += p.accumulate ? ld_global(out + at) : 0.0f;
        st_global(out + at, from_float<Out>(value));
      }
    }
  } else if constexpr (sizeof(Out) == 4) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int64_t at = column + 8 * i + 2 * t;
      if (!inside || at >= p.out_features) continue;
      Words2* to = reinterpret_cast<Words2*>(out + at);
      Words2 before = {};
      if (p.accumulate) before = ld_global(to);
      st_global(to, Words2{{bit_cast<uint32_t>(values[i][0] + bit_cast<float>(before.w[0])),
                            bit_cast<uint32_t>(values[i][1] + bit_cast<float>(before.w[1]))}});
    }
  } else {
    constexpr int kGroup = kTiles < 4 ? kTiles : 4;
#pragma unroll
    for (int i = 0; i < kTiles; i += kGroup) {
      Words<kGroup> words;
#pragma unroll
      for (int j = 0; j < kGroup; ++j) words.w[j] = cvt_rn_x2<Out>(values[i + j][0], values[i + j][1]);
      gather_words(words.w);
      const int64_t at = column + 8 * i + 2 * kGroup * t;
      if (inside && at < p.out_features) st_global(reinterpret_cast<Words<kGroup>*>(out + at), words);
    }
  }
}

// kWeight: i8, i4 or the type of x.
template <typename T, DType kWeight, typename C, bool kGated, bool kAligned>
__global__ void __launch_bounds__(C::kThreads, 2) gemm_kernel(GemmParams p) {
  constexpr bool kPacked = kWeight == DType::i8 || kWeight == DType::i4;
  constexpr int kStageBytes = kPacked ? C::kXBytes : C::kStageBytes;
  constexpr int kOutTiles = kGated ? C::kTilesN / 2 : C::kTilesN;
  const int warp = warp_index(), warp_m = warp / C::kWarpsN, warp_n = warp % C::kWarpsN;
  const int block = blockIdx.x;
  const int64_t first_token = static_cast<int64_t>(block % p.num_token_tiles) * C::kM;
  const int64_t first_row = static_cast<int64_t>(block / p.num_token_tiles) * (kGated ? C::kN / 2 : C::kN);
  unsigned char* shared = dynamic_shared();
  unsigned char* tiles = shared + C::kStages * kStageBytes;  // packed weights, as T
  Filler<T, C, kGated, kAligned || kPacked, kPacked> filler(p, first_token, first_row);
  std::conditional_t<kPacked, Unpacker<T, kPacked ? kWeight : DType::i8, C, kGated>, NoUnpacker> unpacker(p, first_row,
                                                                                                          tiles);

  // A group of copies has a step's x and weights; if these are packed, those of the next step.
  const int num_steps = static_cast<int>((p.in_features + C::kK - 1) / C::kK);
  if constexpr (kPacked) {
    unpacker.copy(0);
    cp_async_commit_group();
  }
#pragma unroll
  for (int step = 0; step < C::kStages - 1; ++step) {
    if (step < num_steps) filler.fill(shared + step * kStageBytes);
    if constexpr (kPacked) unpacker.copy(step + 1);
    cp_async_commit_group();
  }
  if constexpr (kPacked) {
    cp_async_wait_group<C::kStages - 1>();
    unpacker.unpack_to(0, 0);
  }

  float sums[C::kTilesM][C::kTilesN][4] = {};
  int slot = 0, slot_to_fill = C::kStages - 1;
  for (int step = 0; step < num_steps; ++step) {
    cp_async_wait_group<C::kStages - 2>();
    __syncthreads();  // this stage is there for all, and all are done with the one before it, which is the next to be filled
    const unsigned char* stage = shared + slot * kStageBytes;
    const unsigned char* weights = kPacked ? tiles + step % 2 * C::kWeightBytes : stage;
    Fragments<C> fragments[2];
    fragments[0].template read<kPacked ? 0 : C::kM>(stage, weights, warp_m, warp_n, 0);
    if (step + C::kStages - 1 < num_steps) filler.fill(shared + slot_to_fill * kStageBytes);
    if constexpr (kPacked) unpacker.copy(slot);  // whose integers have been unpacked in the step before
    cp_async_commit_group();
    if constexpr (kPacked) unpacker.unpack_to((step + 1) % 2, slot + 1 == C::kStages ? 0 : slot + 1);
#pragma unroll
    for (int k = 0; k < C::kK / 16; ++k) {
      if (k + 1 < C::kK / 16)
        fragments[(k + 1) % 2].template read<kPacked ? 0 : C::kM>(stage, weights, warp_m, warp_n, k + 1);
#pragma unroll
      for (int i = 0; i < C::kTilesM; ++i) {
#pragma unroll
        for (int j = 0; j < C::kTilesN; ++j) mma_m16n8k16<T>(sums[i][j], fragments[k % 2].a[i], fragments[k % 2].b[j]);
      }
    }
    slot = slot + 1 == C::kStages ? 0 : slot + 1;
    slot_to_fill = slot_to_fill + 1 == C::kStages ? 0 : slot_to_fill + 1;
  }

  const int64_t column = first_row + warp_n * kOutTiles * 8;
#pragma unroll
  for (int i = 0; i < C::kTilesM; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first_token + warp_m * C::kWarpM + i * 16 + half * 8 + lane_index() / 4;
      const float scale = p.row_scale && token < p.num_tokens ? ld_global(p.row_scale + token) : 1.0f;
      float values[kOutTiles][2];
#pragma unroll
      for (int j = 0; j < kOutTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float sum = sums[i][j][2 * half + e];
          if constexpr (kGated) {
            values[j][e] = silu(sum) * sums[i][j + kOutTiles][2 * half + e];
          } else {
            values[j][e] = sum * scale;
          }
        }
      }
      if (p.f32_out) {
        store_row<float, kAligned>(p, token, column, values);
      } else {
        store_row<T, kAligned>(p, token, column, values);
      }
    }
  }
}

// ---- Launchers.

template <typename C>
int64_t num_blocks(const LinearParams& p, const LinearOutput& output) {
  const int rows = output.gate.data ? C::kN / 2 : C::kN;
  return (p.num_tokens + C::kM - 1) / C::kM * ((output.out_features + rows - 1) / rows);
}

template <typename T, DType kWeight, typename C, bool kAligned>
void launch_gemm(const LinearParams& linear, const LinearOutput& output, Context& context) {
  constexpr bool kPacked = kWeight == DType::i8 || kWeight == DType::i4;
  const bool gated = output.gate.data != nullptr;
  const WeightView weight = gated ? output.gate : output.weight;
  const WeightView up = gated ? output.weight : WeightView{};
  GemmParams p = {linear.x,
                  weight.data,
                  up.data,
                  output.out,
                  linear.row_scale,
                  output.dtype == DType::f32,
                  linear.accumulate,
                  linear.num_tokens,
                  linear.in_features,
                  output.out_features,
                  static_cast<int>((linear.num_tokens + C::kM - 1) / C::kM)};
  if constexpr (kPacked) {
    if (linear.x_stride) p.in_features = linear.x_stride;
    p.scales = static_cast<const uint16_t*>(weight.scales);
    p.up_scales = static_cast<const uint16_t*>(up.scales);
    p.f16_scales = weight.scale_dtype == DType::f16;
    p.row_bytes = weight_row_bytes(kWeight, linear.in_features);
    p.row_groups = static_cast<int>(weight_row_groups(linear.in_features, weight.group_size));
    p.group_log2 = weight.group_size == 32 ? 5 : weight.group_size == 64 ? 6 : 7;
  }
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(num_blocks<C>(linear, output));
  shape.threads = C::kThreads;
  shape.shared_bytes = kPacked ? C::packed_shared_bytes(packed_block_bytes(kWeight)) : C::kSharedBytes;
  if (gated) {
    return launch(kPacked ? "gemm_packed_gated" : "gemm_gated", gemm_kernel<T, kWeight, C, true, kAligned>, shape,
                  context.stream, p);
  }
  launch(kPacked ? "gemm_packed" : "gemm", gemm_kernel<T, kWeight, C, false, kAligned>, shape, context.stream, p);
}

template <typename T, DType kWeight>
void gemm_of(const LinearParams& p, const LinearOutput& output, Context& context) {
  const bool operands_aligned =
      dtype_is_packed(kWeight) || (rows_aligned(p.x, p.in_features, p.x_dtype) &&
                                   rows_aligned(output.weight.data, p.in_features, output.weight.dtype) &&
                                   rows_aligned(output.gate.data, p.in_features, output.weight.dtype));
  const bool aligned =
      operands_aligned && rows_aligned(output.out, output.out_features, output.dtype) && output.out_features % 8 == 0;
  if (!aligned) return launch_gemm<T, kWeight, Small, false>(p, output, context);
  // The largest tile that leaves few multiprocessors idle.
  const int64_t wanted = context.num_multiprocessors - context.num_multiprocessors / 4;
  if (num_blocks<Large>(p, output) >= wanted) return launch_gemm<T, kWeight, Large, true>(p, output, context);
  if (num_blocks<Small>(p, output) >= wanted) return launch_gemm<T, kWeight, Small, true>(p, output, context);
  launch_gemm<T, kWeight, Narrow, true>(p, output, context);
}

template <typename T, DType kWeight>
void gemm_of_weights(const LinearParams& p, const LinearOutput& output, Context& context) {
  if (output.weight.dtype == DType::i8) return gemm_of<T, DType::i8>(p, output, context);
  if (output.weight.dtype == DType::i4) return gemm_of<T, DType::i4>(p, output, context);
  gemm_of<T, kWeight>(p, output, context);
}

}  // namespace

void gemm(const LinearParams& p, const LinearOutput& output, Context& context) {
  if (p.x_dtype == DType::bf16) return gemm_of_weights<bf16, DType::bf16>(p, output, context);
  gemm_of_weights<f16, DType::f16>(p, output, context);
}

}  // namespace diffqkv::cuda
