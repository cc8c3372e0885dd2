// A work item of attention, for prefill and decode.
//
// A tile is `tile_queries` queries of one sequence times `unit_heads` query heads. Its rows are
// ordered by head, so that the rows that share a K head, and those that share a V head, are
// contiguous: one GEMM each per block of keys. `unit_heads` is a multiple of both group sizes, so
// it does not matter which of K and V has more heads. A work item is a tile and one split of its
// keys:
//
//   for each block of keys:
//     for each K head: pack it once; S = Q K^T, 32 rows at a time, in L1; online softmax,
//       P = exp(S - m); O *= exp(m_old - m)
//     for each V head: pack it once; O += P V, and in f32 d with it, in V's column of ones
//
// If few rows share a V head, as in decode, V is not packed (vector_decode.h), and with AMX K neither
// (amx_decode.h). In bf16, d is the sum of the rounded P, or of the unrounded P if V has scales.
//
// Scores and their max m are raw, q.k, and the softmax uses base 2: P = 2^((q.k - m) |sm_scale|
// log2(e)). With a soft cap, scores are tanh(q.k |sm_scale| / softcap), and softcap replaces
// |sm_scale|. With several splits, each item leaves (O, d, m), and a second pass merges them. Each
// byte of K and V is read once per item.
//
// With a window, the first block of a tile starts at the first key that one of its queries sees.
// Scores of keys before the window of a row become -inf.
#pragma once

#include "backend/cpu/attention/amx_decode.h"
#include "backend/cpu/attention/vector_decode.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kScoreRows = 32;  // rows of S computed at once
constexpr double kLog2E = 1.44269504088896340735992;
constexpr float kLargest = __FLT_MAX__;

// An attention call: its tensors and what follows from them.
struct Problem {
  const char* q;
  Cache k, v;
  char* out;
  float* lse;
  const int32_t* kv_lens;
  DType q_dtype, out_dtype;
  int64_t num_batches, num_queries;  // num_queries per batch; q and out are [batch][query][head][dim]
  int64_t kv_len, num_q_heads;
  int64_t stride_lse_batch, stride_lse_query, stride_lse_head;
  int64_t window;  // 0: none
  bool causal;
  bool kv_lens_per_query;  // kv_lens is [num_queries] of the only batch, else [num_batches]

  // Derived.
  float q_factor;  // the sign of sm_scale, or 0: scores are q_factor * q.k, so that they rank as scaled ones do
  bool capped;     // scores are tanh(cap_factor * q_factor * q.k)
  float cap_factor;
  double scale;            // of scores: |sm_scale|, or softcap
  float scale_log2;        // the same for base 2
  float least_difference;  // of scores whose weight is at least 2^-126, see Weight
  bool bf16_scores;        // Q K^T is a bf16 product
  bool bf16_values;        // P V is a bf16 product
  bool amx;
  bool i8_values;  // AMX decode multiplies V in i8
  bool widen_k;    // K is i8 or f8e4m3 and is converted to bf16 first
  bool widen_v;
  bool sum_d;  // d is summed separately from O: for lse if P is rounded to bf16, and if P includes V's scales
  int64_t q_heads_per_k_head, q_heads_per_v_head;
  int64_t ldq, num_v_panels, ldo;  // in elements
  int64_t divisor_column;          // the column of O that has d; in bf16, the first of 16 partial sums of d
  int64_t stride_k_panel, stride_v_panel;
  int64_t block;  // keys in a block
  bool one_prefetch_stream;

  DIFFQKV_INLINE int64_t num_visible_keys(int64_t batch, int64_t query) const {
    const int64_t index = kv_lens_per_query ? query : batch;
    const int64_t len = kv_lens ? kv_lens[index] : kv_len;
    return causal ? max_of(0, len - (num_queries - 1 - query)) : len;
  }

  // Size of the block that starts at `key`. Blocks start at multiples of the smaller of block and
  // page, except for the first one of a window, which ends there.
  DIFFQKV_INLINE int64_t block_keys(int64_t key, int64_t end) const {
    const int64_t unit = block_unit();
    const int64_t offset = key & (unit - 1);
    return min_of(end - key, offset ? unit - offset : block);
  }
  DIFFQKV_INLINE int64_t block_unit() const { return k.pages ? min_of(block, int64_t{1} << k.page_shift) : block; }
};

struct KeyRange {
  int64_t begin, end;
};

Cache make_cache(const AttentionParams& p, KvTensor tensor) {
  const bool is_v = tensor == KvTensor::v;
  const KvView& kv = is_v ? p.v : p.k;
  require_cache_type(is_v ? "attention: v" : "attention: k", kv.dtype);
  Cache r = {};
  static_cast<KvView&>(r) = kv;
  r.tensor = tensor;
  r.pages = p.pages;
  r.pages_shared = p.pages_shared;
  r.scaled = dtype_is_scaled(kv.dtype);
  const int64_t element = static_cast<int64_t>(dtype_size(kv.dtype));
  r.head_bytes = kv.head_dim * element;
  r.token_bytes = kv.num_heads * r.head_bytes;
  r.batch_bytes = kv.batch_stride * element;
  r.batch_scales_bytes = r.batch_bytes / r.head_bytes * 2;
  if (p.pages) {
    check_page_tokens("attention", p.page_tokens);
    r.page_shift = __builtin_ctzll(static_cast<unsigned long long>(p.page_tokens));
    r.page_scales_offset = page_elements_bytes(kv, p.page_tokens);
  } else if (r.scaled && !kv.scales && p.batch_size * p.kv_len > 0) {
    fail(ErrorCode::invalid_argument, "attention: %s has type %s, but %s is missing", is_v ? "v" : "k",
         dtype_name(kv.dtype), is_v ? "vScales" : "kScales");
  }
  return r;
}

// All fields except those that prefill and decode set differently. Checks kv_lens and types before
// any thread starts. Throws ERR_INVALID_ARGUMENT.
Problem make_problem(const AttentionParams& p) {
  Problem r = {};
  require_compute_type("attention: q", p.q_dtype);
  require_compute_type("attention: out", p.out_dtype);
  for (int64_t b = 0; p.kv_lens && b < p.batch_size; ++b) {
    if (p.kv_lens[b] < 0 || p.kv_lens[b] > p.kv_len) {
      fail(ErrorCode::invalid_argument, "kvLens[%lld] is %d; it must be from 0 to %lld, the kvLen of k and v",
           static_cast<long long>(b), p.kv_lens[b], static_cast<long long>(p.kv_len));
    }
  }
  r.q = static_cast<const char*>(p.q);
  r.k = make_cache(p, KvTensor::k);
  r.v = make_cache(p, KvTensor::v);
  r.out = static_cast<char*>(p.out);
  r.lse = p.lse;
  r.kv_lens = p.kv_lens;
  r.q_dtype = p.q_dtype;
  r.out_dtype = p.out_dtype;
  r.kv_len = p.kv_len;
  r.num_q_heads = p.num_q_heads;
  r.window = p.window;
  r.q_factor = p.sm_scale < 0 ? -1 : p.sm_scale == 0 ? 0 : 1;
  r.scale = __builtin_fabs(static_cast<double>(p.sm_scale));
  if (p.softcap > 0) {
    const double factor = r.scale / static_cast<double>(p.softcap);
    r.capped = true;
    r.cap_factor = static_cast<float>(factor < kLargest ? factor : kLargest);
    r.scale = static_cast<double>(p.softcap);
  }
  r.scale_log2 = static_cast<float>(r.scale * kLog2E < kLargest ? r.scale * kLog2E : kLargest);
  r.least_difference = -126 / r.scale_log2 > -kLargest ? -126 / r.scale_log2 : -kLargest;
  // A bf16 product needs both factors in bf16, or exact in it. P is rounded to bf16 only if out is
  // bf16.
  r.bf16_scores = kHasBf16Gemm && p.q_dtype == DType::bf16 && (p.k.dtype == DType::bf16 || r.k.scaled);
  r.bf16_values = kHasBf16Gemm && p.out_dtype == DType::bf16 && (p.v.dtype == DType::bf16 || r.v.scaled);
#if defined(__AVX512BF16__)
  r.amx = (r.bf16_scores || r.bf16_values) && use_amx();
  r.i8_values =
      r.amx && r.bf16_values && p.v.dtype == DType::i8 && p.v.head_dim % 64 == 0 && DIFFQKV_HAS_TILE_DOT_BYTES();
#endif
  r.widen_k = r.bf16_scores && r.k.scaled;
  r.widen_v = r.bf16_values && r.v.scaled;
  r.sum_d = r.v.scaled || (r.bf16_values && r.lse);
  r.q_heads_per_k_head = p.num_q_heads / p.k.num_heads;
  r.q_heads_per_v_head = p.num_q_heads / p.v.num_heads;
  r.ldq = r.bf16_scores ? round_up(p.k.head_dim, kPairStep) : p.k.head_dim;
  r.stride_k_panel = r.bf16_scores ? r.ldq / 2 * kPanel : round_up(p.k.head_dim, kPanel) * kPanel;
  r.num_v_panels = r.bf16_values ? ceil_div(p.v.head_dim, kPanel) : p.v.head_dim / kPanel + 1;
  r.divisor_column = r.bf16_values ? round_up(p.v.head_dim, kPanel) : p.v.head_dim;
  r.ldo = round_up(r.divisor_column + 1, kPanel);
  r.stride_v_panel = r.bf16_values ? kBlock / 2 * kPanel : kBlock * kPanel;
  r.block = kBlock;
  r.one_prefetch_stream = one_prefetch_stream();
  return r;
}

// The smallest number of query heads that consists of whole groups of K heads and of V heads: the
// least common multiple of the group sizes.
DIFFQKV_INLINE int64_t unit_heads(const Problem& p) {
  int64_t a = p.q_heads_per_k_head;
  int64_t b = p.q_heads_per_v_head;
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return p.q_heads_per_k_head / a * p.q_heads_per_v_head;
}

// ---- softmax

// 2^((s - base) scale), for s <= base: the weight of a score beside the largest one. It is 0 below
// 2^-126, and NaN stays NaN.
//
// The difference comes first. s * scale - base * scale in one FMA would keep the rounding error of
// base * scale, which exceeds the range of exponents if scores are of order 1e9.
//
// (s - base) scale = n + f with |f| <= 1/2, and 2^f is a polynomial of degree 5 (relative error 8e-8).
struct Weight {
  F32v base, scale, least;

  DIFFQKV_INLINE Weight(const Problem& p, float base)
      : base(set1(base)), scale(set1(p.scale_log2)), least(set1(p.least_difference)) {}

  DIFFQKV_INLINE F32v operator()(F32v s) const {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const F32v x = s - base;
    const F32v shifted = fma(x, scale, set1(kRound));
    const F32v n = shifted - kRound;
    const F32v f = fma(x, scale, -n);
    F32v poly = set1(1.32670e-3f);
    poly = fma(poly, f, set1(9.67546e-3f));
    poly = fma(poly, f, set1(5.550743e-2f));
    poly = fma(poly, f, set1(2.4022122e-1f));
    poly = fma(poly, f, set1(6.9314695e-1f));
    poly = fma(poly, f, set1(1.0f));
#if defined(__AVX512F__)
    return (F32v)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)least, _CMP_NLT_UQ), (__m512)poly,
                                        (__m512)n);
#else
    const F32v scaled = (F32v)((U32v)poly + ((U32v)shifted << 23));
    return x >= least ? scaled : x < least ? F32v{} : x;
#endif
  }
};

DIFFQKV_INLINE float max_lane(F32v v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

DIFFQKV_INLINE I32v lane_numbers() {
  I32v lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// The largest of count > 0 scores, ignoring NaN. The row is kBlock long.
DIFFQKV_INLINE float max_score(const float* s, int64_t count) {
  F32v best = set1(-kInfinity);
  F32v other = best;
  int64_t j = 0;
  for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
    best = max(load(s + j), best);
    other = max(load(s + j + kLanes), other);
  }
  best = max(other, best);
  if (j + kLanes <= count) {
    best = max(load(s + j), best);
    j += kLanes;
  }
  if (j < count) best = max(lane_numbers() < static_cast<int32_t>(count - j) ? load(s + j) : best, best);
  return max_lane(best);
}

// Sums of probabilities by lanes.
struct ProbabilitySums {
  F32v exact = {};   // before factors and rounding
  F32v stored = {};  // as stored, if they are bf16
};

#if defined(__AVX512BF16__)
// Stores two vectors of probabilities, and adds them to the sums.
DIFFQKV_INLINE void store_two(bf16* p, F32v first, F32v second, ProbabilitySums* sums) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  __builtin_memcpy(p, &rounded, sizeof(rounded));
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  sums->stored = (F32v)_mm512_dpbf16_ps((__m512)sums->stored, rounded, ones);
}
#endif

template <typename T>
DIFFQKV_INLINE void store_two(T* p, F32v first, F32v second, ProbabilitySums*) {
  store(p, first);
  store(p + kLanes, second);
}

// p = weight(s) for count keys, times their factors if given, then 0 up to `end`, a multiple of 2 kLanes.
template <typename T>
DIFFQKV_INLINE ProbabilitySums probabilities(const float* s, int64_t count, int64_t end, const Weight& weight,
                                             const float* factors, T* p) {
  ProbabilitySums sums;
  F32v others = {};  // the exact sum of every other vector, so that additions do not wait for each other
  int64_t j = 0;
  for (; j + 2 * kLanes <= count; j += 2 * kLanes) {
    const F32v x = weight(load(s + j));
    const F32v y = weight(load(s + j + kLanes));
    if (factors) {
      store_two(p + j, x * load(factors + j), y * load(factors + j + kLanes), &sums);
    } else {
      store_two(p + j, x, y, &sums);
    }
    sums.exact += x;
    others += y;
  }
  sums.exact += others;
  for (; j < end; j += 2 * kLanes) {
    F32v x[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t first = j + i * kLanes;
      const I32v seen = lane_numbers() < static_cast<int32_t>(count - first);
      x[i] = seen ? weight(load(s + first)) : F32v{};
      sums.exact += x[i];
      if (factors) x[i] = seen ? x[i] * load(factors + first) : x[i];
    }
    store_two(p + j, x[0], x[1], &sums);
  }
  return sums;
}

// Sets the first `count` probabilities to 0. The scale of a key that is not seen may be NaN.
template <typename T>
DIFFQKV_INLINE void clear(T* p, int64_t count) {
  if (count > 0) __builtin_memset(p, 0, static_cast<size_t>(count) * sizeof(T));
}

DIFFQKV_INLINE void scale_row(float* o, int64_t count, float factor) {
  for (int64_t j = 0; j < count; j += kLanes) store(o + j, load(o + j) * factor);
}

// ---- tile

// The rows of one work item, in scratch memory of one thread.
struct Tile {
  int64_t batch, first_query, num_queries, first_head, num_heads, num_rows;
  int64_t max_visible;    // largest of `visible`
  int64_t first_visible;  // smallest of `first`
  int64_t most_keys;      // largest number of keys that a query sees
  int64_t ones_keys;      // how many keys the column of ones in v_panels covers
  int64_t tile_rows;      // current configuration of the AMX tiles, see configure_tiles
  int32_t* first;         // [num_queries] the first key that each query sees
  int32_t* visible;       // [num_queries] the end of the keys that each query sees
  char* q;                // [num_rows][ldq], f32 or bf16
  uint32_t* query_pairs;  // the same as [ldq / 2][rows of the head] pairs for each K head, for AMX decode
  float* k_panels;        // [kBlock / 16][stride_k_panel]
  float* v_panels;        // [num_v_panels][stride_v_panel]
  float* s;               // [kScoreRows][kBlock]
  char* widened;          // [kBlock][dim] bf16: rows of one head of an i8 or f8e4m3 cache
  float* k_scales;        // [K heads of the tile][kBlock], if K has scales
  float* v_scales;        // [V heads of the tile][kBlock], if V has scales
  char* p;                // [num_rows][kBlock] f32, bf16 or fixed point; or [kBlock / 16][num_rows][2][16] pairs
  float* o;               // [num_rows][ldo]
  float* units;           // [num_rows] units of P in fixed point
  float* m;               // [num_rows]
  float* d;               // [num_rows] sums of P before rounding and scales, if sum_d

  // Sets the pointers. Returns the number of bytes that they need.
  int64_t lay_out(const Problem& problem, char* base, int64_t max_queries, int64_t max_heads) {
    int64_t bytes = 0;
    const int64_t rows = max_queries * max_heads;
    const auto reserve = [&]<typename T>(T*& to, int64_t count) DIFFQKV_LAMBDA {
      to = reinterpret_cast<T*>(base + bytes);
      bytes += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    };
    reserve(first, max_queries);
    reserve(visible, max_queries);
    reserve(q, rows * problem.ldq * (problem.bf16_scores ? 2 : 4));
    reserve(query_pairs, problem.amx ? rows * problem.ldq / 2 : 0);
    reserve(k_panels, kBlock / kPanel * problem.stride_k_panel);
    reserve(v_panels, problem.num_v_panels * problem.stride_v_panel);
    reserve(s, kScoreRows * kBlock);
    const int64_t widened_dim =
        max_of(problem.widen_k ? problem.k.head_dim : 0, problem.widen_v ? problem.v.head_dim : 0);
    reserve(widened, kBlock * widened_dim * 2);
    reserve(k_scales, problem.k.scaled ? max_heads / problem.q_heads_per_k_head * kBlock : 0);
    reserve(v_scales, problem.v.scaled ? max_heads / problem.q_heads_per_v_head * kBlock : 0);
    const int64_t decode_rows = problem.amx ? min_of(rows, max_heads * kMaxDecodeRows) : 0;
    reserve(p, kBlock * max_of(rows * (problem.bf16_values ? 2 : 4), decode_rows * 8));
    reserve(o, rows * problem.ldo);
    reserve(units, rows);
    reserve(m, rows);
    reserve(d, rows);
    return round_up(bytes, 4096);
  }

  // The keys that a query sees of the n from first_key on, counted from first_key.
  DIFFQKV_INLINE KeyRange seen(int64_t query, int64_t first_key, int64_t n) const {
    const int64_t begin = max_of(first[query] - first_key, 0);
    const int64_t end = min_of(visible[query] - first_key, n);
    return begin < end ? KeyRange{begin, end} : KeyRange{0, 0};
  }
};

// The keys that the m rows from `row` on see of the n keys from first_key on. Returns the largest end.
DIFFQKV_INLINE int64_t rows_seen(const Tile& t, int64_t row, int64_t m, int64_t first_key, int64_t n, KeyRange* seen) {
  int64_t query = row % t.num_queries;
  int64_t most = 0;
  for (int64_t i = 0; i < m; ++i) {
    seen[i] = t.seen(query, first_key, n);
    most = max_of(most, seen[i].end);
    query = query + 1 == t.num_queries ? 0 : query + 1;
  }
  return most;
}

// Whether a query sees one of n keys. With a window, queries of different lengths that share a cache
// may leave a gap between their keys.
DIFFQKV_INLINE bool sees_any(const Problem& p, const Tile& t, int64_t first_key, int64_t n) {
  if (p.window == 0) return true;
  for (int64_t i = 0; i < t.num_queries; ++i) {
    if (t.seen(i, first_key, n).end > 0) return true;
  }
  return false;
}

// Whether every query sees all n keys.
DIFFQKV_INLINE bool all_see_all(const Tile& t, int64_t first_key, int64_t n) {
  for (int64_t i = 0; i < t.num_queries; ++i) {
    if (t.first[i] > first_key || t.visible[i] < first_key + n) return false;
  }
  return true;
}

// The weight of a score beside the largest one.
DIFFQKV_INLINE float weight_of(const Problem& p, float score, float top) { return Weight(p, top)(set1(score))[0]; }

// Updates the running max of a row with `count` more scores. Returns the base of the exponents: m,
// or 0 while m is -inf.
DIFFQKV_INLINE float update_max(const Problem& p, const float* s, int64_t count, float* m, float* d, float* o,
                                int64_t num_o) {
  const float top = max_score(s, count);
  if (top > *m) {
    if (*m > -kInfinity) {
      const float factor = weight_of(p, *m, top);
      *d *= factor;
      scale_row(o, num_o, factor);
    }
    *m = top;
  }
  return *m > -kInfinity ? *m : 0;
}

// Whether so few rows share a K or V head that amx_decode.h computes the tile.
DIFFQKV_INLINE bool uses_amx_decode(const Problem& p, const Tile& t) {
  return p.amx && p.bf16_scores && p.bf16_values && p.k.head_dim % 32 == 0 && p.k.head_dim <= kMaxDecodeDim &&
         p.v.head_dim % 32 == 0 && p.v.head_dim <= kMaxDecodeDim &&
         p.q_heads_per_k_head * t.num_queries <= kMaxDecodeRows &&
         2 * p.q_heads_per_v_head * t.num_queries <= kMaxDecodeRows;
}

// Whether so few rows share a V head that vector_decode.h multiplies it. uses_amx_decode decides
// first.
DIFFQKV_INLINE bool uses_vector_decode(const Problem& p, const Tile& t) {
  return t.num_queries == 1 && p.q_heads_per_v_head <= kMaxVectorRows && p.v.head_dim % 32 == 0;
}

void load_queries(const Problem& p, Tile& t) {
  visit(p.q_dtype, [&](auto type) DIFFQKV_LAMBDA {
    using T = decltype(type);
    for (int64_t i = 0; i < t.num_queries; ++i) {
      const int64_t query = p.num_queries * t.batch + t.first_query + i;
      const T* heads = reinterpret_cast<const T*>(p.q) + (query * p.num_q_heads + t.first_head) * p.k.head_dim;
      for (int64_t h = 0; h < t.num_heads; ++h) {
        const T* from = heads + h * p.k.head_dim;
        const int64_t row = h * t.num_queries + i;
        for (int64_t d = 0; d < p.ldq; d += kLanes) {
          const int64_t count = max_of(0, min_of(p.k.head_dim - d, kLanes));
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
  if (!uses_amx_decode(p, t)) return;
  const int64_t rows_per_head = p.q_heads_per_k_head * t.num_queries;
  const int64_t num_pairs = p.ldq / 2;
  for (int64_t row = 0; row < t.num_rows; row += rows_per_head) {
    pack_query_pairs(reinterpret_cast<const uint32_t*>(t.q) + row * num_pairs, num_pairs, rows_per_head, num_pairs,
                     t.query_pairs + row * num_pairs);
  }
#endif
}

// tanh(x) within 3 ulp, by the polynomial of the Cephes library near 0. NaN stays NaN.
DIFFQKV_INLINE F32v tanh(F32v x) {
  const F32v size = (F32v)((U32v)x & 0x7fffffffu);
  const F32v square = x * x;
  F32v poly = set1(-5.70498872745e-3f);
  poly = fma(poly, square, set1(2.06390887954e-2f));
  poly = fma(poly, square, set1(-5.37397155531e-2f));
  poly = fma(poly, square, set1(1.33314422036e-1f));
  poly = fma(poly, square, set1(-3.33332819422e-1f));
  const F32v near = fma(poly * square, x, x);
  const F32v far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  const F32v result = size < 0.625f ? (F32v)((U32v)near & 0x7fffffffu) : far;
  return (F32v)((U32v)result | ((U32v)x & 0x80000000u));
}

DIFFQKV_INLINE void cap_scores(const Problem& p, float* s, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) store(s + j, tanh(load(s + j) * p.cap_factor));
}

// Computes the scores of a block. Calls on_row(row, s, seen, all) for every row whose P is read: it
// sees the keys `seen`, and P of the first `all` keys is read. Scores before seen.begin are -inf.
template <typename OnRow>
DIFFQKV_INLINE void score_block(const Problem& p, Tile& t, int64_t first_key, int64_t n, Prefetch& prefetch,
                                const OnRow& on_row) {
  const int64_t rows_per_head = p.q_heads_per_k_head * t.num_queries;
  const int64_t first_head = t.first_head / p.q_heads_per_k_head;
  const bool decode = uses_amx_decode(p, t);
  const bool whole = all_see_all(t, first_key, n);
  // Whether rows are multiplied by V in the same groups, which read P of `most` keys only.
  const bool same_groups = t.num_queries % kScoreRows == 0;
  const KeyBlock keys(p.k, t.batch, first_key, n);
  if (p.k.scaled) load_scales(p.k, t.batch, first_key, n, first_head, t.num_rows / rows_per_head, t.k_scales);
  for (int64_t first_row = 0; first_row < t.num_rows; first_row += rows_per_head) {
    HeadRows rows = keys.head(first_head + first_row / rows_per_head);
    const float* scales = p.k.scaled ? t.k_scales + first_row / rows_per_head * kBlock : nullptr;
#if defined(__AVX512BF16__)
    if (p.widen_k) rows = widened(p.k.dtype, rows, n, p.k.head_dim, &t.widened);
    if (decode) {  // all rows of the head at once: kMaxDecodeRows is less than kScoreRows
      const int64_t v_rows = p.q_heads_per_v_head * t.num_queries;
      configure_decode_tiles(rows_per_head, p.i8_values ? min_of(8 * v_rows, 16) : 2 * v_rows, &t.tile_rows);
      decode_scores(rows, n, p.k.head_dim, t.query_pairs + first_row * p.ldq / 2, rows_per_head, t.s, kBlock, prefetch);
    }
#endif
    for (int64_t j = 0; j < n && !decode; j += kPanel) {
      float* panel = t.k_panels + j / kPanel * p.stride_k_panel;
      const int64_t count = min_of(n - j, kPanel);
      prefetch.advance(prefetch.per_panel);
#if defined(__AVX512BF16__)
      if (p.bf16_scores) {
        pack_k_panel_vnni(rows.from(j), count, p.k.head_dim, panel);
        continue;
      }
#endif
      visit_cache(p.k.dtype, [&](auto type) DIFFQKV_LAMBDA {
        pack_k_panel<decltype(type)>(rows.from(j), count, p.k.head_dim, panel);
      });
    }
    for (int64_t r = first_row; r < first_row + rows_per_head; r += kScoreRows) {
      const int64_t m = min_of(first_row + rows_per_head - r, kScoreRows);
      KeyRange seen_by_row[kScoreRows];
      const int64_t most = whole ? n : rows_seen(t, r, m, first_key, n, seen_by_row);
      if (most > 0 && !decode) {
        Gemm g = {};
        g.a = t.q + r * p.ldq * (p.bf16_scores ? 2 : 4);
        g.b = t.k_panels;
        g.c = t.s;
        g.m = m;
        g.num_panels = ceil_div(most, kPanel);
        g.k = p.ldq;
        g.lda = p.ldq;
        g.stride_panel = p.stride_k_panel;
        g.ldc = kBlock;
        if (p.bf16_scores) {
          gemm_bf16(g, p.amx ? &t.tile_rows : nullptr);
        } else {
          gemm_f32(g);
        }
      }
      const int64_t all = same_groups ? most : n;
      for (int64_t i = 0; i < m && all > 0; ++i) {
        prefetch.advance(prefetch.per_row);
        float* s = t.s + i * kBlock;
        const KeyRange seen = whole ? KeyRange{0, n} : seen_by_row[i];
        for (int64_t j = 0; scales && j < seen.end; j += kLanes) store(s + j, load(s + j) * load(scales + j));
        if (p.capped) cap_scores(p, s, seen.end);
        for (int64_t j = 0; j < seen.begin; ++j) s[j] = -kInfinity;
        on_row(r + i, s, seen, all);
      }
    }
  }
}

// Whether a packed block of V contains an infinity or NaN. Then 0 * V is NaN, and a query must not
// multiply keys that it does not see by their P of 0.
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

// o += p V over only the keys `seen` of the packed V, one key at a time.
void accumulate_row_exactly(const Problem& p, const Tile& t, int64_t row, KeyRange seen) {
  float* o = t.o + row * p.ldo;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    const float weight = p.bf16_values ? load1(reinterpret_cast<const bf16*>(t.p) + row * kBlock + j)
                                       : reinterpret_cast<const float*>(t.p)[row * kBlock + j];
    for (int64_t d = 0; d < p.num_v_panels * kPanel; ++d) {
      const float* panel = t.v_panels + d / kPanel * p.stride_v_panel;
      o[d] += weight * (p.bf16_values
                            ? load1(reinterpret_cast<const bf16*>(panel + j / 2 * kPanel) + d % kPanel * 2 + j % 2)
                            : panel[j * kPanel + d % kPanel]);
    }
  }
}

// Loads V's scales of the n keys from first_key on. P is multiplied by them.
DIFFQKV_INLINE void load_value_scales(const Problem& p, Tile& t, int64_t first_key, int64_t n) {
  if (!p.v.scaled) return;
  load_scales(p.v, t.batch, first_key, n, t.first_head / p.q_heads_per_v_head, t.num_heads / p.q_heads_per_v_head,
              t.v_scales);
}

DIFFQKV_INLINE const float* value_scales(const Problem& p, const Tile& t, int64_t row) {
  return p.v.scaled ? t.v_scales + row / (p.q_heads_per_v_head * t.num_queries) * kBlock : nullptr;
}

// O += P V for the n keys from first_key on, by vector_decode.h.
DIFFQKV_INLINE void vector_value_block(const Problem& p, Tile& t, int64_t first_key, int64_t n, Prefetch& prefetch) {
  const KeyBlock keys(p.v, t.batch, first_key, n);
  const int64_t rows_per_head = p.q_heads_per_v_head;
  const int64_t first_head = t.first_head / rows_per_head;
  const int64_t row_bytes = kBlock * (p.bf16_values ? 2 : 4);
  for (int64_t row = 0; row < t.num_rows; row += rows_per_head) {
    HeadRows rows = keys.head(first_head + row / rows_per_head);
    prefetch.advance(prefetch.per_head);
#if defined(__AVX512BF16__)
    if (p.widen_v) rows = widened(p.v.dtype, rows, n, p.v.head_dim, &t.widened);
#endif
    const HeadValues values = {rows, n, t.p + row * row_bytes, t.o + row * p.ldo, p.ldo, p.divisor_column};
    visit_rows(rows_per_head, [&]<int kRows>() DIFFQKV_LAMBDA {
#if defined(__AVX512BF16__)
      if (p.bf16_values) {
        add_value_pairs_of_rows<kRows>(values, p.v.head_dim, prefetch);
        return;
      }
#endif
      visit_cache(p.v.dtype, [&](auto type) DIFFQKV_LAMBDA {
        add_values_of_rows<decltype(type), kRows>(values, p.v.head_dim, prefetch);
      });
    });
  }
}

// O += P V for the n keys from first_key on.
DIFFQKV_INLINE void value_block(const Problem& p, Tile& t, int64_t first_key, int64_t n, Prefetch& prefetch) {
  const int64_t rows_per_head = p.q_heads_per_v_head * t.num_queries;
  const int64_t first_head = t.first_head / p.q_heads_per_v_head;
  const KeyBlock keys(p.v, t.batch, first_key, n);
  const bool whole = all_see_all(t, first_key, n);
  for (int64_t first_row = 0; first_row < t.num_rows; first_row += rows_per_head) {
    HeadRows rows = keys.head(first_head + first_row / rows_per_head);
    const bool ones = n != t.ones_keys;
    t.ones_keys = n;
#if defined(__AVX512BF16__)
    if (p.widen_v) rows = widened(p.v.dtype, rows, n, p.v.head_dim, &t.widened);
#endif
    for (int64_t j = 0; j < n; j += rows.part_keys()) {
      const int64_t count = min_of(n - j, rows.part_keys());
#if defined(__AVX512BF16__)
      if (p.bf16_values) {
        pack_v_vnni(rows.from(j), count, p.v.head_dim, t.v_panels + j / 2 * kPanel, p.stride_v_panel, prefetch);
        continue;
      }
#endif
      visit_cache(p.v.dtype, [&](auto type) DIFFQKV_LAMBDA {
        pack_v<decltype(type)>(rows.from(j), count, p.v.head_dim, t.v_panels + j * kPanel, p.stride_v_panel, ones,
                               prefetch);
      });
    }
    prefetch.advance(prefetch.per_head);
    const bool exactly = !whole && has_nonfinite(p, t, n);
    for (int64_t r = first_row; r < first_row + rows_per_head; r += kScoreRows) {
      const int64_t m = min_of(first_row + rows_per_head - r, kScoreRows);
      KeyRange seen[kScoreRows];
      const int64_t most = whole ? n : rows_seen(t, r, m, first_key, n, seen);
      for (int64_t i = 0; i < m && exactly; ++i) accumulate_row_exactly(p, t, r + i, seen[i]);
      if (most <= 0 || exactly) continue;
      Gemm g = {};
      g.a = t.p + r * kBlock * (p.bf16_values ? 2 : 4);
      g.b = t.v_panels;
      g.c = t.o + r * p.ldo;
      g.m = m;
      g.num_panels = p.num_v_panels;
      g.k = p.bf16_values ? round_up(most, kPairStep) : most;
      g.lda = kBlock;
      g.stride_panel = p.stride_v_panel;
      g.ldc = p.ldo;
      g.accumulate = true;
      if (p.bf16_values) {
        gemm_bf16(g, p.amx ? &t.tile_rows : nullptr);
      } else {
        gemm_f32(g);
      }
    }
  }
}

enum class PrefetchOf { keys, keys_and_values };

// The prefetch of the block at `begin`, which follows the current one, up to end_key.
Prefetch prefetch_block(const Problem& p, const Tile& t, int64_t begin, int64_t end_key, PrefetchOf tensors) {
  const int64_t n = min_of(end_key - begin, p.block);
  Prefetch r;
  if (n <= 0) return r;
  r.one_stream = p.one_prefetch_stream;
  const auto range = [&](const Cache& cache) DIFFQKV_LAMBDA {
    if (cache.scaled) {
      const char* scales = reinterpret_cast<const char*>(cache.token_scales(t.batch, begin));
      for (int64_t i = 0; i < n * cache.num_heads * 2; i += 64) __builtin_prefetch(scales + i, 0, 2);
    }
    return Prefetch::Range{cache.token(t.batch, begin), n * cache.token_bytes};
  };
  r.start(range(p.k));
  const bool values = tensors == PrefetchOf::keys_and_values;
  if (values) r.next = range(p.v);
  // The share of the steps that each kind of work starts, in percent, divided by how often that
  // work is done. The percentages are from measurements.
  const int64_t steps = (n * p.k.token_bytes + r.next.bytes) / r.step_bytes();
  const int64_t k_heads = t.num_heads / p.q_heads_per_k_head;
  const int64_t v_heads = t.num_heads / p.q_heads_per_v_head;
  const auto share = [&](int64_t percent, int64_t times)
                         DIFFQKV_LAMBDA { return steps * Prefetch::kStepUnits * percent / (100 * times); };
  const bool amx = uses_amx_decode(p, t);
  const bool scaled = amx && p.v.scaled;
  const bool vector = !amx && uses_vector_decode(p, t);
  r.per_panel = share(!values ? 40 : scaled || vector ? 10 : amx ? 5 : 3, k_heads * ceil_div(p.block, kPanel));
  r.per_row = share(!values ? 60 : scaled ? 30 : vector ? 20 : amx ? 15 : 12, t.num_rows);
  r.per_head = share(vector ? 5 : 25, v_heads);
  r.per_value = share(vector ? 65 : 60, v_heads * p.block);
  r.per_value_tile = share(scaled ? 60 : 80, v_heads * ceil_div(p.block, 16) * ceil_div(p.v.head_dim, 64));
  return r;
}

// ---- work item

#if defined(__AVX512BF16__)
// The column of the divisor in a row of O as AMX decode computes it. decode_values leaves even
// dims, the divisor, odd dims; decode_values_i8 leaves the dims by d % 4, then the divisor.
DIFFQKV_INLINE int64_t amx_divisor_column(const Problem& p) { return p.i8_values ? p.v.head_dim : p.v.head_dim / 2; }

// Brings such a row into the order of o.
DIFFQKV_INLINE void reorder_row(const Problem& p, float* o) {
  alignas(64) float parts[2 * kMaxDecodeDim];
  __builtin_memcpy(parts, o, static_cast<size_t>(p.ldo * 4));
  const int64_t count = p.i8_values ? 4 : 2;
  const int64_t stride = p.i8_values ? p.v.head_dim / 4 : p.ldo / 2;
  for (int64_t d = 0; d < p.v.head_dim; ++d) o[d] = parts[d % count * stride + d / count];
  o[p.divisor_column] = parts[amx_divisor_column(p)];
}

// P of one row and block, times V's scales: as pairs of bf16 for decode_values, or as fixed point
// for decode_values_i8. Overwrites the scores s. Adds to d and to the divisor.
DIFFQKV_INLINE void decode_probabilities(const Problem& p, Tile& t, int64_t row, float* s, KeyRange keys, int64_t all) {
  float* o = t.o + row * p.ldo;
  const int64_t count = keys.end;
  const float base = count > 0 ? update_max(p, s, count, &t.m[row], &t.d[row], o, p.ldo) : 0;
  const Weight weight(p, base);
  const float* factors = value_scales(p, t, row);
  uint32_t* pairs = reinterpret_cast<uint32_t*>(t.p) + row * 32;
  F32v total = {};
  F32v rounded = {};
  __m512i top = _mm512_setzero_si512();
  for (int64_t j = 0; j < all; j += kLanes) {
    F32v x = {};
    if (j < count) {
      const I32v lane = lane_numbers() + static_cast<int32_t>(j);
      const I32v seen = (lane >= static_cast<int32_t>(keys.begin)) & (lane < static_cast<int32_t>(count));
      x = weight(load(s + j));
      x = seen ? x : F32v{};
      total += x;
      if (factors) x = seen ? x * load(factors + j) : x;
    }
    if (p.i8_values) {
      store(s + j, x);
      top = _mm512_max_epu32(top, _mm512_and_si512((__m512i)x, _mm512_set1_epi32(0x7fffffff)));
    } else {
      rounded += store_pairs(pairs + j / 16 * t.num_rows * 32, x);
    }
  }
  if (p.i8_values) t.units[row] = store_fixed(s, all, top, reinterpret_cast<int32_t*>(t.p) + row * kBlock);
  if (p.sum_d) t.d[row] += sum(total);
  o[amx_divisor_column(p)] += sum(factors ? total : rounded);
}

// `attend` by AMX decode. Returns whether O is right. It is not if V is not finite, because such a
// V spoils its neighbors here, or if fixed point would lose precision.
bool attend_amx_decode(const Problem& p, Tile& t, int64_t begin, int64_t end, bool prefetch) {
  const int64_t v_rows = p.q_heads_per_v_head * t.num_queries;
  int64_t n = 0;
  for (int64_t key = begin; key < end; key += n) {
    n = p.block_keys(key, end);
    if (!sees_any(p, t, key, n)) continue;
    Prefetch next;
    if (prefetch) next = prefetch_block(p, t, key + n, end, PrefetchOf::keys_and_values);
    load_value_scales(p, t, key, n);
    if (p.i8_values &&
        !scales_in_range(p.v, t.batch, key, n, t.first_head / p.q_heads_per_v_head, t.num_heads / p.q_heads_per_v_head))
      return false;
    score_block(p, t, key, n, next, [&](int64_t row, float* s, KeyRange seen, int64_t all) DIFFQKV_LAMBDA {
      decode_probabilities(p, t, row, s, seen, all);
    });
    const KeyBlock keys(p.v, t.batch, key, n);
    for (int64_t row = 0; row < t.num_rows; row += v_rows) {
      HeadRows rows = keys.head(t.first_head / p.q_heads_per_v_head + row / v_rows);
      float* o = t.o + row * p.ldo;
      if (p.i8_values) {
        decode_values_i8(rows, n, p.v.head_dim, reinterpret_cast<const int32_t*>(t.p) + row * kBlock, t.units + row,
                         v_rows, o, p.ldo, next);
        continue;
      }
      if (p.widen_v) rows = widened(p.v.dtype, rows, n, p.v.head_dim, &t.widened);
      decode_values(rows, n, p.v.head_dim, reinterpret_cast<const uint32_t*>(t.p) + row * 32, t.num_rows * 32, o, p.ldo,
                    next);
    }
  }
  F32v finite = {};
  for (int64_t row = 0; row < t.num_rows; ++row) {
    float* o = t.o + row * p.ldo;
    reorder_row(p, o);
    for (int64_t j = 0; j < p.v.head_dim; j += kLanes) finite += load(o + j) * 0;
  }
  return sum(finite) == 0;
}
#endif

DIFFQKV_INLINE void clear_rows(const Problem& p, Tile& t) {
  __builtin_memset(t.o, 0, static_cast<size_t>(t.num_rows * p.ldo * 4));
  for (int64_t i = 0; i < t.num_rows; ++i) {
    t.m[i] = -kInfinity;
    t.d[i] = 0;
  }
}

// Attention of the tile's rows over keys [begin, end). Fills t.o and t.m, and t.d if sum_d.
void attend(const Problem& p, Tile& t, int64_t begin, int64_t end, bool prefetch) {
  load_queries(p, t);
  clear_rows(p, t);
#if defined(__AVX512BF16__)
  if (uses_amx_decode(p, t)) {
    if (attend_amx_decode(p, t, begin, end, prefetch)) return;
    clear_rows(p, t);
  }
#endif
  const bool vector_decode = uses_vector_decode(p, t);
  int64_t n = 0;
  for (int64_t key = begin; key < end; key += n) {
    n = p.block_keys(key, end);
    if (!sees_any(p, t, key, n)) continue;
    Prefetch next;
    if (prefetch) next = prefetch_block(p, t, key + n, end, PrefetchOf::keys_and_values);
    load_value_scales(p, t, key, n);
    score_block(p, t, key, n, next, [&](int64_t row, const float* s, KeyRange seen, int64_t all) DIFFQKV_LAMBDA {
      const int64_t count = seen.end;
      float* o = t.o + row * p.ldo;
      const float base = count > 0 ? update_max(p, s, count, &t.m[row], &t.d[row], o, p.ldo) : 0;
      const Weight weight(p, base);
      const int64_t padded = round_up(all, kPairStep);
      const float* factors = value_scales(p, t, row);
      ProbabilitySums sums;
#if defined(__AVX512BF16__)
      if (p.bf16_values) {
        bf16* to = reinterpret_cast<bf16*>(t.p) + row * kBlock;
        sums = probabilities(s, count, padded, weight, factors, to);
        if (factors) clear(to, seen.begin);
        store(o + p.divisor_column, load(o + p.divisor_column) + sums.stored);
      } else
#endif
      {
        float* to = reinterpret_cast<float*>(t.p) + row * kBlock;
        sums = probabilities(s, count, padded, weight, factors, to);
        if (factors) clear(to, seen.begin);
      }
      if (p.sum_d) t.d[row] += sum(sums.exact);
    });
    if (vector_decode) {
      vector_value_block(p, t, key, n, next);
    } else {
      value_block(p, t, key, n, next);
    }
  }
  for (int64_t row = 0; row < t.num_rows; ++row) {
    float* o = t.o + row * p.ldo;
#if defined(__AVX512BF16__)
    if (p.bf16_values && vector_decode) restore_dims(o, p.v.head_dim);
    if (p.bf16_values) o[p.divisor_column] = sum(load(o + p.divisor_column));
#endif
    if (p.v.scaled) o[p.divisor_column] = t.d[row];
  }
}

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
