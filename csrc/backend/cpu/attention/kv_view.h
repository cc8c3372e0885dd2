// The CPU's view of K or V: one contiguous tensor, or pages named by a table, with elements of any
// cache type and, for i8 and f8e4m3, scales.
//
// Attention reads keys in blocks. A block starts at a multiple of the smaller of block size and page
// size, and one of these divides the other. So a block is inside one page, or it consists of whole
// pages, which are its parts. The first block of a window may start anywhere and is inside one page.
#pragma once

#include "backend/cpu/simd.h"
#include "backend/error.h"
#include "backend/ops.h"

namespace diffqkv::cpu::DIFFQKV_ISA {
namespace {

constexpr int64_t kBlockShift = 7;
constexpr int64_t kBlock = 1 << kBlockShift;  // largest number of keys in a block
constexpr int64_t kMinPageTokens = 32;
constexpr int64_t kMaxPageTokens = 128;

// K or V of all sequences of a call.
struct Cache : KvView {
  KvTensor tensor;
  const KvPage* const* pages;  // null if contiguous
  bool pages_shared;
  bool scaled;
  int64_t head_bytes, token_bytes;
  int64_t batch_bytes, batch_scales_bytes;  // from sequence to sequence, if contiguous
  int64_t page_shift, page_scales_offset;   // if paged; page_scales_offset is in bytes

  DIFFQKV_INLINE const char* page(int64_t batch, int64_t key) const {
    const KvPage& page = pages[pages_shared ? 0 : batch][key >> page_shift];
    return static_cast<const char*>(tensor == KvTensor::v ? page.v : page.k) + page_offset;
  }
  DIFFQKV_INLINE int64_t key_in_page(int64_t key) const { return key & ((int64_t{1} << page_shift) - 1); }

  // Row `key` of head 0.
  DIFFQKV_INLINE const char* token(int64_t batch, int64_t key) const {
    if (!pages) return static_cast<const char*>(data) + batch * batch_bytes + key * token_bytes;
    return page(batch, key) + key_in_page(key) * token_bytes;
  }
  DIFFQKV_INLINE const bf16* token_scales(int64_t batch, int64_t key) const {
    const char* at =
        pages ? page(batch, key) + page_scales_offset : static_cast<const char*>(scales) + batch * batch_scales_bytes;
    return reinterpret_cast<const bf16*>(at) + (pages ? key_in_page(key) : key) * num_heads;
  }
};

// kv_append and kv_gather use this check too. Throws ERR_INVALID_ARGUMENT.
DIFFQKV_INLINE void check_page_tokens(const char* name, int64_t page_tokens) {
  if (page_tokens < kMinPageTokens || page_tokens > kMaxPageTokens || (page_tokens & (page_tokens - 1)) != 0) {
    fail(ErrorCode::invalid_argument, "%s: page_tokens is %lld; it must be 32, 64 or 128", name,
         static_cast<long long>(page_tokens));
  }
}

// Bytes of the elements of one layer in a page. The layer's scales follow them.
DIFFQKV_INLINE int64_t page_elements_bytes(const KvView& kv, int64_t page_tokens) {
  return page_tokens * kv.num_heads * kv.head_dim * static_cast<int64_t>(dtype_size(kv.dtype));
}

// Rows of one head, contiguous in steps of stride_bytes: [token][head][dim] from some token on.
struct Rows {
  const char* data;
  int64_t stride_bytes;  // from token to token
};

// The rows of one head in a block of keys.
struct HeadRows {
  const char* const* parts;  // the first row of each part, at head 0
  int64_t part_shift, head_offset, stride_bytes;

  DIFFQKV_INLINE int64_t part_keys() const { return int64_t{1} << part_shift; }
  // The rows from key j to the end of its part.
  DIFFQKV_INLINE Rows from(int64_t j) const {
    return {parts[j >> part_shift] + (j & (part_keys() - 1)) * stride_bytes + head_offset, stride_bytes};
  }
};

// The n keys from first_key on.
struct KeyBlock {
  const char* parts[kBlock / kMinPageTokens];
  int64_t part_shift, head_bytes, token_bytes;

  DIFFQKV_INLINE KeyBlock(const Cache& cache, int64_t batch, int64_t first_key, int64_t n)
      : part_shift(cache.pages ? cache.page_shift : kBlockShift),
        head_bytes(cache.head_bytes),
        token_bytes(cache.token_bytes) {
    for (int64_t j = 0; j < n; j += int64_t{1} << part_shift) {
      parts[j >> part_shift] = cache.token(batch, first_key + j);
    }
  }
  DIFFQKV_INLINE HeadRows head(int64_t index) const { return {parts, part_shift, index * head_bytes, token_bytes}; }
};

// to[h * kBlock + j] = scale of key first_key + j and head first_head + h. The n keys are one
// block.
DIFFQKV_INLINE void load_scales(const Cache& cache, int64_t batch, int64_t first_key, int64_t n, int64_t first_head,
                                int64_t num_heads, float* to) {
  const int64_t part = cache.pages ? int64_t{1} << cache.page_shift : kBlock;
  for (int64_t begin = 0; begin < n; begin += part) {
    const bf16* from = cache.token_scales(batch, first_key + begin) + first_head;
    const int64_t end = min_of(begin + part, n);
    int64_t h = 0;
    for (; h + kLanes <= num_heads && kLanes == 16; h += kLanes) {  // 16 keys by 16 heads at a time
      alignas(64) float scales[16 * 16], transposed[16 * 16];
      for (int64_t j = begin; j < end; j += 16) {
        const int64_t count = min_of(end - j, 16);
        for (int64_t i = 0; i < count; ++i) store(scales + 16 * i, load(from + (j - begin + i) * cache.num_heads + h));
        transpose_words(reinterpret_cast<const char*>(scales), 64, transposed);
        for (int64_t i = 0; i < 16; ++i) store(to + (h + i) * kBlock + j, load(transposed + 16 * i));
      }
    }
    for (; h < num_heads; ++h) {
      for (int64_t j = begin; j < end; ++j) {
        to[h * kBlock + j] = bit_cast<float>(static_cast<uint32_t>(from[(j - begin) * cache.num_heads + h].bits) << 16);
      }
    }
  }
}

#if defined(__AVX512BF16__)
// Converts 32 elements to bf16. The conversion is exact.
DIFFQKV_INLINE __m512i widen(const int8_t* x) {
  const auto load16 = [&](int at) DIFFQKV_LAMBDA {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + at))));
  };
  return (__m512i)_mm512_cvtne2ps_pbh(load16(16), load16(0));
}

DIFFQKV_INLINE __m512i widen(const f8e4m3* x) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m512i bits = _mm512_cvtepi8_epi16(bytes);
  __m512i value = _mm512_and_si512(_mm512_slli_epi16(bits, 4), _mm512_set1_epi16(static_cast<int16_t>(0x87f0)));
  value = _mm512_add_epi16(value, _mm512_set1_epi16(120 << 7));
  // What a denormal needs added: i units of 2^-9 have the bf16 bits `bits`.
  const auto extra = [](int i, int bits) DIFFQKV_LAMBDA { return static_cast<int16_t>(bits - (120 << 7) - (i << 4)); };
  const __m512i denormal_offsets =
      _mm512_castsi128_si512(_mm_setr_epi16(extra(0, 0), extra(1, 0x3b00), extra(2, 0x3b80), extra(3, 0x3bc0),
                                            extra(4, 0x3c00), extra(5, 0x3c20), extra(6, 0x3c40), extra(7, 0x3c60)));
  value = _mm512_mask_add_epi16(value, _mm512_testn_epi16_mask(bits, _mm512_set1_epi16(0x78)), value,
                                _mm512_permutexvar_epi16(bits, denormal_offsets));
  const __m256i all = _mm256_set1_epi8(0x7f);
  const __mmask32 nan = _mm256_cmpeq_epi8_mask(_mm256_and_si256(bytes, all), all);
  return _mm512_mask_mov_epi16(value, nan, _mm512_set1_epi16(0x7fc0));
}

template <typename T>
DIFFQKV_INLINE void widen_rows(const HeadRows& rows, int64_t n, int64_t head_dim, char* to) {
  const int64_t whole = head_dim / 32 * 32;
  const __mmask32 rest = (1u << (head_dim - whole)) - 1;
  for (int64_t first = 0; first < n; first += rows.part_keys()) {
    const Rows part = rows.from(first);
    const char* row = part.data;
    for (int64_t j = min_of(n - first, rows.part_keys()); j > 0; --j, row += part.stride_bytes, to += 2 * head_dim) {
      const T* x = reinterpret_cast<const T*>(row);
      for (int64_t d = 0; d < whole; d += 32) _mm512_storeu_si512(to + 2 * d, widen(x + d));
      if (rest) {
        alignas(32) T last[32];
        _mm256_store_si256(reinterpret_cast<__m256i*>(last), _mm256_maskz_loadu_epi8(rest, x + whole));
        _mm512_mask_storeu_epi16(to + 2 * whole, rest, widen(last));
      }
    }
  }
}

// Converts n rows of i8 or f8e4m3 to bf16, and stores them contiguously at *to.
DIFFQKV_INLINE HeadRows widened(DType dtype, const HeadRows& rows, int64_t n, int64_t head_dim, char* const* to) {
  if (dtype == DType::i8) {
    widen_rows<int8_t>(rows, n, head_dim, *to);
  } else {
    widen_rows<f8e4m3>(rows, n, head_dim, *to);
  }
  return {to, kBlockShift, 0, 2 * head_dim};
}
#endif

// Prefetches the next block of K and V, a few cache lines with every piece of work on the current
// block. Memory must be busy all the time, and a burst would fill the core's line fill buffers and
// stall it. The order in which heads are read does not matter.
//
// A range is read as one stream or as four parallel ones, see one_prefetch_stream.
struct Prefetch {
  static constexpr int64_t kStepUnits = 256;
  struct Range {
    const char* data = nullptr;
    int64_t bytes = 0;
  };
  bool one_stream = false;
  const char* at = nullptr;   // position of the first stream
  const char* end = nullptr;  // end of the first stream
  int64_t stride = 0;         // between the four streams
  Range next;                 // to be read after this range
  int64_t owed = 0;           // units that do not make a step yet. A step is one cache line of each stream.
  // How many units a piece of work advances by.
  int64_t per_panel = 0;       // scores of 16 keys for a K head
  int64_t per_row = 0;         // softmax of a row
  int64_t per_head = 0;        // product with a V head
  int64_t per_value = 0;       // one V row: its packing, or its product by vector_decode.h
  int64_t per_value_tile = 0;  // 16 keys by 64 dims of a V head that is not packed

  DIFFQKV_INLINE int64_t step_bytes() const { return one_stream ? 64 : 256; }

  DIFFQKV_INLINE void start(Range r) {
    stride = r.bytes / 256 * 64;
    at = r.data;
    end = at + (one_stream ? r.bytes / 64 * 64 : stride);
  }

  DIFFQKV_INLINE void step() {
    if (one_stream) {
      __builtin_prefetch(at, 0, 3);
    } else {
      __builtin_prefetch(at, 0, 2);
      __builtin_prefetch(at + stride, 0, 2);
      __builtin_prefetch(at + 2 * stride, 0, 2);
      __builtin_prefetch(at + 3 * stride, 0, 2);
    }
    at += 64;
  }

  // Whether there is more to read.
  DIFFQKV_INLINE bool more() {
    if (at < end) return true;
    if (next.bytes == 0) return false;
    start(next);
    next.bytes = 0;
    return at < end;
  }

  DIFFQKV_INLINE void advance(int64_t units) {
    for (owed += units; owed >= kStepUnits && more(); owed -= kStepUnits) step();
  }
};

}  // namespace
}  // namespace diffqkv::cpu::DIFFQKV_ISA
