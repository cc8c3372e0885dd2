// Attention as a list of work items, for prefill and decode alike.
//
// A tile is `tile_queries` queries of one sequence times `unit_heads` query heads; its rows stand head after head, so that the
// rows that share a K head, and those that share a V head, are contiguous: one GEMM each per block of keys. A unit is a
// multiple of both group sizes, whichever of K and V has more heads. A work item is a tile and one split of its keys:
//
//   for each block of keys:
//     for each K head: pack it once (not for few rows); S = Q K^T, 32 rows at a time, in L1; online softmax,
//       P = exp(S - m); O *= exp(m_old - m)
//     for each V head: pack it once (not for few rows); O += P V, and d with it, in V's column of ones
//       (for few rows d is summed apart, of the rounded P)
//
// Softmax runs in base 2: m and the exponents are sm_scale * log2(e) * q.k. With several splits each item leaves (O, d, m)
// and a second pass merges them. Each K and V byte is read once per item.
#pragma once

#include "backend/cpu/attention_few_rows.h"
#include "backend/cpu/attention_softmax.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

// The rows of one work item in one thread's scratch memory.
struct Tile {
  int64_t batch, first_query, num_queries, first_head, num_heads, num_rows;
  int64_t max_visible;    // of its queries
  int64_t ones_keys;      // how many keys' ones v_panels holds
  int64_t tile_rows;      // height of the AMX tiles as configured, see attention_gemm.h
  int32_t* visible;       // [num_queries] keys that each sees
  char* q;                // [num_rows][ldq], float or bf16
  uint32_t* query_pairs;  // the same by K heads, [ldq / 2][rows of the head] pairs, for few rows
  float* k_panels;        // [kBlock / 16][stride_k_panel]
  float* v_panels;        // [num_v_panels][stride_v_panel]
  float* s;               // [kScoreRows][kBlock]
  char* p;                // [num_rows][kBlock], float or bf16; for few rows [kBlock / 16][num_rows][2][16] pairs
  float* o;               // [num_rows][ldo]
  float* m;               // [num_rows]
  float* d;               // [num_rows] sum of the unrounded P, for lse, where P is rounded to bf16; else not used

  // Sets the pointers; returns the bytes needed.
  int64_t lay_out(const Problem& problem, char* base, int64_t max_queries, int64_t max_heads) {
    int64_t bytes = 0;
    const int64_t rows = max_queries * max_heads;
    const auto take = [&](int64_t size) DIFFQKV_LAMBDA {
      char* at = base + bytes;
      bytes += round_up(size, 64);
      return at;
    };
    visible = reinterpret_cast<int32_t*>(take(4 * max_queries));
    q = take(rows * problem.ldq * (problem.bf16_scores ? 2 : 4));
    query_pairs = reinterpret_cast<uint32_t*>(take(problem.amx ? rows * problem.ldq * 2 : 0));
    k_panels = reinterpret_cast<float*>(take(kBlock / kPanel * problem.stride_k_panel * 4));
    v_panels = reinterpret_cast<float*>(take(problem.num_v_panels * problem.stride_v_panel * 4));
    s = reinterpret_cast<float*>(take(kScoreRows * kBlock * 4));
    const int64_t few_rows = problem.amx ? min_of(rows, max_heads * kFewRows) : 0;
    p = take(kBlock * max_of(rows * (problem.bf16_values ? 2 : 4), few_rows * 8));
    o = reinterpret_cast<float*>(take(rows * problem.ldo * 4));
    m = reinterpret_cast<float*>(take(rows * 4));
    d = reinterpret_cast<float*>(take(rows * 4));
    return round_up(bytes, 4096);
  }

  DIFFQKV_INLINE int64_t row_visible(int64_t row) const { return visible[row % num_queries]; }
};

// Takes `count` more scores of a row into its running max; returns what exponents are to be taken from: m, or 0 while m is -inf.
DIFFQKV_INLINE float update_max(const Problem& p, const float* s, int64_t count, float* m, float* d, float* o,
                                int64_t num_o) {
  const float top = max_score(s, count) * p.scale_log2;
  if (top > *m) {
    if (*m > -kInfinity) {
      const float factor = __builtin_exp2f(*m - top);
      *d *= factor;
      scale_row(o, num_o, factor);
    }
    *m = top;
  }
  return *m > -kInfinity ? *m : 0;
}

// Whether the rows that share a K or a V head are few enough for attention_few_rows.h.
DIFFQKV_INLINE bool uses_few_rows(const Problem& p, const Tile& t) {
  return p.amx && p.bf16_scores && p.bf16_values && p.head_dim_qk % 32 == 0 && p.head_dim_qk <= kFewDims &&
         p.head_dim_vo % 32 == 0 && p.head_dim_vo <= kFewDims && p.q_heads_per_k_head * t.num_queries <= kFewRows &&
         2 * p.q_heads_per_v_head * t.num_queries <= kFewRows;
}

void load_queries(const Problem& p, Tile& t) {
  visit(p.q_dtype, [&](auto type) DIFFQKV_LAMBDA {
    using T = decltype(type);
    for (int64_t h = 0; h < t.num_heads; ++h) {
      for (int64_t i = 0; i < t.num_queries; ++i) {
        const int64_t query = p.num_queries * t.batch + t.first_query + i;
        const T* from = reinterpret_cast<const T*>(p.q) + (query * p.num_q_heads + t.first_head + h) * p.head_dim_qk;
        const int64_t row = h * t.num_queries + i;
        for (int64_t d = 0; d < p.ldq; d += kLanes) {
          const int64_t count = max_of(0, min_of(p.head_dim_qk - d, kLanes));
          const F32v x = (count == kLanes ? load(from + d) : load_n(from + d, count)) * p.q_factor;
          if (p.bf16_scores) {
            store(reinterpret_cast<bf16*>(t.q) + row * p.ldq + d, x);
          } else {
            store_n(reinterpret_cast<float*>(t.q) + row * p.ldq + d, x, count);
          }
        }
      }
    }
  });
#if defined(__AVX512BF16__)
  if (!uses_few_rows(p, t)) return;
  const int64_t rows_per_head = p.q_heads_per_k_head * t.num_queries, num_pairs = p.ldq / 2;
  for (int64_t row = 0; row < t.num_rows; row += rows_per_head) {
    pack_query_pairs(reinterpret_cast<const uint32_t*>(t.q) + row * num_pairs, num_pairs, rows_per_head, num_pairs,
                     t.query_pairs + row * num_pairs);
  }
#endif
}

// The block's scores: calls on_row(row, s, count, n) for every row, count <= n being the keys it sees of this block.
template <typename OnRow>
DIFFQKV_INLINE void score_block(const Problem& p, Tile& t, int64_t first_key, int64_t n, Prefetch& prefetch,
                                const OnRow& on_row) {
  const int64_t element = static_cast<int64_t>(dtype_size(p.k_dtype)), head_bytes = p.head_dim_qk * element;
  const int64_t rows_per_head = p.q_heads_per_k_head * t.num_queries;
  const bool few = uses_few_rows(p, t);
  for (int64_t first_row = 0; first_row < t.num_rows; first_row += rows_per_head) {
    const int64_t head = t.first_head / p.q_heads_per_k_head + first_row / rows_per_head;
    Rows rows = {p.k + t.batch * p.stride_k_batch + (first_key * p.num_k_heads + head) * head_bytes,
                 p.num_k_heads * head_bytes};
#if defined(__AVX512BF16__)
    if (few) {  // all rows of the head at once: they are at most kFewRows, fewer than kScoreRows
      configure_few_tiles(rows_per_head, 2 * p.q_heads_per_v_head * t.num_queries, &t.tile_rows);
      few_scores(rows, n, p.head_dim_qk, t.query_pairs + first_row * p.ldq / 2, rows_per_head, t.s, kBlock, prefetch);
    }
#endif
    for (int64_t j = 0; j < n && !few; j += kPanel, rows.data += kPanel * rows.stride_bytes) {
      float* panel = t.k_panels + j / kPanel * p.stride_k_panel;
      const int64_t count = min_of(n - j, kPanel);
      prefetch.advance(prefetch.per_panel);
#if defined(__AVX512BF16__)
      if (p.bf16_scores) {
        pack_k_panel_vnni(rows, count, p.head_dim_qk, panel);
        continue;
      }
#endif
      visit(p.k_dtype,
            [&](auto type) DIFFQKV_LAMBDA { pack_k_panel<decltype(type)>(rows, count, p.head_dim_qk, panel); });
    }
    for (int64_t r = first_row; r < first_row + rows_per_head; r += kScoreRows) {
      const int64_t m = min_of(first_row + rows_per_head - r, kScoreRows);
      int64_t most = 0;
      for (int64_t i = 0; i < m; ++i) most = max_of(most, min_of(t.row_visible(r + i) - first_key, n));
      if (most > 0 && !few) {
        Gemm g = {};
        g.a = t.q + r * p.ldq * (p.bf16_scores ? 2 : 4);
        g.b = t.k_panels, g.c = t.s, g.m = m, g.num_panels = ceil_div(most, kPanel), g.k = p.ldq;
        g.lda = p.ldq, g.stride_panel = p.stride_k_panel, g.ldc = kBlock;
        p.bf16_scores ? gemm_bf16(g, p.amx ? &t.tile_rows : nullptr) : gemm_f32(g);
      }
      for (int64_t i = 0; i < m; ++i) {
        prefetch.advance(prefetch.per_row);
        on_row(r + i, t.s + i * kBlock, max_of(0, min_of(t.row_visible(r + i) - first_key, n)), n);
      }
    }
  }
}

// Whether a packed block of V holds an infinity or NaN: a key that a query does not see then must not meet its P of 0.
bool has_nonfinite(const Problem& p, const Tile& t, int64_t n) {
  const int64_t words = p.bf16_values ? round_up(n, kPairStep) / 2 * kPanel : n * kPanel;
  I32v found = {};
  for (int64_t panel = 0; panel < p.num_v_panels; ++panel) {
    for (int64_t i = 0; i < words; i += kLanes) {
      const U32v x = load_raw<U32v>(t.v_panels + panel * p.stride_v_panel + i);
      found |= (x & 0x7f800000u) == 0x7f800000u;
      if (p.bf16_values) found |= (x & 0x7f80u) == 0x7f80u;
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    if (found[i]) return true;
  }
  return false;
}

// o += p V over the first `count` keys of the packed V alone, one by one.
void accumulate_row_exactly(const Problem& p, const Tile& t, int64_t row, int64_t count) {
  float* o = t.o + row * p.ldo;
  for (int64_t j = 0; j < count; ++j) {
    const float weight = p.bf16_values ? load1(reinterpret_cast<const bf16*>(t.p) + row * kBlock + j)
                                       : reinterpret_cast<const float*>(t.p)[row * kBlock + j];
    for (int64_t d = 0; d < p.ldo; ++d) {
      const float* panel = t.v_panels + d / kPanel * p.stride_v_panel;
      o[d] += weight * (p.bf16_values
                            ? load1(reinterpret_cast<const bf16*>(panel + j / 2 * kPanel) + d % kPanel * 2 + j % 2)
                            : panel[j * kPanel + d % kPanel]);
    }
  }
}

// O += P V for the n keys from first_key on.
DIFFQKV_INLINE void value_block(const Problem& p, Tile& t, int64_t first_key, int64_t n, Prefetch& prefetch) {
  const int64_t element = static_cast<int64_t>(dtype_size(p.v_dtype)), head_bytes = p.head_dim_vo * element;
  const int64_t rows_per_head = p.q_heads_per_v_head * t.num_queries;
  bool all_see_all = true;
  for (int64_t i = 0; i < t.num_queries; ++i) all_see_all &= t.visible[i] >= first_key + n;
  for (int64_t first_row = 0; first_row < t.num_rows; first_row += rows_per_head) {
    const int64_t head = t.first_head / p.q_heads_per_v_head + first_row / rows_per_head;
    const Rows rows = {p.v + t.batch * p.stride_v_batch + (first_key * p.num_v_heads + head) * head_bytes,
                       p.num_v_heads * head_bytes};
    const bool ones = n != t.ones_keys || n % 2 != 0;
    t.ones_keys = n;
#if defined(__AVX512BF16__)
    if (p.bf16_values) pack_v_vnni(rows, n, p.head_dim_vo, t.v_panels, p.stride_v_panel, ones, prefetch);
#endif
    if (!p.bf16_values) {
      visit(p.v_dtype, [&](auto type) DIFFQKV_LAMBDA {
        pack_v<decltype(type)>(rows, n, p.head_dim_vo, t.v_panels, p.stride_v_panel, ones, prefetch);
      });
    }
    prefetch.advance(prefetch.per_head);
    const bool exactly = !all_see_all && has_nonfinite(p, t, n);
    for (int64_t r = first_row; r < first_row + rows_per_head; r += kScoreRows) {
      const int64_t m = min_of(first_row + rows_per_head - r, kScoreRows);
      int64_t most = 0;
      for (int64_t i = 0; i < m; ++i) {
        const int64_t count = min_of(t.row_visible(r + i) - first_key, n);
        most = max_of(most, count);
        if (exactly) accumulate_row_exactly(p, t, r + i, count);
      }
      if (most <= 0 || exactly) continue;
      Gemm g = {};
      g.a = t.p + r * kBlock * (p.bf16_values ? 2 : 4);
      g.b = t.v_panels, g.c = t.o + r * p.ldo, g.m = m, g.num_panels = p.num_v_panels;
      g.k = p.bf16_values ? round_up(most, kPairStep) : most;
      g.lda = kBlock, g.stride_panel = p.stride_v_panel, g.ldc = p.ldo, g.accumulate = true;
      p.bf16_values ? gemm_bf16(g, p.amx ? &t.tile_rows : nullptr) : gemm_f32(g);
    }
  }
}

// For the block after the one at first_key, up to end_key; `values`: V too.
Prefetch prefetch_after(const Problem& p, const Tile& t, int64_t first_key, int64_t end_key, bool values) {
  const int64_t begin = min_of(first_key + p.block, end_key), end = min_of(begin + p.block, end_key);
  const int64_t k_token_bytes = p.num_k_heads * p.head_dim_qk * static_cast<int64_t>(dtype_size(p.k_dtype));
  const int64_t v_token_bytes = p.num_v_heads * p.head_dim_vo * static_cast<int64_t>(dtype_size(p.v_dtype));
  const char *k = p.k + t.batch * p.stride_k_batch, *v = p.v + t.batch * p.stride_v_batch;
  Prefetch r;
  constexpr int64_t kStepBytes = 64 * Prefetch::kStreams;
  r.start({k + begin * k_token_bytes, (end - begin) * k_token_bytes / kStepBytes});
  if (values) r.then = {v + begin * v_token_bytes, (end - begin) * v_token_bytes / kStepBytes};
  // The share that each kind of work asks for, in percent, over how often it is done: as measured.
  const int64_t steps = r.left + r.then.steps;
  const int64_t k_heads = t.num_heads / p.q_heads_per_k_head, v_heads = t.num_heads / p.q_heads_per_v_head;
  const auto share = [&](int64_t percent, int64_t times)
                         DIFFQKV_LAMBDA { return steps * Prefetch::kStepUnits * percent / (100 * times); };
  const bool few = uses_few_rows(p, t);
  r.per_panel = share(!values ? 40 : few ? 5 : 3, k_heads * ceil_div(p.block, kPanel));
  r.per_row = share(!values ? 60 : few ? 15 : 12, t.num_rows);
  r.per_head = share(25, v_heads);
  r.per_value = share(60, v_heads * p.block);
  r.per_value_tile = share(80, v_heads * ceil_div(p.block, 16) * ceil_div(p.head_dim_vo, 64));
  return r;
}

#if defined(__AVX512BF16__)
// What few_values left of a row, even dims, the divisor and odd dims, in the order of o.
DIFFQKV_INLINE void interleave_row(float* o, int64_t ldo, int64_t head_dim_vo) {
  alignas(64) float pairs[2 * kFewDims];
  const int64_t half = ldo / 2, d_column = head_dim_vo / 2;
  __builtin_memcpy(pairs, o, static_cast<size_t>(ldo * 4));
  for (int64_t d = 0; d < d_column; ++d) o[2 * d] = pairs[d], o[2 * d + 1] = pairs[half + d];
  o[head_dim_vo] = pairs[d_column];
}

// attend for few rows, where K and V are taken straight from the cache. Returns whether O is finite: a V that is not spoils
// its neighbours here.
bool attend_few(const Problem& p, Tile& t, int64_t begin, int64_t end, bool prefetch) {
  const int64_t v_rows = p.q_heads_per_v_head * t.num_queries;
  const int64_t v_head_bytes = p.head_dim_vo * 2, d_column = p.head_dim_vo / 2;
  uint32_t* pairs = reinterpret_cast<uint32_t*>(t.p);
  const int64_t stride_group = t.num_rows * 32;
  for (int64_t key = begin; key < end; key += p.block) {
    const int64_t n = min_of(end - key, p.block);
    Prefetch next;
    if (prefetch) next = prefetch_after(p, t, key, end, true);
    score_block(p, t, key, n, next, [&](int64_t row, const float* s, int64_t count, int64_t all) DIFFQKV_LAMBDA {
      float* o = t.o + row * p.ldo;
      const float base = count > 0 ? update_max(p, s, count, &t.m[row], &t.d[row], o, p.ldo) : 0;
      F32v total = {}, rounded = {};
      for (int64_t j = 0; j < all; j += kLanes) {
        F32v x = {};
        if (j < count) x = exp2_fast(fma(load(s + j), set1(p.scale_log2), set1(-base)));
        if (count - j < kLanes) x = lane_numbers() < static_cast<int32_t>(count - j) ? x : F32v{};
        total += x;
        rounded += store_pairs(pairs + j / 16 * stride_group + row * 32, x);
      }
      if (p.lse) t.d[row] += sum(total);
      o[d_column] += sum(rounded);
    });
    for (int64_t row = 0; row < t.num_rows; row += v_rows) {
      const int64_t head = t.first_head / p.q_heads_per_v_head + row / v_rows;
      const Rows rows = {p.v + t.batch * p.stride_v_batch + (key * p.num_v_heads + head) * v_head_bytes,
                         p.num_v_heads * v_head_bytes};
      few_values(rows, n, p.head_dim_vo, pairs + row * 32, stride_group, t.o + row * p.ldo, p.ldo, next);
    }
  }
  F32v finite = {};
  for (int64_t row = 0; row < t.num_rows; ++row) {
    float* o = t.o + row * p.ldo;
    interleave_row(o, p.ldo, p.head_dim_vo);
    for (int64_t j = 0; j < p.head_dim_vo; j += kLanes) finite += load(o + j) * 0;
  }
  return sum(finite) == 0;
}
#endif

DIFFQKV_INLINE void clear_rows(const Problem& p, Tile& t) {
  __builtin_memset(t.o, 0, static_cast<size_t>(t.num_rows * p.ldo * 4));
  for (int64_t i = 0; i < t.num_rows; ++i) t.m[i] = -kInfinity, t.d[i] = 0;
}

// Attention of the tile's rows over keys [begin, end): fills t.o and t.m.
void attend(const Problem& p, Tile& t, int64_t begin, int64_t end, bool prefetch) {
  load_queries(p, t);
  clear_rows(p, t);
#if defined(__AVX512BF16__)
  if (uses_few_rows(p, t)) {
    if (attend_few(p, t, begin, end, prefetch)) return;
    clear_rows(p, t);
  }
#endif
  for (int64_t key = begin; key < end; key += p.block) {
    const int64_t n = min_of(end - key, p.block);
    Prefetch next;
    if (prefetch) next = prefetch_after(p, t, key, end, true);
    score_block(p, t, key, n, next, [&](int64_t row, const float* s, int64_t count, int64_t all) DIFFQKV_LAMBDA {
      const float base = count > 0 ? update_max(p, s, count, &t.m[row], &t.d[row], t.o + row * p.ldo, p.ldo) : 0;
      const int64_t padded = round_up(all, kPairStep);
#if defined(__AVX512BF16__)
      if (p.bf16_values) {
        const F32v total =
            probabilities(s, count, padded, p.scale_log2, base, reinterpret_cast<bf16*>(t.p) + row * kBlock);
        if (p.lse) t.d[row] += sum(total);
        return;
      }
#endif
      probabilities(s, count, padded, p.scale_log2, base, reinterpret_cast<float*>(t.p) + row * kBlock);
    });
    value_block(p, t, key, n, next);
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
