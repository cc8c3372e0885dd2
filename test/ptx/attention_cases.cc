// Attention: for each instantiation of its kernels, calls that differ in all that the kernel looks at.
#include <limits>

#include "cases.h"

namespace diffqkv::ptx {
namespace {

using namespace emulated;

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kF8 = DType::f8e4m3;
constexpr int64_t kDims[] = {32, 64, 96, 128, 256};
// With little shared memory prefill has one stage of tiles.
constexpr Shape kSmall = {6, 99 * 1024}, kLarge = {132, 227 * 1024}, kTight = {6, 48 * 1024};

// What a call has besides.
struct Twist {
  bool non_finite = false;   // NaN and infinities in K and V
  bool bad_lengths = false;  // kv_lens outside of the cache
  bool without_lse = false;
  bool negative_scale = false;
  bool large_scores = false;  // of order 1e9, which prefill computes in its own way
  bool shared_pages = false;
};

// Every so often an element becomes infinite or NaN.
void spoil(Tensor* tensor) {
  std::vector<uint8_t> bytes = tensor->memory.values();
  const size_t size = dtype_size(tensor->dtype);
  const float values[] = {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                          -std::numeric_limits<float>::infinity()};
  for (size_t i = 0; i < bytes.size() / size; i += 1009)
    if (tensor->dtype != kI8) convert_from_f32(tensor->dtype, &bytes[i * size], &values[i % 3], 1);
  tensor->memory.upload(bytes);
}

template <typename Params>
Call twisted(Call call, const Twist& twist, void (*launcher)(const Params&, Context&)) {
  Params p = std::get<Params>(call.params);
  if (twist.non_finite) {
    for (Tensor& tensor : call.tensors)
      if (tensor.name[0] == 'k' || tensor.name[0] == 'v')
        if (tensor.name != "kv_lens") spoil(&tensor);
  }
  if (twist.bad_lengths) {  // of one sequence: which of two is reported would depend on the order of blocks
    std::vector<int32_t> lengths(static_cast<size_t>(p.batch_size), static_cast<int32_t>(p.kv_len));
    lengths[0] = p.v.head_dim % 64 == 0 ? -3 : lengths[0] + 5;
    p.kv_lens = add_integers(call, "bad kv_lens", lengths);
  }
  if (twist.without_lse) p.lse = nullptr;
  if (twist.negative_scale) p.sm_scale = -p.sm_scale;
  if (twist.large_scores) p.sm_scale *= 1e9f;
  p.pages_shared = twist.shared_pages;
  set_operator(call, launcher, p);
  return call;
}

void only_selective(const AttentionDecodeParams& p, Context& context) {
  if (!attention_selective(p, context)) throw std::runtime_error("attention_selective does not support the call");
}

std::string name_of(const char* what, const AttentionCase& c, const Twist& twist) {
  std::string name = std::string(what) + ", " + dtype_name(c.types.q) + " on " + dtype_name(c.types.k) + " and " +
                     dtype_name(c.types.v) + ", " + std::to_string(c.heads.q) + "/" + std::to_string(c.heads.k) + "/" +
                     std::to_string(c.heads.v) + " x " + std::to_string(c.dims.qk) + "/" + std::to_string(c.dims.vo) +
                     ", " + std::to_string(c.kv_len) + " keys";
  if (c.page_tokens) name += ", pages of " + std::to_string(c.page_tokens);
  if (twist.non_finite) name += ", not finite";
  if (twist.bad_lengths) name += ", bad lengths";
  if (twist.negative_scale) name += ", negative scale";
  if (twist.large_scores) name += ", large scores";
  if (c.window) name += ", window " + std::to_string(c.window);
  if (c.softcap > 0) name += ", capped";
  return name;
}

// Types of K and V of which one is of 8 bits, or both.
Types scaled_types(DType q, int i) {
  const Types types[] = {{q, kI8, kF8}, {q, q, kI8}, {q, kF8, q}, {q, kF8, kI8}, {q, kI8, q}, {q, q, kF8}};
  return types[i % 6];
}

// attention_decode_kernel<T, kDimVo, kTiles, kScaled>: kTiles is 1 for up to 8 query heads a unit.
void add_decode(std::vector<Case>* cases) {
  struct Variant {
    int64_t kv_len;
    std::vector<int32_t> lengths;
    int64_t page_tokens, num_splits;
    Heads few, many;
    Twist twist = {};
    bool shared_cache = false;
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {75, {75, 33}, 64, 2, {8, 2, 4}, {12, 1, 2}},
      {200, {}, 0, 1, {8, 8, 8}, {32, 1, 4}, {.negative_scale = true}},
      {200, {200, 0, 65}, 128, 0, {32, 4, 16}, {10, 1, 10}, {.non_finite = true}},
      {130, {130, 97}, 0, 5, {6, 6, 1}, {24, 2, 1}, {.without_lse = true}, true},
      {600, {600}, 64, 2, {4, 1, 4}, {40, 1, 5}, {.large_scores = true}},
      {90, {90, 90}, 64, 2, {8, 1, 2}, {32, 1, 1}, {.bad_lengths = true}},
      {200, {200, 33}, 64, 2, {8, 2, 4}, {12, 1, 2}, {}, false, 70, 2},
  };
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const int64_t dim : kDims) {
      for (const bool many : {false, true}) {
        for (const bool scaled : {false, true}) {
          for (size_t v = 0; v < variants.size(); ++v) {
            const Variant& variant = variants[v];
            AttentionCase c;
            c.types = scaled ? scaled_types(q, static_cast<int>(v) + i / 6) : same(q);
            c.heads = many ? variant.many : variant.few;
            c.dims = {v % 2 == 0 ? kDims[static_cast<size_t>(i) % 5] : dim, dim};
            c.kv_len = variant.kv_len;
            c.lengths = variant.lengths;
            c.page_tokens = variant.page_tokens;
            c.num_splits = variant.num_splits;
            c.shared_cache = variant.shared_cache;
            c.window = variant.window;
            c.softcap = variant.softcap;
            ++i;
            const Twist twist = variant.twist;
            cases->push_back({name_of("decode attention", c, twist),
                              [=] { return twisted(decode_call(c), twist, attention_decode); }, kSmall,
                              twist.bad_lengths});
          }
        }
      }
    }
  }
}

// attention_prefill_kernel<T, kDimQk, kDimVo, kQuantized>: kDimQk is that of both sizes where they are equal, else 0.
void add_prefill(std::vector<Case>* cases) {
  struct Variant {
    int64_t q_len, kv_len;
    std::vector<int32_t> lengths;
    int64_t page_tokens;
    Heads heads;
    bool causal = true;
    Twist twist = {};
    Shape shape = kSmall;
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {9, 70, {70}, 64, {8, 2, 4}},
      {20, 150, {150, 0, 65}, 128, {4, 4, 2}, true, {.large_scores = true}, kLarge},
      {5, 40, {}, 0, {8, 8, 8}, false, {.negative_scale = true}},
      {33, 130, {130, 21}, 64, {6, 6, 1}, true, {.non_finite = true}},
      {12, 70, {70}, 0, {2, 1, 1}, false, {.non_finite = true, .without_lse = true}, kLarge},
      {9, 70, {70, 70}, 64, {8, 2, 4}, true, {.bad_lengths = true}},
      {12, 70, {70}, 64, {8, 2, 4}, true, {.non_finite = true}, kTight},
      {20, 150, {150, 33}, 64, {8, 2, 4}, true, {.non_finite = true}, kSmall, 40, 2},
  };
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const int64_t dim : kDims) {
      for (const int kind : {0, 1, 2}) {
        for (size_t v = 0; v < variants.size(); ++v) {
          const Variant& variant = variants[v];
          AttentionCase c;
          c.types = kind == 2 ? scaled_types(q, static_cast<int>(v) + i / 6) : same(q);
          c.heads = variant.heads;
          const int64_t other = kDims[static_cast<size_t>(i) % 5];
          c.dims = {kind == 1 ? (other == dim ? (dim == 64 ? 32 : 64) : other) : dim, dim};
          c.q_len = variant.q_len;
          c.kv_len = variant.kv_len;
          c.lengths = variant.lengths;
          c.page_tokens = variant.page_tokens;
          c.causal = variant.causal;
          c.window = variant.window;
          c.softcap = variant.softcap;
          ++i;
          const Twist twist = variant.twist;
          cases->push_back({name_of("prefill attention", c, twist),
                            [=] { return twisted(prefill_call(c), twist, attention_prefill); }, variant.shape,
                            twist.bad_lengths});
        }
      }
    }
  }
}

// attention_selective_scores_kernel<T, K, kTiles>: 1 for up to 8 query heads for a K head, else 2; and
// attention_selective_values_kernel<V>.
void add_selective(std::vector<Case>* cases) {
  struct Variant {
    int64_t kv_len;
    std::vector<int32_t> lengths;
    int64_t page_tokens, num_splits, top_k;
    Heads few, many;
    int64_t distinct_keys = 0;
    bool renormalize = false;
    Twist twist = {};
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {90, {90}, 64, 2, 10, {8, 2, 4}, {12, 1, 4}},
      {300, {}, 0, 3, 60, {8, 8, 8}, {16, 1, 2}, 0, true},
      {700, {700, 0, 33}, 0, 0, 300, {8, 1, 2}, {32, 2, 4}, 3},
      {200, {200, 65}, 128, 0, 40, {6, 6, 1}, {12, 1, 12}, 0, false, {.non_finite = true, .without_lse = true}},
      {3000, {}, 0, 2, 2300, {2, 1, 1}, {10, 1, 1}},
      {100, {100, 100}, 64, 1, 200, {8, 2, 4}, {12, 1, 4}, 0, false, {.bad_lengths = true}},
      {300, {300, 65}, 32, 2, 40, {8, 2, 4}, {12, 1, 4}, 0, false, {}, 150, 2},
  };
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const DType k : {q, kI8, kF8}) {
      for (const bool many : {false, true}) {
        for (const Variant& variant : variants) {
          const DType v_types[] = {kI8, kF8, kF32, kF16, kBf16};
          AttentionCase c;
          c.types = {q, k, v_types[i % 5]};
          c.heads = many ? variant.many : variant.few;
          c.dims = {i % 3 == 0 ? 128 : i % 3 == 1 ? 64 : 48, i % 4 == 0 ? 256 : 64};
          c.kv_len = variant.kv_len;
          c.lengths = variant.lengths;
          c.page_tokens = variant.page_tokens;
          c.num_splits = variant.num_splits;
          c.top_k = variant.top_k;
          c.distinct_keys = variant.distinct_keys;
          c.renormalize = variant.renormalize;
          c.window = variant.window;
          c.softcap = variant.softcap;
          ++i;
          const Twist twist = variant.twist;
          cases->push_back({name_of("selective V", c, twist),
                            [=] { return twisted(selective_call(c), twist, only_selective); }, kSmall,
                            twist.bad_lengths});
        }
      }
    }
  }
}

// attention_plain_kernel, for prefill and decode: any types and sizes.
void add_plain(std::vector<Case>* cases) {
  struct Variant {
    Types types;
    Dims dims;
    int64_t page_tokens, top_k;
    Twist twist = {};
    int64_t window = 0;
    float softcap = 0;
  };
  const std::vector<Variant> variants = {
      {{kF32, kF16, kI8}, {64, 64}, 64, 0},        {{kBf16, kF32, kF8}, {10, 33}, 0, 0, {.non_finite = true}},
      {{kF16, kI8, kF32}, {80, 250}, 64, 7},       {{kF32, kF8, kBf16}, {64, 12}, 0, 20, {.without_lse = true}},
      {{kF32, kBf16, kF16}, {256, 256}, 0, 0},     {{kBf16, kI8, kI8}, {20, 20}, 32, 0, {.bad_lengths = true}},
      {{kF32, kF32, kI8}, {64, 64}, 32, 0, {}, 9}, {{kBf16, kF16, kF32}, {20, 64}, 0, 7, {}, 0, 2},
  };
  for (const Variant& variant : variants) {
    AttentionCase c;
    c.types = variant.types;
    c.heads = {6, 3, 2};
    c.dims = variant.dims;
    c.kv_len = 50;
    const Twist twist = variant.twist;
    c.lengths = twist.bad_lengths ? std::vector<int32_t>{50, 50} : std::vector<int32_t>{50, 0, 17};
    c.page_tokens = variant.page_tokens;
    c.window = variant.window;
    c.softcap = variant.softcap;
    AttentionCase prefill = c;
    prefill.q_len = 4;
    cases->push_back({name_of("plain prefill attention", c, twist),
                      [=] { return twisted(prefill_call(prefill), twist, attention_plain_prefill); }, kSmall,
                      twist.bad_lengths});
    c.top_k = variant.top_k;
    c.renormalize = variant.top_k == 20;
    cases->push_back({name_of("plain decode attention", c, twist),
                      [=] { return twisted(decode_call(c), twist, attention_plain_decode); }, kSmall,
                      twist.bad_lengths});
  }
}

}  // namespace

std::vector<Case> attention_cases() {
  std::vector<Case> cases;
  add_decode(&cases);
  add_prefill(&cases);
  add_selective(&cases);
  add_plain(&cases);
  return cases;
}

}  // namespace diffqkv::ptx
