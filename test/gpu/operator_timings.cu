// Timings of attention, the products and sampling, each at many shapes.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "random.h"
#include "timing.h"

namespace diffqkv::cuda {
namespace {

using driver::Case;
using driver::Result;

std::string length_text(int64_t length) {
  return length >= 1024 && length % 1024 == 0 ? std::to_string(length / 1024) + "k" : std::to_string(length);
}

std::string heads_text(const Heads& heads, int64_t dim) {
  return std::to_string(heads.q) + "/" + std::to_string(heads.k) + "/" + std::to_string(heads.v) + " x " +
         std::to_string(dim);
}

template <typename T>
Result timed(const T& timer) {
  TimingContext context(device_shape());
  const Timing timing = measure(context, [&](int64_t i) { timer.enqueue(i, context); });
  context.finish();
  return {"", timing_fields(timing, timer.work())};
}

void set_heads(AttentionParams& p, const Heads& heads, int64_t dim) {
  p.num_q_heads = heads.q;
  p.k.num_heads = heads.k;
  p.v.num_heads = heads.v;
  p.k.head_dim = dim;
  p.v.head_dim = dim;
  p.sm_scale = 1 / std::sqrt(static_cast<float>(dim));
}

// ---- Decode attention.

constexpr int64_t kPageTokens = 64;

struct DecodeTimingCase {
  Heads heads;
  int64_t dim, kv_len, batch;
  bool paged = true;
  DType kv_dtype = DType::bf16;
  int64_t top_k = 0;
};

std::string decode_name(const DecodeTimingCase& c) {
  std::string name = "decode attention " + heads_text(c.heads, c.dim) + ", " + length_text(c.kv_len) + ", batch " +
                     std::to_string(c.batch);
  if (!c.paged) name += ", contiguous";
  if (c.kv_dtype != DType::bf16) name += std::string(", K and V in ") + dtype_name(c.kv_dtype);
  if (c.top_k > 0) name += ", top " + std::to_string(c.top_k);
  return name;
}

class DecodeTimer {
 public:
  explicit DecodeTimer(const DecodeTimingCase& c)
      : c_(c),
        k_bytes_(side_bytes(c.heads.k)),
        v_bytes_(side_bytes(c.heads.v)),
        copies_(copies_past_l2(k_bytes_ + v_bytes_)),
        q_(random_memory(DType::bf16, query_elements(), 1, 1)),
        out_(query_elements() * 2),
        lse_(count_of({c.batch, c.heads.q}) * 4),
        lengths_(std::vector<int32_t>(static_cast<size_t>(c.batch), static_cast<int32_t>(c.kv_len))),
        k_(arena().get(static_cast<size_t>(copies_) * (k_bytes_ + v_bytes_))),
        v_(k_ + static_cast<size_t>(copies_) * k_bytes_) {
    p_.q = q_.data();
    p_.out = out_.data();
    p_.lse = reinterpret_cast<float*>(lse_.data());
    p_.kv_lens = lengths_.data();
    p_.q_dtype = DType::bf16;
    p_.out_dtype = DType::bf16;
    p_.k.dtype = c.kv_dtype;
    p_.v.dtype = c.kv_dtype;
    p_.batch_size = c.batch;
    p_.kv_len = c.kv_len;
    set_heads(p_, c.heads, c.dim);
    p_.top_k = c.top_k;
    c.paged ? set_pages() : set_contiguous();
  }

  void enqueue(int64_t i, Context& context) const {
    AttentionDecodeParams p = p_;
    const size_t copy = static_cast<size_t>(i % copies_);
    if (c_.paged) {
      p.pages = tables_->data() + copy * static_cast<size_t>(c_.batch);
    } else {
      p.k.data = k_ + copy * k_bytes_;
      p.v.data = v_ + copy * v_bytes_;
    }
    attention_decode(p, context);
  }

  Work work() const {
    const double rows = static_cast<double>(c_.batch * c_.heads.q), dims = static_cast<double>(c_.dim);
    double bytes = static_cast<double>(k_bytes_ + v_bytes_) + rows * dims * 4;
    if (c_.top_k > 0) {
      bytes =
          static_cast<double>(k_bytes_) + rows * dims * (4 + 2 * static_cast<double>(std::min(c_.top_k, c_.kv_len)));
    }
    return {.bytes = bytes};
  }

 private:
  size_t query_elements() const { return count_of({c_.batch, c_.heads.q, c_.dim}); }
  // Of all sequences' rows, in whole pages.
  size_t side_bytes(int64_t heads) const {
    const int64_t pages = (c_.kv_len + kPageTokens - 1) / kPageTokens;
    return static_cast<size_t>(c_.batch * pages * kv_page_layer_bytes(c_.kv_dtype, kPageTokens, heads, c_.dim));
  }

  void set_contiguous() {
    p_.k.batch_stride = c_.kv_len * c_.heads.k * c_.dim;
    p_.v.batch_stride = c_.kv_len * c_.heads.v * c_.dim;
  }

  // The pages of all sequences of a copy are in a random order.
  void set_pages() {
    const size_t sequences = static_cast<size_t>(c_.batch), copies = static_cast<size_t>(copies_);
    const size_t of_sequence = static_cast<size_t>((c_.kv_len + kPageTokens - 1) / kPageTokens);
    const size_t of_copy = sequences * of_sequence;
    std::vector<KvPage> pages(copies * of_copy);
    std::vector<size_t> order(of_copy);
    std::iota(order.begin(), order.end(), size_t{0});
    check::Random random(9);
    for (size_t i = of_copy; i > 1; --i) std::swap(order[i - 1], order[random.word() % i]);
    for (size_t i = 0; i < pages.size(); ++i) {
      const size_t page = i / of_copy * of_copy + order[i % of_copy];
      pages[i] = {k_ + page * (k_bytes_ / of_copy), v_ + page * (v_bytes_ / of_copy)};
    }
    pages_.emplace(pages);
    std::vector<const KvPage*> tables(copies * sequences);
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = pages_->data() + i * of_sequence;
    tables_.emplace(tables);
    p_.page_tokens = kPageTokens;
  }

  const DecodeTimingCase c_;
  const size_t k_bytes_, v_bytes_;
  const int64_t copies_;
  const Memory<uint8_t> q_, out_, lse_;
  const Memory<int32_t> lengths_;
  uint8_t* const k_;
  uint8_t* const v_;
  std::optional<Memory<KvPage>> pages_;
  std::optional<Memory<const KvPage*>> tables_;  // [copies, batch]
  AttentionDecodeParams p_;
};

Case decode_timing(const DecodeTimingCase& c) {
  return {decode_name(c), [c] { return timed(DecodeTimer(c)); }};
}

// ---- Prefill attention.

struct PrefillTimingCase {
  Heads heads;
  int64_t dim, q_len, kv_len;
};

class PrefillTimer {
 public:
  explicit PrefillTimer(const PrefillTimingCase& c) : c_(c) {
    const size_t q = bytes(c.q_len, c.heads.q), k = bytes(c.kv_len, c.heads.k), v = bytes(c.kv_len, c.heads.v);
    uint8_t* const data = arena().get(2 * q + k + v);
    p_.q = data;
    p_.k.data = data + q;
    p_.v.data = data + q + k;
    p_.out = data + q + k + v;
    p_.q_dtype = DType::bf16;
    p_.k.dtype = DType::bf16;
    p_.v.dtype = DType::bf16;
    p_.out_dtype = DType::bf16;
    p_.batch_size = 1;
    p_.q_len = c.q_len;
    p_.kv_len = c.kv_len;
    set_heads(p_, c.heads, c.dim);
    p_.causal = true;
  }
  void enqueue(int64_t, Context& context) const { attention_prefill(p_, context); }
  // The pairs of queries and keys that see each other: two products of 2 * dim operations each.
  Work work() const {
    const double queries = static_cast<double>(c_.q_len), keys = static_cast<double>(c_.kv_len);
    const double pairs = queries * keys - queries * (queries - 1) / 2;
    return {.flops = 4 * static_cast<double>(c_.dim * c_.heads.q) * pairs};
  }

 private:
  size_t bytes(int64_t tokens, int64_t heads) const {
    return (count_of({tokens, heads, c_.dim}) * 2 + 255) / 256 * 256;
  }

  const PrefillTimingCase c_;
  AttentionPrefillParams p_;
};

Case prefill_timing(const PrefillTimingCase& c) {
  const std::string on = c.q_len == c.kv_len ? "" : " on " + length_text(c.kv_len);
  return {"prefill attention " + heads_text(c.heads, c.dim) + ", " + length_text(c.q_len) + on,
          [c] { return timed(PrefillTimer(c)); }};
}

// ---- Products.

struct ProductTimingCase {
  std::string name;
  int64_t tokens, in_features, inner_size, out_features;  // inner_size 0: a product, else a gated one
  bool f32_out = false;
  DType weights = DType::bf16;  // or i8 or i4, in groups of 32
};

class ProductTimer {
 public:
  explicit ProductTimer(const ProductTimingCase& c)
      : c_(c),
        weight_bytes_(bytes_of(weight_elements())),
        copies_(copies_past_l2(weight_bytes_)),
        x_(random_memory(DType::bf16, count_of({c.tokens, c.in_features}), 1, 1)),
        out_(count_of({c.tokens, c.out_features}) * (c.f32_out ? 4 : 2)),
        weights_(arena().get(static_cast<size_t>(copies_) * weight_bytes_)) {}

  void enqueue(int64_t i, Context& context) const {
    const uint8_t* const weights = weights_ + static_cast<size_t>(i % copies_) * weight_bytes_;
    if (c_.inner_size == 0) {
      MatmulParams p;
      p.weight = view(weights, weight_elements());
      set_sizes(p);
      return matmul(p, context);
    }
    const size_t inner = count_of({c_.inner_size, c_.in_features});
    GatedMlpParams p;
    p.gate = view(weights, inner);
    p.up = view(weights + bytes_of(inner), inner);
    p.down = view(weights + 2 * bytes_of(inner), count_of({c_.inner_size, c_.out_features}));
    p.inner_size = c_.inner_size;
    set_sizes(p);
    gated_mlp(p, context);
  }

  Work work() const {
    const double tokens = static_cast<double>(c_.tokens), weights = static_cast<double>(weight_elements());
    return {.bytes = static_cast<double>(weight_bytes_ + x_.bytes() + out_.bytes()), .flops = 2 * tokens * weights};
  }

 private:
  size_t element_bytes(size_t elements) const {
    return c_.weights == DType::bf16 ? 2 * elements : c_.weights == DType::i8 ? elements : elements / 2;
  }
  // Of elements and, after them, their scales.
  size_t bytes_of(size_t elements) const {
    return element_bytes(elements) + (c_.weights == DType::bf16 ? 0 : elements / 32 * 2);
  }
  // Any bytes are integers; as scales they are finite, because bf16 weights are.
  WeightView view(const uint8_t* data, size_t elements) const {
    if (c_.weights == DType::bf16) return {data, DType::bf16};
    return {data, c_.weights, data + element_bytes(elements), 32};
  }
  size_t weight_elements() const {
    if (c_.inner_size == 0) return count_of({c_.in_features, c_.out_features});
    return count_of({c_.inner_size, 2 * c_.in_features + c_.out_features});
  }
  template <typename Params>
  void set_sizes(Params& p) const {
    p.x = x_.data();
    p.out = out_.data();
    p.x_dtype = DType::bf16;
    p.out_dtype = c_.f32_out ? DType::f32 : DType::bf16;
    p.num_tokens = c_.tokens;
    p.in_features = c_.in_features;
    p.out_features = c_.out_features;
  }

  const ProductTimingCase c_;
  const size_t weight_bytes_;
  const int64_t copies_;
  const Memory<uint8_t> x_;
  const Memory<uint8_t> out_;
  const uint8_t* const weights_;
};

Case product_timing(const ProductTimingCase& c) {
  return {c.name + ", " + std::to_string(c.tokens) + (c.tokens == 1 ? " token" : " tokens"),
          [c] { return timed(ProductTimer(c)); }};
}

// ---- Sampling. The logits have just been written by a product, so that they may be in the L2.

struct SampleTimingCase {
  std::string name;
  int64_t vocab_size;
  float temperature;
  int64_t top_k;
  float top_p;
  int64_t rows = 1;  // sequences
};

class SampleTimer {
 public:
  explicit SampleTimer(const SampleTimingCase& c)
      : c_(c),
        logits_(random_memory(DType::f32, count_of({c.rows, c.vocab_size}), 3, 1)),
        rows_(rows_of(c)),
        sampled_(static_cast<size_t>(2 * c.rows)) {}
  void enqueue(int64_t i, Context& context) const {
    SampleParams p;
    p.logits = reinterpret_cast<const float*>(logits_.data());
    p.rows = rows_.data() + i % kSteps * c_.rows;
    p.out_tokens = sampled_.data();
    p.out_invalid = sampled_.data() + c_.rows;
    p.num_rows = c_.rows;
    p.vocab_size = c_.vocab_size;
    sample(p, context);
  }
  Work work() const { return {.bytes = static_cast<double>(logits_.bytes())}; }

 private:
  static constexpr int64_t kSteps = 64;  // with other random numbers

  static std::vector<SampleRow> rows_of(const SampleTimingCase& c) {
    SampleRow row;
    row.seed = 5;
    row.top_k = c.top_k;
    row.temperature = c.temperature;
    row.top_p = c.top_p;
    std::vector<SampleRow> rows;
    for (int64_t i = 0; i < kSteps * c.rows; ++i) {
      row.step = static_cast<uint64_t>(i);
      rows.push_back(row);
    }
    return rows;
  }

  const SampleTimingCase c_;
  const Memory<uint8_t> logits_;
  const Memory<SampleRow> rows_;
  const Memory<int32_t> sampled_;
};

Case sample_timing(const SampleTimingCase& c) {
  return {c.name, [c] { return timed(SampleTimer(c)); }};
}

}  // namespace

std::vector<Case> attention_timings(bool small) {
  if (small) {
    return {decode_timing({{8, 2, 4}, 64, 256, 2}),
            decode_timing({{8, 2, 4}, 64, 256, 1, false}),
            decode_timing({{8, 2, 4}, 64, 128, 1, true, DType::i8}),
            decode_timing({{8, 2, 4}, 64, 128, 1, true, DType::bf16, 10}),
            prefill_timing({{8, 2, 4}, 64, 64, 64}),
            prefill_timing({{8, 2, 4}, 64, 32, 128})};
  }
  std::vector<Case> cases;
  for (const int64_t dim : {64, 128}) {
    for (const Heads& heads : {kSigmaHeads, kStandardHeads}) {
      for (const int64_t kv_len : {2048, 8192, 32768, 131072}) {
        for (const int64_t batch : {1, 8, 32}) cases.push_back(decode_timing({heads, dim, kv_len, batch}));
      }
    }
    cases.push_back(decode_timing({kSigmaHeads, dim, 32768, 1, false}));
    cases.push_back(decode_timing({kSigmaHeads, dim, 32768, 1, true, DType::i8}));
    cases.push_back(decode_timing({kSigmaHeads, dim, 32768, 1, true, DType::f8e4m3}));
    cases.push_back(decode_timing({kSigmaHeads, dim, 32768, 1, true, DType::bf16, 1000}));
  }
  for (const int64_t dim : {64, 128}) {
    for (const Heads& heads : {kSigmaHeads, kStandardHeads}) {
      for (const int64_t length : {512, 1024, 2048, 4096, 8192, 16384, 32768})
        cases.push_back(prefill_timing({heads, dim, length, length}));
    }
    for (const int64_t kv_len : {4096, 32768}) cases.push_back(prefill_timing({kSigmaHeads, dim, 512, kv_len}));
  }
  return cases;
}

std::vector<Case> linear_timings(bool small) {
  if (small) {
    return {product_timing({"K product", 1, 256, 0, 64}),
            product_timing({"K product", 16, 256, 0, 64}),
            product_timing({"FFN", 1, 64, 128, 64}),
            product_timing({"FFN", 16, 64, 128, 64}),
            product_timing({"FFN of i8", 16, 64, 128, 64, false, DType::i8}),
            product_timing({"FFN of i4", 20, 64, 128, 64, false, DType::i4})};
  }
  std::vector<Case> cases;
  for (const Sigma& s : kSigmas) {
    for (const int64_t tokens : {1, 4, 8, 16, 512}) {
      cases.push_back(product_timing({s.name + "K product", tokens, s.hidden_size, 0, 4 * s.head_dim}));
      cases.push_back(product_timing({s.name + "V product", tokens, s.hidden_size, 0, 16 * s.head_dim}));
      cases.push_back(product_timing({s.name + "O product", tokens, 32 * s.head_dim, 0, s.hidden_size}));
      cases.push_back(product_timing({s.name + "augmented Q", tokens, s.hidden_size, s.aug_q_size, 32 * s.head_dim}));
      cases.push_back(product_timing({s.name + "FFN", tokens, s.hidden_size, s.intermediate_size, s.hidden_size}));
      for (const DType weights : {DType::i8, DType::i4}) {
        const std::string name = s.name + "FFN of " + dtype_name(weights);
        cases.push_back(
            product_timing({name, tokens, s.hidden_size, s.intermediate_size, s.hidden_size, false, weights}));
      }
      if (tokens <= 16)
        cases.push_back(product_timing({s.name + "LM head", tokens, s.hidden_size, 0, kSigmaVocabSize, true}));
    }
  }
  return cases;
}

std::vector<Case> sample_timings(bool small) {
  const int64_t vocab_size = small ? 500 : kSigmaVocabSize;
  return {sample_timing({"greedy token", vocab_size, 0, 0, 1}),
          sample_timing({"greedy token, 16 sequences", vocab_size, 0, 0, 1, 16}),
          sample_timing({"sampled token, top-k 40, top-p 0.9", vocab_size, 0.8f, 40, 0.9f}),
          sample_timing({"sampled token, top-p 0.9", vocab_size, 1, 0, 0.9f}),
          sample_timing({"sampled token, all tokens", vocab_size, 1, 0, 1})};
}

}  // namespace diffqkv::cuda
