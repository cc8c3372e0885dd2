// How decode attention puts parts together: the warps of a block, and the splits of a unit.
#pragma once

#include <type_traits>

#include "device/finding.h"
#include "device/softmax.h"
#include "kernels.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {
namespace {

constexpr int kDecodeWarps = 4;

struct DecodeParams {
  const void *q, *k, *v;  // see AttentionDecodeParams
  void* out;
  float* lse;
  const int32_t* kv_lens;
  Finding* finding;
  float* o_accum;      // [batch][num_q_heads][num_splits][head_dim_vo], not divided
  float* stats_accum;  // [batch][num_q_heads][num_splits][3]: m, d, the sum of the rounded P
  uint32_t* arrived;   // [batch][num_units]: splits that are done; 0 before and after
  int64_t stride_k_batch, stride_v_batch, stride_k_token, stride_v_token;
  float scale_log2;
  int kv_len, num_q_heads, num_splits;
  int q_heads_per_k_head_in_all, q_heads_per_v_head_in_all;
  int num_units, unit_heads, k_heads, v_heads;  // of a unit
  int q_heads_per_k_head, q_heads_per_v_head;   // within a unit
};

// Which part of the work a block is.
struct DecodeBlock {
  int64_t batch;
  int unit, split_idx, first_key, end_key;

  DIFFQKV_DEVICE explicit DecodeBlock(const DecodeParams& p) {
    split_idx = block_x() % p.num_splits;
    unit = block_x() / p.num_splits % p.num_units;
    batch = block_x() / p.num_splits / p.num_units;
    int kv_len = p.kv_len;
    if (p.kv_lens != nullptr) {
      kv_len = load(p.kv_lens + batch);
      if (kv_len < 0 || kv_len > p.kv_len) {
        if (split_idx == 0 && unit == 0 && thread_index() == 0)
          report(p.finding, Finding::kv_len, static_cast<int>(batch), kv_len, p.kv_len);
        kv_len = kv_len < 0 ? 0 : p.kv_len;
      }
    }
    const int keys = ((kv_len + p.num_splits - 1) / p.num_splits + 15) / 16 * 16;  // whole tiles
    first_key = split_idx * keys;  // past the end where nothing is left for this split
    end_key = first_key + keys < kv_len ? first_key + keys : kv_len;
  }
};

// Rows of o in shared memory: 4 floats past a multiple of 32, so that the fragments of 8 rows fall on different banks.
DIFFQKV_HOST_DEVICE constexpr int part_stride(int head_dim_vo) { return head_dim_vo + 4; }
// Behind the rows: [warp][m, d, sum of the rounded P][8], then what the merge keeps there: [warp][8] factors, [3][8] merged
// statistics, and one word.
DIFFQKV_DEVICE float* decode_stats(unsigned char* shared, int head_dim_vo) {
  return reinterpret_cast<float*>(shared) + kDecodeWarps * 8 * part_stride(head_dim_vo);
}
inline size_t merge_bytes(int head_dim_vo) {
  return (size_t{kDecodeWarps} * 8 * part_stride(head_dim_vo) + kDecodeWarps * 24 + kDecodeWarps * 8 + 24 + 1) *
         sizeof(float);
}

DIFFQKV_DEVICE float part_factor(float m, float top) { return m > -infinity() ? exp2_fast(m - top) : 1.0f; }

template <typename T>
DIFFQKV_DEVICE void write_out(const DecodeParams& p, int64_t row, int dims, int d, float o, float divisor) {
  store(static_cast<T*>(p.out) + row * dims + d, from_float<T>(divisor == 0 ? 0.0f : o / divisor));
}
DIFFQKV_DEVICE void write_lse(const DecodeParams& p, int64_t row, float m, float d) {
  if (p.lse != nullptr) store(p.lse + row, SoftmaxState{m, d}.lse());
}

// The last block of a unit merges its splits.
template <typename T, int kDimsVo>
DIFFQKV_DEVICE void merge_splits(const DecodeParams& p, const DecodeBlock& block) {
  constexpr int kThreads = kDecodeWarps * 32;
  for (int i = thread_index(); i < p.unit_heads * kDimsVo; i += kThreads) {
    const int head = i / kDimsVo, dim = i % kDimsVo;
    const int64_t row = block.batch * p.num_q_heads + block.unit * p.unit_heads + head;
    const float* stats = p.stats_accum + row * p.num_splits * 3;
    const float* o_accum = p.o_accum + row * p.num_splits * kDimsVo + dim;
    float top = -infinity();
    for (int split = 0; split < p.num_splits; ++split) {
      const float m = load(stats + split * 3);
      top = m > top ? m : top;
    }
    float o = 0, d = 0, rounded = 0;
    for (int split = 0; split < p.num_splits; ++split) {
      const float factor = part_factor(load(stats + split * 3), top);
      o += load(o_accum + split * kDimsVo) * factor;
      d += load(stats + split * 3 + 1) * factor;
      rounded += load(stats + split * 3 + 2) * factor;
    }
    write_out<T>(p, row, kDimsVo, dim, o, rounded);
    if (dim == 0) write_lse(p, row, top, d);
  }
}

// The warps' parts lie in shared memory, with a barrier behind them.
template <typename T, int kDimsVo>
DIFFQKV_DEVICE void merge_block(const DecodeParams& p, const DecodeBlock& block, unsigned char* shared) {
  constexpr int kThreads = kDecodeWarps * 32;
  const float* parts = reinterpret_cast<float*>(shared);
  float* stats = decode_stats(shared, kDimsVo);
  float* factors = stats + kDecodeWarps * 24;
  float* merged = factors + kDecodeWarps * 8;
  uint32_t* last = reinterpret_cast<uint32_t*>(merged + 24);
  if (thread_index() < p.unit_heads) {
    const int head = thread_index();
    float top = -infinity(), d = 0, rounded = 0;
    for (int warp = 0; warp < kDecodeWarps; ++warp) {
      const float m = load_shared(stats + warp * 24 + head);
      top = m > top ? m : top;
    }
    for (int warp = 0; warp < kDecodeWarps; ++warp) {
      const float factor = part_factor(load_shared(stats + warp * 24 + head), top);
      store_shared(factors + warp * 8 + head, factor);
      d += load_shared(stats + warp * 24 + 8 + head) * factor;
      rounded += load_shared(stats + warp * 24 + 16 + head) * factor;
    }
    store_shared(merged + head, top);
    store_shared(merged + 8 + head, d);
    store_shared(merged + 16 + head, rounded);
  }
  sync_block();
  for (int i = thread_index(); i < p.unit_heads * kDimsVo; i += kThreads) {
    const int head = i / kDimsVo, dim = i % kDimsVo;
    float o = 0;
    DIFFQKV_UNROLL
    for (int warp = 0; warp < kDecodeWarps; ++warp)
      o += load_shared(parts + (warp * 8 + head) * part_stride(kDimsVo) + dim) * load_shared(factors + warp * 8 + head);
    const int64_t row = block.batch * p.num_q_heads + block.unit * p.unit_heads + head;
    if (p.num_splits == 1) {
      write_out<T>(p, row, kDimsVo, dim, o, load_shared(merged + 16 + head));
      if (dim == 0) write_lse(p, row, load_shared(merged + head), load_shared(merged + 8 + head));
    } else {
      const int64_t part = row * p.num_splits + block.split_idx;
      store(p.o_accum + part * kDimsVo + dim, o);
      if (dim < 3) store(p.stats_accum + part * 3 + dim, load_shared(merged + dim * 8 + head));
    }
  }
  if (p.num_splits == 1) return;
  fence_device();
  sync_block();
  uint32_t* arrived = p.arrived + block.batch * p.num_units + block.unit;
  if (thread_index() == 0)
    store_shared(last, static_cast<uint32_t>(atomic_add(arrived, 1u) == static_cast<uint32_t>(p.num_splits) - 1));
  sync_block();
  if (load_shared(last) == 0) return;
  fence_device();
  if (thread_index() == 0) store(arrived, 0u);
  merge_splits<T, kDimsVo>(p, block);
}

}  // namespace
}  // namespace diffqkv::DIFFQKV_DEVICE_NS
