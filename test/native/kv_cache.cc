// The operators on a paged KV cache, with pages in a random order and rubbish in the rows that hold no token: the same bits
// in any order of threads, the same as over contiguous tensors, and the traffic that the design promises.
#include <algorithm>

#include "operator_call.h"

namespace diffqkv::check {
namespace {

bool is_scaled(DType dtype) { return dtype == DType::i8 || dtype == DType::f8e4m3; }

// K or V of a call, contiguous: rows of all heads, and scales where the type has them.
struct Rows {
  std::vector<uint8_t> elements, scales;
};

Rows random_rows(DType dtype, size_t count, size_t dim, uint64_t seed) {
  Rows rows;
  if (!is_scaled(dtype)) {
    rows.elements = random_tensor(dtype, count * dim, 0.5f, seed)->values();
    return rows;
  }
  Random random(seed);
  rows.elements.resize(count * dim);
  for (uint8_t& x : rows.elements) {
    do x = static_cast<uint8_t>(random.word() >> 8);
    while (dtype == DType::f8e4m3 && (x & 0x7f) == 0x7f);
  }
  std::vector<float> scales(count);
  for (float& scale : scales) scale = 1e-4f * static_cast<float>(1 + random.word() % 100);
  rows.scales.resize(count * 2);
  convert_from_f32(DType::bf16, rows.scales.data(), scales.data(), count);
  return rows;
}

struct CacheShape {
  DType k, v;
  Heads heads;
  Dims dims;
  int64_t page_tokens;
  std::vector<int32_t> lengths;  // of the sequences
};

constexpr int64_t kKOffset = 384, kVOffset = 128;  // as if other layers came first

// The pools of K and V, and the tables, as the last tensors of a call.
struct Pools {
  size_t k, v;                  // which tensors
  const KvPage* const* tables;  // one a sequence
};

// k, v: as attention has them, [batch, kv_len, heads]; where they are null pages hold rubbish.
Pools add_pools(Call& call, const CacheShape& shape, int64_t kv_len, const Rows* k, const Rows* v) {
  const int64_t tokens = shape.page_tokens;
  std::vector<size_t> counts;
  for (const int32_t length : shape.lengths) counts.push_back(static_cast<size_t>((length + tokens - 1) / tokens));
  std::vector<size_t> order;
  for (const size_t count : counts) order.resize(order.size() + count);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  Random random(9);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.word() % i]);

  Pools pools = {};
  std::vector<KvPage> pages(order.size());
  const auto add_pool = [&](DType dtype, int64_t heads, int64_t dim, int64_t offset, const Rows* rows,
                            void* KvPage::*to) {
    const size_t row = static_cast<size_t>(heads * dim) * dtype_size(dtype), scale_row = static_cast<size_t>(heads) * 2;
    const size_t layer = static_cast<size_t>(kv_page_layer_bytes(dtype, tokens, heads, dim));
    const size_t stride = (layer + static_cast<size_t>(offset) + 255) / 256 * 256;
    std::vector<uint8_t> bytes(order.size() * stride, 0xff);
    size_t page = 0;
    for (size_t b = 0; b < counts.size(); ++b) {
      for (size_t token = 0; rows && token < static_cast<size_t>(shape.lengths[b]); ++token) {
        uint8_t* const at = &bytes[order[page + token / static_cast<size_t>(tokens)] * stride] + offset;
        const size_t in_page = token % static_cast<size_t>(tokens), from = b * static_cast<size_t>(kv_len) + token;
        std::memcpy(at + in_page * row, &rows->elements[from * row], row);
        if (!rows->scales.empty()) {
          std::memcpy(at + static_cast<size_t>(tokens) * row + in_page * scale_row, &rows->scales[from * scale_row],
                      scale_row);
        }
      }
      page += counts[b];
    }
    call.tensors.push_back(std::make_unique<Memory<uint8_t>>(bytes));
    for (size_t i = 0; i < order.size(); ++i) pages[i].*to = call.tensors.back()->data() + order[i] * stride;
    return call.tensors.size() - 1;
  };
  pools.k = add_pool(shape.k, shape.heads.k, shape.dims.qk, kKOffset, k, &KvPage::k);
  pools.v = add_pool(shape.v, shape.heads.v, shape.dims.vo, kVOffset, v, &KvPage::v);

  // Each table in memory of its own, with nothing behind it.
  std::vector<const KvPage*> tables;
  size_t page = 0;
  for (const size_t count : counts) {
    call.pages.push_back(std::make_unique<Memory<KvPage>>(std::vector<KvPage>(
        pages.begin() + static_cast<int64_t>(page), pages.begin() + static_cast<int64_t>(page + count))));
    tables.push_back(call.pages.back()->data());
    page += count;
  }
  call.tables = std::make_unique<Memory<const KvPage*>>(tables);
  pools.tables = call.tables->data();
  return pools;
}

void enqueue_on(const AttentionDecodeParams& p, Context& context) { attention_decode(p, context); }
void enqueue_on(const AttentionPrefillParams& p, Context& context) { attention_prefill(p, context); }

// Attention over a cache, paged or contiguous; the first two tensors are out and lse. p: what the call has besides.
template <typename Params>
Call attention_call(DType dtype, const CacheShape& shape, bool paged, int64_t q_len, Params p, Pools* pools = nullptr) {
  const int64_t batch = static_cast<int64_t>(shape.lengths.size());
  const int64_t kv_len = *std::max_element(shape.lengths.begin(), shape.lengths.end());
  const Heads& heads = shape.heads;
  const Dims& dims = shape.dims;
  Call call;
  const auto add = [&](std::unique_ptr<Memory<uint8_t>> tensor) {
    call.tensors.push_back(std::move(tensor));
    return call.tensors.back()->data();
  };
  p.out = add(random_tensor(dtype, words(batch, q_len, heads.q, dims.vo), 1, 4));
  p.lse = reinterpret_cast<float*>(add(random_tensor(DType::f32, words(batch, q_len, heads.q), 1, 5)));
  p.q = add(random_tensor(dtype, words(batch, q_len, heads.q, dims.qk), 0.5f, 1));
  p.kv_lens = add_lengths(call, shape.lengths);
  p.q_dtype = p.out_dtype = dtype, p.k_dtype = shape.k, p.v_dtype = shape.v;
  p.batch_size = batch, p.kv_len = kv_len;
  p.num_q_heads = heads.q, p.num_k_heads = heads.k, p.num_v_heads = heads.v;
  p.head_dim_qk = dims.qk, p.head_dim_vo = dims.vo;
  p.sm_scale = 1 / std::sqrt(static_cast<float>(dims.qk));
  const Rows k = random_rows(shape.k, words(batch, kv_len, heads.k), static_cast<size_t>(dims.qk), 2);
  const Rows v = random_rows(shape.v, words(batch, kv_len, heads.v), static_cast<size_t>(dims.vo), 3);
  if (paged) {
    const Pools made = add_pools(call, shape, kv_len, &k, &v);
    p.pages = made.tables, p.page_tokens = shape.page_tokens, p.k_page_offset = kKOffset, p.v_page_offset = kVOffset;
    if (pools) *pools = made;
  } else {
    const auto add_bytes = [&](const std::vector<uint8_t>& bytes) {
      return add(std::make_unique<Memory<uint8_t>>(bytes));
    };
    p.k = add_bytes(k.elements), p.v = add_bytes(v.elements);
    p.k_scales = add_bytes(k.scales), p.v_scales = add_bytes(v.scales);
    p.stride_k_batch = kv_len * heads.k * dims.qk, p.stride_v_batch = kv_len * heads.v * dims.vo;
  }
  call.enqueue = [p](Context& context) { enqueue_on(p, context); };
  return call;
}

Call decode_call(DType dtype, const CacheShape& shape, bool paged, int64_t num_splits, int64_t top_k = 0,
                 Pools* pools = nullptr) {
  AttentionDecodeParams p;
  p.num_splits = num_splits, p.selective_top_k = top_k;
  return attention_call(dtype, shape, paged, 1, p, pools);
}

Call prefill_call(DType dtype, const CacheShape& shape, bool paged, int64_t q_len) {
  AttentionPrefillParams p;
  p.q_len = q_len, p.causal = true;
  return attention_call(dtype, shape, paged, q_len, p);
}

// Pages lie elsewhere, and nothing else is different.
std::string same_as_contiguous(const std::function<Call(bool paged)>& make) {
  std::vector<std::vector<uint8_t>> left[2];
  for (const bool paged : {false, true}) {
    Call call = make(paged);
    const std::string wrong = run_call(call, nullptr, 1, &left[paged]);
    if (!wrong.empty()) return (paged ? "paged: " : "contiguous: ") + wrong;
  }
  if (left[0][0] != left[1][0]) return "out has other bits";
  return left[0][1] == left[1][1] ? "" : "lse has other bits";
}

// Tokens of two sequences to their pages; the last two tensors are the pools.
Call append_call(const CacheShape& shape, DType dtype, bool rotate) {
  const std::vector<int32_t> sequences = {1, 0, 1, 0, 1}, positions = {0, 70, 1, 3, 64};
  const int64_t num_tokens = static_cast<int64_t>(sequences.size());
  Call call;
  call.tensors.push_back(random_tensor(dtype, words(num_tokens, shape.heads.k, shape.dims.qk), 1, 1));
  call.tensors.push_back(random_tensor(dtype, words(num_tokens, shape.heads.v, shape.dims.vo), 1, 2));
  KvAppendParams p;
  p.k = call.tensors[0]->data(), p.v = call.tensors[1]->data();
  p.sequences = add_lengths(call, sequences), p.positions = add_lengths(call, positions);
  if (rotate) {
    std::vector<double> frequencies(static_cast<size_t>(shape.dims.qk / 2));
    for (size_t i = 0; i < frequencies.size(); ++i) frequencies[i] = 1 / static_cast<double>(i + 1);
    std::vector<uint8_t> bytes(frequencies.size() * sizeof(double));
    std::memcpy(bytes.data(), frequencies.data(), bytes.size());
    call.tensors.push_back(std::make_unique<Memory<uint8_t>>(bytes));
    p.inv_freq = reinterpret_cast<const double*>(call.tensors.back()->data());
  }
  p.pages = add_pools(call, shape, 0, nullptr, nullptr).tables;
  p.k_dtype = p.v_dtype = dtype, p.k_cache_dtype = shape.k, p.v_cache_dtype = shape.v;
  p.num_tokens = num_tokens, p.max_kv_len = 71, p.num_k_heads = shape.heads.k, p.num_v_heads = shape.heads.v;
  p.head_dim_qk = shape.dims.qk, p.head_dim_vo = shape.dims.vo;
  p.page_tokens = shape.page_tokens, p.k_page_offset = kKOffset, p.v_page_offset = kVOffset;
  call.enqueue = [p](Context& context) { kv_append(p, context); };
  return call;
}

// The first tensor is out.
Call gather_call(DType cache, DType out, int64_t num_keys, int64_t heads, int64_t dim, Rows* rows) {
  const CacheShape shape = {cache, DType::bf16, {1, heads, 1}, {dim, 32}, 64, {static_cast<int32_t>(num_keys)}};
  Call call;
  call.tensors.push_back(random_tensor(out, words(num_keys, heads, dim), 1, 1));
  *rows = random_rows(cache, words(num_keys, heads), static_cast<size_t>(dim), 2);
  const Rows v = random_rows(DType::bf16, words(num_keys, 1), 32, 3);
  KvGatherParams p;
  p.out = call.tensors[0]->data();
  p.pages = add_pools(call, shape, num_keys, rows, &v).tables[0];
  p.cache_dtype = cache, p.out_dtype = out;
  p.num_keys = num_keys, p.num_k_heads = heads, p.head_dim = dim, p.page_tokens = 64, p.k_page_offset = kKOffset;
  call.enqueue = [p](Context& context) { kv_gather(p, context); };
  return call;
}

float element_of(DType dtype, const uint8_t* data, size_t i) {
  if (dtype == DType::i8) return static_cast<float>(static_cast<int8_t>(data[i]));
  float x;
  convert_to_f32(dtype, &x, data + i * dtype_size(dtype), 1);
  return x;
}

// f32: the row times its scale, which is exact.
std::string check_gather(DType cache, int64_t heads, int64_t dim) {
  Rows rows;
  Call call = gather_call(cache, DType::f32, 150, heads, dim, &rows);
  const std::string wrong = run_call(call, nullptr, 3, nullptr);
  if (!wrong.empty()) return wrong;
  for (size_t i = 0; i < rows.elements.size() / dtype_size(cache); ++i) {
    const size_t row = i / static_cast<size_t>(dim);
    const float scale = is_scaled(cache) ? element_of(DType::bf16, rows.scales.data(), row) : 1;
    const float want = element_of(cache, rows.elements.data(), i) * scale;
    const float got = element_of(DType::f32, call.tensors[0]->data(), i);
    if (want != got) return "element " + std::to_string(i) + " is " + std::to_string(got);
  }
  return "";
}

// Rows of all magnitudes, with zeros, tiny ones, NaN and infinity among them; the last two tensors are out and scales.
Call quantize_call(DType dtype, DType out, int64_t dim, std::vector<float>* values) {
  constexpr int64_t kRows = 70;
  Random random(5);
  values->resize(words(kRows, dim));
  for (int64_t row = 0; row < kRows; ++row) {
    const float size = row == 3 ? 0.0f : row == 4 ? 0x1p-110f : std::exp2(random.normal(10));
    for (int64_t d = 0; d < dim; ++d) (*values)[words(row, dim) + static_cast<size_t>(d)] = random.normal(size);
  }
  (*values)[words(7, dim) + 2] = NAN, (*values)[words(8, dim) + 1] = -INFINITY;
  std::vector<uint8_t> bytes(values->size() * dtype_size(dtype));
  convert_from_f32(dtype, bytes.data(), values->data(), values->size());
  convert_to_f32(dtype, values->data(), bytes.data(), values->size());
  Call call;
  call.tensors.push_back(std::make_unique<Memory<uint8_t>>(bytes));
  call.tensors.push_back(std::make_unique<Memory<uint8_t>>(values->size()));
  call.tensors.push_back(std::make_unique<Memory<uint8_t>>(static_cast<size_t>(kRows * 2)));
  QuantizeParams p;
  p.x = call.tensors[0]->data(), p.out = call.tensors[1]->data(), p.scales = call.tensors[2]->data();
  p.x_dtype = dtype, p.out_dtype = out, p.num_rows = kRows, p.head_dim = dim;
  call.enqueue = [p](Context& context) { quantize(p, context); };
  return call;
}

// By the definition in ops.h, once more.
std::string check_quantize(DType dtype, DType out, int64_t dim) {
  std::vector<float> values;
  Call call = quantize_call(dtype, out, dim, &values);
  const std::string wrong = run_call(call, nullptr, 2, nullptr);
  if (!wrong.empty()) return wrong;
  const size_t size = static_cast<size_t>(dim);
  for (size_t row = 0; row < values.size() / size; ++row) {
    const float scale = element_of(DType::bf16, call.tensors[2]->data(), row);
    float top = 0;
    bool finite = true;
    for (size_t d = 0; d < size; ++d) {
      const float x = std::fabs(values[row * size + d]);
      finite = finite && x < INFINITY, top = std::fmax(top, x);
    }
    const bool zero = top < 0x1p-100f;
    const float exact = top / (out == DType::i8 ? 127.0f : 448.0f);
    const bool right = !finite ? scale != scale : zero ? scale == 0 : scale >= exact && scale <= exact * (1 + 0x1p-7f);
    if (!right) return "row " + std::to_string(row) + " has scale " + std::to_string(scale);
    for (size_t d = 0; d < size; ++d) {
      const float x = finite && !zero ? values[row * size + d] / scale : 0.0f;
      uint8_t want = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(x)));
      if (out == DType::f8e4m3) convert_from_f32(out, &want, &x, 1);
      if (call.tensors[1]->data()[row * size + d] != want) return "an element of row " + std::to_string(row);
    }
  }
  return "";
}

// What decode reads of a paged cache of 32/4/16 x 64. `*bytes`: in all.
std::string check_decode_traffic(DType k, DType v, int32_t tokens, int multiprocessors, double most_sectors,
                                 double* bytes) {
  const CacheShape shape = {k, v, {32, 4, 16}, {64, 64}, 64, {tokens}};
  Pools pools = {};
  Call call = decode_call(DType::bf16, shape, true, 0, 0, &pools);
  Counters c;
  std::string wrong = run_call(call, &c, 0, nullptr, nullptr, multiprocessors);
  if (!wrong.empty()) return wrong;
  const double pages = tokens / 64;
  const double k_bytes = pages * static_cast<double>(kv_page_layer_bytes(k, 64, shape.heads.k, shape.dims.qk));
  const double v_bytes = pages * static_cast<double>(kv_page_layer_bytes(v, 64, shape.heads.v, shape.dims.vo));
  *bytes = static_cast<double>(c.read_bytes);
  // Of an allocation what each lane reads is counted, and four lanes read the scale of a K row together.
  if (!is_scaled(k)) wrong += within("K read", read_from(c, *call.tensors[pools.k]) / k_bytes, 1, 1);
  wrong += within("V read", read_from(c, *call.tensors[pools.v]) / v_bytes, 1, 1);
  wrong += within("all reads over K and V", *bytes / (k_bytes + v_bytes), 1, 1.03);
  wrong += within("bytes of sectors read over bytes read", 32 * static_cast<double>(c.read_sectors) / *bytes, 1,
                  most_sectors);
  for (const auto& [line, conflicts] : c.conflicts_by_line)
    wrong += within(("bank conflicts at " + line).c_str(), static_cast<double>(conflicts) / tokens, 0, 0.02);
  return wrong;
}

// A unit reads the scales of its own heads, 2 or 8 bytes of a key's 8 or 32: those alone are not whole sectors.
std::string check_quantised_saving(int32_t tokens, int multiprocessors) {
  double wide = 0, v_in_i8 = 0, both_in_i8 = 0;
  std::string wrong = check_decode_traffic(DType::bf16, DType::bf16, tokens, multiprocessors, 1.01, &wide);
  wrong += check_decode_traffic(DType::bf16, DType::i8, tokens, multiprocessors, 1.08, &v_in_i8);
  wrong += check_decode_traffic(DType::i8, DType::i8, tokens, multiprocessors, 1.11, &both_in_i8);
  wrong += within("bytes read with V in i8 over bf16", v_in_i8 / wide, 0.61, 0.62);
  return wrong + within("bytes read with both in i8 over bf16", both_in_i8 / wide, 0.51, 0.525);
}

}  // namespace

std::vector<Check> kv_cache_checks() {
  constexpr DType kBf16 = DType::bf16, kF16 = DType::f16, kF32 = DType::f32, kI8 = DType::i8, kF8 = DType::f8e4m3;
  struct Case {
    const char* name;
    DType q;
    CacheShape shape;
    int64_t num_splits;
  };
  const std::vector<Case> cases = {
      {"bf16, 32/4/16 x 64", kBf16, {kBf16, kBf16, {32, 4, 16}, {64, 64}, 64, {200, 0, 65}}, 2},
      {"f16, 8/8/8 x 128, pages of 32", kF16, {kF16, kF16, {8, 8, 8}, {128, 128}, 32, {100, 33}}, 0},
      {"bf16, 6/6/1 x 64/32, pages of 128", kBf16, {kBf16, kBf16, {6, 6, 1}, {64, 32}, 128, {130}}, 0},
      {"V in i8, 32/4/16 x 64", kBf16, {kBf16, kI8, {32, 4, 16}, {64, 64}, 64, {200, 0, 65}}, 2},
      {"V in f8e4m3, 12/3/6 x 64/256", kBf16, {kBf16, kF8, {12, 3, 6}, {64, 256}, 64, {90, 33}}, 2},
      {"K in i8, 12/1/2 x 32/96", kBf16, {kI8, kBf16, {12, 1, 2}, {32, 96}, 32, {100}}, 3},
      {"K in f8e4m3, 8/1/2 x 256/32", kF16, {kF8, kF16, {8, 1, 2}, {256, 32}, 128, {150, 7}}, 2},
      {"both in i8, 32/4/16 x 64", kBf16, {kI8, kI8, {32, 4, 16}, {64, 64}, 64, {200, 0, 65}}, 2},
      {"f8e4m3 and i8, 32/1/4 x 128", kF16, {kF8, kI8, {32, 1, 4}, {128, 128}, 64, {100, 64}}, 2},
      {"i8 and f8e4m3, 8/8/8 x 96/64", kBf16, {kI8, kF8, {8, 8, 8}, {96, 64}, 64, {129}}, 0},
      {"f32 and i8", kF32, {kF32, kI8, {8, 2, 4}, {64, 64}, 64, {100, 3}}, 0},
      {"f16 in bf16, heads of 10", kBf16, {kF16, kBf16, {8, 2, 4}, {10, 10}, 32, {70}}, 0},
  };
  std::vector<Check> checks;
  for (const Case& c : cases) {
    const std::string name = std::string("decode attention, paged, ") + c.name;
    const auto make = [c](bool paged) { return decode_call(c.q, c.shape, paged, c.num_splits); };
    checks.push_back(seeds_check(name, [make] { return make(true); }));
    checks.push_back({name + ": as contiguous", [make] { return same_as_contiguous(make); }});
  }
  const CacheShape selective = {kI8, kBf16, {8, 2, 4}, {64, 64}, 64, {200, 65}};
  const auto make_selective = [=](bool paged) { return decode_call(kBf16, selective, paged, 0, 10); };
  checks.push_back(seeds_check("decode attention, paged, top 10", [=] { return make_selective(true); }));
  checks.push_back(
      {"decode attention, paged, top 10: as contiguous", [=] { return same_as_contiguous(make_selective); }});
  const std::vector<std::pair<DType, CacheShape>> prefills = {
      {kBf16, {kBf16, kBf16, {32, 4, 16}, {64, 64}, 64, {70, 40}}},
      {kBf16, {kBf16, kI8, {32, 4, 16}, {64, 64}, 64, {70, 40}}},
      {kF16, {kF8, kI8, {8, 2, 4}, {128, 128}, 64, {70, 40}}},   // two stages of tiles
      {kF16, {kI8, kF8, {8, 2, 4}, {64, 256}, 128, {70, 40}}}};  // one
  for (const auto& [type, shape] : prefills) {
    const std::string name = std::string("prefill attention, paged, ") + dtype_name(type) + " on " +
                             dtype_name(shape.k) + " and " + dtype_name(shape.v);
    const auto make = [type = type, shape = shape](bool paged) { return prefill_call(type, shape, paged, 9); };
    checks.push_back(seeds_check(name, [make] { return make(true); }));
    checks.push_back({name + ": as contiguous", [make] { return same_as_contiguous(make); }});
  }

  const auto append = [&](DType dtype, DType k, DType v, Dims dims, bool rotate) {
    const CacheShape shape = {k, v, {8, 2, 4}, dims, 64, {71, 65}};
    checks.push_back(seeds_check(std::string("kv_append, ") + dtype_name(k) + " and " + dtype_name(v),
                                 [=] { return append_call(shape, dtype, rotate); }));
  };
  append(kF32, kBf16, kBf16, {64, 64}, true);
  append(kBf16, kI8, kF8, {64, 32}, true);
  append(kF16, kF8, kI8, {11, 10}, false);
  append(kBf16, kF32, kI8, {32, 64}, false);
  for (const DType cache : {kF32, kF16, kBf16, kI8, kF8}) {
    checks.push_back({std::string("kv_gather of ") + dtype_name(cache), [=] { return check_gather(cache, 4, 64); }});
    checks.push_back({std::string("kv_gather of ") + dtype_name(cache) + ", heads of 10",
                      [=] { return check_gather(cache, 3, 10); }});
  }
  checks.push_back(seeds_check("kv_gather", [] {
    Rows rows;
    return gather_call(kI8, kBf16, 100, 2, 32, &rows);
  }));
  for (const DType out : {kI8, kF8}) {
    for (const DType in : {kF32, kBf16}) {
      checks.push_back({std::string("quantize ") + dtype_name(in) + " to " + dtype_name(out),
                        [=] { return check_quantize(in, out, 64) + check_quantize(in, out, 33); }});
    }
  }
  checks.push_back(seeds_check("quantize", [] {
    std::vector<float> values;
    return quantize_call(kF16, kI8, 40, &values);
  }));

  checks.push_back(
      {"traffic: decode attention, paged, 6 multiprocessors", [] { return check_quantised_saving(4096, 6); }});
  checks.push_back(
      {"traffic: decode attention, paged, 132 multiprocessors", [] { return check_quantised_saving(16384, 132); }});
  return checks;
}

}  // namespace diffqkv::check
