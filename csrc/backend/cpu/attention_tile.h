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
//       (for few rows d is summed apart, of the rounded P; of P as it is where V has scales)
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
  char* lifted;           // [kBlock][dim] bf16: rows of one head of an i8 or f8e4m3 cache
  float* k_scales;        // [K heads of the tile][kBlock], of such a cache
  float* v_scales;        // [V heads of the tile][kBlock]
  char* p;                // [num_rows][kBlock], float, bf16 or fixed point; or [kBlock / 16][num_rows][2][16] pairs
  float* o;               // [num_rows][ldo]
  float* units;           // [num_rows] of P's fixed point
  float* m;               // [num_rows]
  float* d;               // [num_rows] sum of the P before rounding and scales, where sum_d is set

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
    lifted =
        take(kBlock * 2 * max_of(problem.lift_k ? problem.head_dim_qk : 0, problem.lift_v ? problem.head_dim_vo : 0));
    k_scales =
        reinterpret_cast<float*>(take(problem.k.scaled ? max_heads / problem.q_heads_per_k_head * kBlock * 4 : 0));
    v_scales =
        reinterpret_cast<float*>(take(problem.v.scaled ? max_heads / problem.q_heads_per_v_head * kBlock * 4 : 0));
    const int64_t few_rows = problem.amx ? min_of(rows, max_heads * kFewRows) : 0;
    p = take(kBlock * max_of(rows * (problem.bf16_values ? 2 : 4), few_rows * 8));
    o = reinterpret_cast<float*>(take(rows * problem.ldo * 4));
    units = reinterpret_cast<float*>(take(rows * 4));
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
  const int64_t rows_per_head = p.q_heads_per_k_head * t.num_queries, first_head = t.first_head / p.q_heads_per_k_head;
  const bool few = uses_few_rows(p, t);
  const KeyBlock keys(p.k, t.batch, first_key, n);
  if (p.k.scaled) load_scales(p.k, t.batch, first_key, n, first_head, t.num_rows / rows_per_head, t.k_scales);
  for (int64_t first_row = 0; first_row < t.num_rows; first_row += rows_per_head) {
    HeadRows rows = keys.head(first_head + first_row / rows_per_head);
    const float* scales = p.k.scaled ? t.k_scales + first_row / rows_per_head * kBlock : nullptr;
#if defined(__AVX512BF16__)
    if (p.lift_k) rows = lifted(p.k.dtype, rows, n, p.head_dim_qk, &t.lifted);
    if (few) {  // all rows of the head at once: they are at most kFewRows, fewer than kScoreRows
      const int64_t v_rows = p.q_heads_per_v_head * t.num_queries;
      configure_few_tiles(rows_per_head, p.byte_values ? min_of(8 * v_rows, 16) : 2 * v_rows, &t.tile_rows);
      few_scores(rows, n, p.head_dim_qk, t.query_pairs + first_row * p.ldq / 2, rows_per_head, t.s, kBlock, prefetch);
    }
#endif
    for (int64_t j = 0; j < n && !few; j += kPanel) {
      float* panel = t.k_panels + j / kPanel * p.stride_k_panel;
      const int64_t count = min_of(n - j, kPanel);
      prefetch.advance(prefetch.per_panel);
#if defined(__AVX512BF16__)
      if (p.bf16_scores) {
        pack_k_panel_vnni(rows.from(j), count, p.head_dim_qk, panel);
        continue;
      }
#endif
      visit_cache(p.k.dtype, [&](auto type) DIFFQKV_LAMBDA {
        pack_k_panel<decltype(type)>(rows.from(j), count, p.head_dim_qk, panel);
      });
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
        float* s = t.s + i * kBlock;
        const int64_t count = max_of(0, min_of(t.row_visible(r + i) - first_key, n));
        for (int64_t j = 0; scales && j < count; j += kLanes) store(s + j, load(s + j) * load(scales + j));
        on_row(r + i, s, count, n);
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

// V's scales of the n keys from first_key on, which P is multiplied by.
DIFFQKV_INLINE void load_value_scales(const Problem& p, Tile& t, int64_t first_key, int64_t n) {
  if (!p.v.scaled) return;
  load_scales(p.v, t.batch, first_key, n, t.first_head / p.q_heads_per_v_head, t.num_heads / p.q_heads_per_v_head,
              t.v_scales);
}

DIFFQKV_INLINE const float* value_scales(const Problem& p, const Tile& t, int64_t row) {
  return p.v.scaled ? t.v_scales + row / (p.q_heads_per_v_head * t.num_queries) * kBlock : nullptr;
}

// O += P V for the n keys from first_key on.
DIFFQKV_INLINE void value_block(const Problem& p, Tile& t, int64_t first_key, int64_t n, Prefetch& prefetch) {
  const int64_t rows_per_head = p.q_heads_per_v_head * t.num_queries, first_head = t.first_head / p.q_heads_per_v_head;
  const KeyBlock keys(p.v, t.batch, first_key, n);
  bool all_see_all = true;
  for (int64_t i = 0; i < t.num_queries; ++i) all_see_all &= t.visible[i] >= first_key + n;
  for (int64_t first_row = 0; first_row < t.num_rows; first_row += rows_per_head) {
    HeadRows rows = keys.head(first_head + first_row / rows_per_head);
    const bool ones = n != t.ones_keys || n % 2 != 0;
    t.ones_keys = n;
#if defined(__AVX512BF16__)
    if (p.lift_v) rows = lifted(p.v.dtype, rows, n, p.head_dim_vo, &t.lifted);
#endif
    for (int64_t j = 0; j < n; j += rows.part_keys()) {
      const int64_t count = min_of(n - j, rows.part_keys());
#if defined(__AVX512BF16__)
      if (p.bf16_values) {
        pack_v_vnni(rows.from(j), count, p.head_dim_vo, t.v_panels + j / 2 * kPanel, p.stride_v_panel, ones, prefetch);
        continue;
      }
#endif
      visit_cache(p.v.dtype, [&](auto type) DIFFQKV_LAMBDA {
        pack_v<decltype(type)>(rows.from(j), count, p.head_dim_vo, t.v_panels + j * kPanel, p.stride_v_panel, ones,
                               prefetch);
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
  const int64_t begin = first_key + p.block, n = min_of(end_key - begin, p.block);
  Prefetch r;
  if (n <= 0) return r;
  constexpr int64_t kStepBytes = 64 * Prefetch::kStreams;
  const auto range = [&](const Cache& cache) DIFFQKV_LAMBDA {
    if (cache.scaled) {
      const char* scales = reinterpret_cast<const char*>(cache.token_scales(t.batch, begin));
      for (int64_t i = 0; i < n * cache.num_heads * 2; i += 64) __builtin_prefetch(scales + i, 0, 2);
    }
    return Prefetch::Range{cache.token(t.batch, begin), n * cache.token_bytes / kStepBytes};
  };
  r.start(range(p.k));
  if (values) r.then = range(p.v);
  // The share that each kind of work asks for, in percent, over how often it is done: as measured.
  const int64_t steps = r.left + r.then.steps;
  const int64_t k_heads = t.num_heads / p.q_heads_per_k_head, v_heads = t.num_heads / p.q_heads_per_v_head;
  const auto share = [&](int64_t percent, int64_t times)
                         DIFFQKV_LAMBDA { return steps * Prefetch::kStepUnits * percent / (100 * times); };
  const bool few = uses_few_rows(p, t), scaled = few && p.v.scaled;
  r.per_panel = share(!values ? 40 : scaled ? 10 : few ? 5 : 3, k_heads * ceil_div(p.block, kPanel));
  r.per_row = share(!values ? 60 : scaled ? 30 : few ? 15 : 12, t.num_rows);
  r.per_head = share(25, v_heads);
  r.per_value = share(60, v_heads * p.block);
  r.per_value_tile = share(scaled ? 60 : 80, v_heads * ceil_div(p.block, 16) * ceil_div(p.head_dim_vo, 64));
  return r;
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
