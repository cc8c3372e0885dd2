// Calls of what works on a KV cache: pools of pages, kv_append, kv_gather and quantize; and their tables.
#include <algorithm>
#include <cmath>

#include "calls/call.h"
#include "random.h"

namespace diffqkv::cuda {

Rows random_rows(DType dtype, size_t count, int64_t dim, uint64_t seed) {
  return {random_memory(dtype, count * static_cast<size_t>(dim), 0.1f, seed),
          random_scale_memory(is_quantized(dtype) ? count : 0, seed + 100)};
}

namespace {

struct PoolPlan {
  DType dtype;
  int64_t heads, dim, offset;
  const Rows* rows;
};

void copy(uint8_t* to, const Memory<uint8_t>& from, size_t at, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from.data() + at, bytes, cudaMemcpyDeviceToDevice), "copy");
}

// The pages of all sequences, of which `order` says where each is in the pool.
Memory<uint8_t> make_pool(const PoolPlan& plan, const PoolShape& shape, int64_t kv_len,
                          const std::vector<size_t>& order, size_t page_bytes) {
  const size_t row = count_of({plan.heads, plan.dim}) * dtype_size(plan.dtype);
  const size_t scale_row = static_cast<size_t>(plan.heads) * 2;
  Memory<uint8_t> pool(order.size() * page_bytes);
  if (plan.rows == nullptr) return pool;
  auto place = order.begin();
  for (size_t b = 0; b < shape.lengths.size(); ++b) {
    for (int64_t token = 0; token < shape.lengths[b]; token += shape.page_tokens, ++place) {
      uint8_t* const layer = pool.data() + *place * page_bytes + plan.offset;
      const size_t from = b * static_cast<size_t>(kv_len) + static_cast<size_t>(token);
      const size_t count = static_cast<size_t>(std::min<int64_t>(shape.page_tokens, shape.lengths[b] - token));
      copy(layer, plan.rows->elements, from * row, count * row);
      if (!is_quantized(plan.dtype)) continue;
      uint8_t* const scales = layer + static_cast<size_t>(shape.page_tokens) * row;
      copy(scales, plan.rows->scales, from * scale_row, count * scale_row);
    }
  }
  check_cuda(cudaDeviceSynchronize(), "copy");
  return pool;
}

}  // namespace

const KvPage* const* add_pools(Call& call, const PoolShape& shape, int64_t kv_len, const Rows* k, const Rows* v) {
  std::vector<size_t> counts, order;
  for (const int32_t length : shape.lengths) {
    counts.push_back(static_cast<size_t>((length + shape.page_tokens - 1) / shape.page_tokens));
    order.resize(order.size() + counts.back());
  }
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  check::Random random(9);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.word() % i]);

  std::vector<KvPage> pages(order.size());
  const auto add = [&](const char* name, const PoolPlan& plan, void* KvPage::*start) {
    const int64_t layer = kv_page_layer_bytes(plan.dtype, shape.page_tokens, plan.heads, plan.dim);
    const size_t page_bytes = static_cast<size_t>(layer + plan.offset + 255) / 256 * 256;
    uint8_t* const pool = add_memory(call, name, plan.dtype, make_pool(plan, shape, kv_len, order, page_bytes));
    for (size_t i = 0; i < order.size(); ++i) pages[i].*start = pool + order[i] * page_bytes;
  };
  add("k_pool", {shape.k, shape.heads.k, shape.dims.qk, kKPageOffset, k}, &KvPage::k);
  add("v_pool", {shape.v, shape.heads.v, shape.dims.vo, kVPageOffset, v}, &KvPage::v);

  // Each table in memory of its own, with nothing behind it.
  std::vector<const KvPage*> tables;
  auto first = pages.begin();
  for (const size_t count : counts) {
    const auto end = first + static_cast<int64_t>(count);
    std::vector<KvPage> table(first, end);
    const int64_t first_token = shape.lengths[tables.size()] - shape.last_tokens;
    for (int64_t i = 0; shape.last_tokens > 0 && (i + 1) * shape.page_tokens <= first_token; ++i)
      table[static_cast<size_t>(i)] = {nullptr, nullptr};
    call.pages.emplace_back(table);
    tables.push_back(call.pages.back().data());
    first = end;
  }
  call.tables = std::make_unique<Memory<const KvPage*>>(tables);
  return call.tables->data();
}

Call kv_append_call(const KvAppendCase& c) {
  const Heads heads = c.heads;
  std::vector<int32_t> sequences = {1, 0, 1, 0, 1}, positions = {0, 70, 1, 3, 64}, lengths = {71, 65};
  if (c.num_tokens > 0) {
    constexpr int32_t kFirst = 100;
    sequences.assign(static_cast<size_t>(c.num_tokens), 0);
    positions.resize(sequences.size());
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = kFirst + static_cast<int32_t>(i);
    lengths = {kFirst + static_cast<int32_t>(c.num_tokens)};
  }
  const int64_t num_tokens = static_cast<int64_t>(sequences.size());
  Call call;
  KvAppendParams p;
  p.k = add_random(call, "k", c.dtype, count_of({num_tokens, heads.k, c.dims.qk}), 0.1f, 1);
  p.v = add_random(call, "v", c.dtype, count_of({num_tokens, heads.v, c.dims.vo}), 0.1f, 2);
  p.sequences = add_integers(call, "sequences", sequences);
  p.positions = add_integers(call, "positions", positions);
  if (c.rotate) p.inv_freq = add_frequencies(call, c.dims.qk);
  p.rope_scale = 0.75f;
  p.pages = add_pools(call, {c.k, c.v, heads, c.dims, 64, lengths}, 0, nullptr, nullptr);
  // RoPE rounds as the device's compiler has it; all else is data movement.
  const Comparison k_comparison = !c.rotate           ? Comparison::bits
                                  : is_quantized(c.k) ? Comparison::quantized_pool
                                                      : Comparison::values;
  for (size_t i = 0; i < call.tensors.size(); ++i) {
    if (call.tensors[i].name == "k_pool") call.outputs.push_back({i, k_comparison, 1, coarsest({c.dtype, c.k})});
    if (call.tensors[i].name == "v_pool") call.outputs.push_back({i, Comparison::bits, 1});
  }
  p.k_dtype = c.dtype;
  p.v_dtype = c.dtype;
  p.k_cache.dtype = c.k;
  p.v_cache.dtype = c.v;
  p.num_tokens = num_tokens;
  p.max_kv_len = lengths[0];
  p.k_cache.num_heads = heads.k;
  p.v_cache.num_heads = heads.v;
  p.k_cache.head_dim = c.dims.qk;
  p.v_cache.head_dim = c.dims.vo;
  p.page_tokens = 64;
  p.k_cache.page_offset = kKPageOffset;
  p.v_cache.page_offset = kVPageOffset;
  set_operator(call, kv_append, p);
  return call;
}

Call kv_gather_call(const KvGatherCase& c) {
  Call call;
  KvGatherParams p;
  p.out = add_output(call, "out", c.out, count_of({c.num_keys, c.heads, c.dim}), Comparison::bits);
  const Rows k = random_rows(c.cache, count_of({c.num_keys, c.heads}), c.dim, kGatherSeed);
  const Rows v = random_rows(DType::bf16, count_of({c.num_keys}), 32, 3);
  const PoolShape shape = {c.cache, DType::bf16, {1, c.heads, 1}, {c.dim, 32}, 64, {static_cast<int32_t>(c.num_keys)}};
  add_pools(call, shape, c.num_keys, &k, &v);
  p.pages = call.pages[0].data();
  p.k.dtype = c.cache;
  p.out_dtype = c.out;
  p.num_keys = c.num_keys;
  p.k.num_heads = c.heads;
  p.k.head_dim = c.dim;
  p.page_tokens = 64;
  p.k.page_offset = kKPageOffset;
  set_operator(call, kv_gather, p);
  return call;
}

Call quantize_call(const QuantizeCase& c) {
  check::Random random(5);
  std::vector<float> values(count_of({c.num_rows, c.dim}));
  const auto row_of = [&](int64_t row) { return values.begin() + row * c.dim; };
  for (int64_t row = 0; row < c.num_rows; ++row) {
    const float size = row == 3 ? 0.0f : row == 4 ? 0x1p-110f : std::exp2(random.normal(10));
    for (int64_t d = 0; d < c.dim; ++d) row_of(row)[d] = random.normal(size);
  }
  row_of(7)[2] = NAN;
  row_of(8)[1] = -INFINITY;
  Call call;
  QuantizeParams p;
  p.x = add_tensor(call, "x", c.x, bytes_of_floats(c.x, values));
  p.out = add_output(call, "out", c.out, values.size(), Comparison::bits);
  p.scales = add_output(call, "scales", DType::bf16, count_of({c.num_rows}), Comparison::bits);
  p.x_dtype = c.x;
  p.out_dtype = c.out;
  p.num_rows = c.num_rows;
  p.head_dim = c.dim;
  set_operator(call, quantize, p);
  return call;
}

// ---- Tables.

namespace {

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kF8 = DType::f8e4m3;

NamedCall append(const KvAppendCase& c) {
  return {std::string("kv_append, ") + dtype_name(c.k) + " and " + dtype_name(c.v), [c] { return kv_append_call(c); }};
}
// Appends rows of the cache's own type, with RoPE.
NamedCall append_same(DType dtype, int64_t dim) {
  const KvAppendCase c = {dtype, dtype, dtype, {dim, dim}, true};
  return {std::string("kv_append, all in ") + dtype_name(dtype), [c] { return kv_append_call(c); }};
}
NamedCall gather(const std::string& name, const KvGatherCase& c) {
  return {"kv_gather" + name, [c] { return kv_gather_call(c); }};
}
NamedCall quantization(const std::string& name, const QuantizeCase& c) {
  return {"quantize" + name, [c] { return quantize_call(c); }};
}

}  // namespace

std::vector<NamedCall> seeded_cache_calls() {
  return {append({kF32, kBf16, kBf16, {64, 64}, true}), append({kBf16, kI8, kF8, {64, 32}, true}),
          append({kF16, kF8, kI8, {11, 10}, false}),    append({kBf16, kF32, kI8, {32, 64}, false}),
          gather("", {kI8, kBf16, 100, 2, 32}),         quantization("", {kF16, kI8, 40})};
}

std::vector<NamedCall> more_cache_calls() {
  std::vector<NamedCall> calls = {append_same(kBf16, 64), append_same(kF16, 64), append_same(kF32, 10),
                                  append({kBf16, kF8, kF8, {128, 128}, true})};
  for (const DType cache : {kF32, kF16, kBf16, kI8, kF8}) {
    const std::string name = std::string(" of ") + dtype_name(cache);
    calls.push_back(gather(name, {cache, kF32, 150, 4, 64}));
    calls.push_back(gather(name + ", heads of 10", {cache, kF32, 150, 3, 10}));
  }
  for (const DType out : {kI8, kF8}) {
    for (const DType x : {kF32, kBf16}) {
      const std::string name = std::string(" ") + dtype_name(x) + " to " + dtype_name(out);
      calls.push_back(quantization(name, {x, out, 64}));
      calls.push_back(quantization(name + ", rows of 33", {x, out, 33}));
    }
  }
  return calls;
}

}  // namespace diffqkv::cuda
