// One kernel for each function of the device layer, for both compilers: a warp a block, kIn words in and kOut words out
// for each lane. What they give is compared: the emulation with the definition, the GPU with the emulation.
#pragma once

#include <vector>

#include <device/async.h>
#include <device/bulk.h>
#include <device/memory.h>
#include <device/mma.h>
#include "bytes.h"
#include "packed_weights.h"
#include "softmax.h"

namespace diffqkv::cuda {

constexpr int kIn = 10, kOut = 4;

// What a wrapper is given: any bits; pairs of 16-bit numbers (and f32 in words 6 to 9); f32 numbers.
enum class Input { bits, bf16_pairs, f16_pairs, floats };

struct Wrapper {
  const char* name;
  void (*kernel)(const uint32_t*, uint32_t*);
  Input input;
  bool exact;                // whether the ISA defines every bit
  bool approximate = false;  // a function that is an approximation; else what is not exact is a sum in any order
};

struct LaneWords {
  uint32_t in[kIn], out[kOut];
};

template <typename Body>
__device__ __forceinline__ void on_lane(const uint32_t* in, uint32_t* out, const Body& body) {
  const int at = blockIdx.x * 32 + lane_index();
  LaneWords words = {};
  for (int i = 0; i < kIn; ++i) words.in[i] = ld_global(in + at * kIn + i);
  body(words);
  for (int i = 0; i < kOut; ++i) st_global(out + at * kOut + i, words.out[i]);
}

template <typename T, bool kZero>
__global__ void __launch_bounds__(32, 1) try_mma(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    const uint32_t a[4] = {l.in[0], l.in[1], l.in[2], l.in[3]}, b[2] = {l.in[4], l.in[5]};
    float c[4];
    for (int i = 0; i < 4; ++i) c[i] = bit_cast<float>(l.in[6 + i]);
    kZero ? mma_m16n8k16_zero<T>(c, a, b) : mma_m16n8k16<T>(c, a, b);
    for (int i = 0; i < 4; ++i) l.out[i] = bit_cast<uint32_t>(c[i]);
  });
}

// Each lane's first four words are a row of 16 bytes.
template <int kMatrices, bool kTranspose>
__global__ void __launch_bounds__(32, 1) try_ldmatrix(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    Words4* rows = reinterpret_cast<Words4*>(dynamic_shared());
    st_shared(rows + lane_index(), Words4{{l.in[0], l.in[1], l.in[2], l.in[3]}});
    __syncwarp();
    if constexpr (kMatrices == 4) {
      uint32_t r[4];
      kTranspose ? ldmatrix_x4_trans(r, rows + lane_index()) : ldmatrix_x4(r, rows + lane_index());
      for (int i = 0; i < 4; ++i) l.out[i] = r[i];
    } else {
      uint32_t r[2];
      kTranspose ? ldmatrix_x2_trans(r, rows + lane_index()) : ldmatrix_x2(r, rows + lane_index());
      for (int i = 0; i < 2; ++i) l.out[i] = r[i];
    }
  });
}

__global__ void __launch_bounds__(32, 1) try_movmatrix(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) { l.out[0] = movmatrix_trans(l.in[0]); });
}

// The lane copies the first in[0] % 17 bytes of its neighbor's words, which lie in global memory.
__global__ void __launch_bounds__(32, 1) try_cp_async(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [out](LaneWords& l) {
    Words4* mine = reinterpret_cast<Words4*>(out) + blockIdx.x * 32 + lane_index();
    st_global(mine, Words4{{l.in[1], l.in[2], l.in[3], l.in[4]}});
    __syncthreads();
    Words4* rows = reinterpret_cast<Words4*>(dynamic_shared());
    const Words4* from = reinterpret_cast<const Words4*>(out) + blockIdx.x * 32 + (lane_index() + 1) % 32;
    cp_async_cg(rows + lane_index(), from, static_cast<int>(l.in[0] % 17));
    cp_async_commit_group();
    cp_async_wait_group<0>();
    __syncthreads();
    const Words4 copied = ld_shared(rows + lane_index());
    for (int i = 0; i < 4; ++i) l.out[i] = copied.w[i];
  });
}

// The warp copies its first 96 words in two bulk copies that share a phase, in turn with two phases of one barrier.
// Without bulk copies, plain loads.
__global__ void __launch_bounds__(32, 1) try_bulk_copies(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [in](LaneWords& l) {
    constexpr int kFirstBytes = 256, kBytes = 384;
    uint64_t* const barrier = reinterpret_cast<uint64_t*>(dynamic_shared());
    uint32_t* const words = reinterpret_cast<uint32_t*>(dynamic_shared() + 128);
    const uint32_t* const from = in + blockIdx.x * 32 * kIn;
    const int other = (lane_index() + 1) % 32;
    if (!has_bulk_copies()) {
      for (int i = 0; i < 3; ++i) l.out[i] = ld_global(from + i * 32 + other);
      return;
    }
    if (lane_index() == 0) {
      mbarrier_init(barrier, 1);
      fence_proxy_async();
    }
    for (int turn = 0; turn < 2; ++turn) {
      __syncwarp();
      if (lane_index() == 0) {
        mbarrier_arrive_expect_tx(barrier, kBytes);
        cp_async_bulk(words, from, kFirstBytes, barrier);
        cp_async_bulk(words + kFirstBytes / 4, from + kFirstBytes / 4, kBytes - kFirstBytes, barrier);
      }
      while (!mbarrier_try_wait_parity(barrier, turn)) {}
      for (int i = turn; i < 3; i += 2) l.out[i] = ld_shared(words + i * 32 + other);
    }
  });
}

__global__ void __launch_bounds__(32, 1) try_shuffles(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    l.out[0] = __shfl_sync(kAllLanes, l.in[0], static_cast<int>(l.in[1] % 32));
    l.out[1] = __shfl_xor_sync(kAllLanes, l.in[0], 5);
    l.out[2] = __shfl_up_sync(kAllLanes, l.in[0], 3);
    l.out[3] = __shfl_down_sync(kAllLanes, l.in[0], 7);
  });
}

__global__ void __launch_bounds__(32, 1) try_votes(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    l.out[0] = __ballot_sync(kAllLanes, l.in[0] & 1);
    l.out[1] = __ballot_sync(kAllLanes, (l.in[1] & 7) == 0);
  });
}

__global__ void __launch_bounds__(32, 1) try_reductions(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    l.out[0] = bit_cast<uint32_t>(warp_sum(bit_cast<float>(l.in[0])));
    l.out[1] = bit_cast<uint32_t>(warp_max(bit_cast<float>(l.in[1])));
  });
}

template <typename T>
__global__ void __launch_bounds__(32, 1) try_conversions(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    l.out[0] = cvt_rn_x2<T>(bit_cast<float>(l.in[0]), bit_cast<float>(l.in[1]));
    l.out[1] = bit_cast<uint32_t>(unpack_low<T>(l.in[2]));
    l.out[2] = bit_cast<uint32_t>(unpack_high<T>(l.in[2]));
  });
}

// Lanes of odd numbers give the odd elements.
template <typename T, bool kI8>
__global__ void __launch_bounds__(32, 1) try_widening(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    const uint32_t words[4] = {l.in[0], l.in[1], l.in[2], l.in[3]};
    const WidenedBytes wide = kI8 ? widen_i8<T>(words) : widen_f8e4m3<T>(words);
    for (int i = 0; i < 4; ++i) l.out[i] = lane_index() % 2 ? wide.odd[i] : wide.even[i];
  });
}

template <typename T, DType kType>
__global__ void __launch_bounds__(32, 1) try_unpacking(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    PackedWords<kType> words;
    if constexpr (kType == DType::i4) {
      words.w = l.in[0];
    } else {
      words.w[0] = l.in[0];
      words.w[1] = l.in[1];
    }
    const ElementPairs elements = unpack<T>(words);
    for (int i = 0; i < kOut; ++i) l.out[i] = elements.pairs[i];
  });
}

__global__ void __launch_bounds__(32, 1) try_bits(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    l.out[0] = __byte_perm(l.in[0], l.in[1], l.in[2] & 0x7777u);
    l.out[1] = lop3_and_or(l.in[0], l.in[1], l.in[2]);
  });
}

__global__ void __launch_bounds__(32, 1) try_f8e4m3(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    l.out[0] = to_f8e4m3(bit_cast<float>(l.in[0])).bits;
    l.out[1] = bit_cast<uint32_t>(to_float(f8e4m3{static_cast<uint8_t>(l.in[1])}));
  });
}

__global__ void __launch_bounds__(32, 1) try_exact_functions(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    const float x = bit_cast<float>(l.in[0]), y = bit_cast<float>(l.in[1]), z = bit_cast<float>(l.in[2]);
    l.out[0] = bit_cast<uint32_t>(__fmaf_rn(x, y, z));
    l.out[1] = bit_cast<uint32_t>(__frcp_rn(x));
    l.out[2] = bit_cast<uint32_t>(__frsqrt_rn(x < 0 ? -x : x));
  });
}

__global__ void __launch_bounds__(32, 1) try_exp2(const uint32_t* in, uint32_t* out) {
  on_lane(in, out, [](LaneWords& l) {
    for (int i = 0; i < kOut; ++i) l.out[i] = bit_cast<uint32_t>(ex2_approx(bit_cast<float>(l.in[i])));
  });
}

__global__ void __launch_bounds__(32, 1) try_streaming(const uint32_t* in, uint32_t* out) {
  const int at = blockIdx.x * 32 + lane_index();
  const Words4 words = ld_global_nc(in + (at * kIn + 3) / 4 * 4);
  st_global(reinterpret_cast<Words4*>(out) + at, words);
}

inline std::vector<Wrapper> wrappers() {
  return {{"mma bf16", try_mma<bf16, false>, Input::bf16_pairs, false},
          {"mma f16", try_mma<f16, false>, Input::f16_pairs, false},
          {"mma bf16 without c", try_mma<bf16, true>, Input::bf16_pairs, false},
          {"mma f16 without c", try_mma<f16, true>, Input::f16_pairs, false},
          {"ldmatrix x4", try_ldmatrix<4, false>, Input::bits, true},
          {"ldmatrix x4 trans", try_ldmatrix<4, true>, Input::bits, true},
          {"ldmatrix x2", try_ldmatrix<2, false>, Input::bits, true},
          {"ldmatrix x2 trans", try_ldmatrix<2, true>, Input::bits, true},
          {"movmatrix", try_movmatrix, Input::bits, true},
          {"cp.async", try_cp_async, Input::bits, true},
          {"bulk copies", try_bulk_copies, Input::bits, true},
          {"shuffles", try_shuffles, Input::bits, true},
          {"votes", try_votes, Input::bits, true},
          {"reductions", try_reductions, Input::floats, true},
          {"conversions bf16", try_conversions<bf16>, Input::floats, true},
          {"conversions f16", try_conversions<f16>, Input::floats, true},
          {"widen i8 to bf16", try_widening<bf16, true>, Input::bits, true},
          {"widen i8 to f16", try_widening<f16, true>, Input::bits, true},
          {"widen f8e4m3 to bf16", try_widening<bf16, false>, Input::bits, true},
          {"widen f8e4m3 to f16", try_widening<f16, false>, Input::bits, true},
          {"unpack i4 to bf16", try_unpacking<bf16, DType::i4>, Input::bits, true},
          {"unpack i4 to f16", try_unpacking<f16, DType::i4>, Input::bits, true},
          {"unpack i8 to bf16", try_unpacking<bf16, DType::i8>, Input::bits, true},
          {"unpack i8 to f16", try_unpacking<f16, DType::i8>, Input::bits, true},
          {"byte_perm, lop3", try_bits, Input::bits, true},
          {"f8e4m3", try_f8e4m3, Input::floats, true},
          {"fma, 1/x, 1/sqrt(x)", try_exact_functions, Input::floats, true},
          {"exp2", try_exp2, Input::floats, false, true},
          {"ld_global_nc", try_streaming, Input::bits, true}};
}

}  // namespace diffqkv::cuda
