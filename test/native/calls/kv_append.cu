// Calls of kv_append.
#include "calls/plain.h"

namespace diffqkv::cuda {

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
  if (c.rotate) {
    const size_t count = count_of({num_tokens, heads.q, c.dims.qk});
    p.q.x = p.q.out = add_output(call, "q", c.dtype, count, Comparison::values, c.dims.qk, c.dtype);
    call.tensor("q").memory.upload(random_bytes(c.dtype, count, 0.1f, 3));
    p.q.positions = p.positions;
    p.q.inv_freq = p.inv_freq;
    p.q.dtype = c.dtype;
    p.q.num_tokens = num_tokens;
    p.q.num_heads = heads.q;
    p.q.head_dim = c.dims.qk;
    p.q.scale = p.rope_scale;
  }
  set_operator(call, kv_append, p);
  return call;
}

namespace {

template <typename Value>
__device__ __forceinline__ void write_cache_row(int64_t dim, DType dtype, const Value& value, const Row& row) {
  if (is_quantized(dtype)) {
    return quantize_plainly(
        dim, dtype, value, [&](int64_t d) { return row.at(d); }, row.scale);
  }
  for (int64_t d = 0; d < dim; ++d) store_any(row.at(d), dtype, 0, value(d));
}

__device__ __forceinline__ float key_element(const KvAppendParams& p, int64_t token, int64_t head, int64_t d) {
  const int64_t dim = p.k_cache.head_dim, half = dim / 2, first = (token * p.k_cache.num_heads + head) * dim;
  if (!p.inv_freq) return load_any(p.k, p.k_dtype, first + d);
  const Pair pair = rotated_pair(p.k, p.k_dtype, first, dim, d < half ? d : d - half, ld_global(p.positions + token),
                                 p.inv_freq, p.rope_scale);
  return d < half ? pair.low : pair.high;
}

// One row of K or V of a new token.
__global__ void __launch_bounds__(kPlainThreads, 1) kv_append_row(KvAppendParams p) {
  const int64_t heads = p.k_cache.num_heads + p.v_cache.num_heads, i = output_index();
  if (i >= p.num_tokens * heads) return;
  const int64_t token = i / heads, head = i % heads, position = ld_global(p.positions + token);
  const KvPage page =
      page_of(ld_global(p.pages + (p.sequences ? ld_global(p.sequences + token) : 0)), position, p.page_tokens);
  if (head < p.k_cache.num_heads) {
    const Row row = cache_row(page.k, p.k_cache, p.page_tokens, position, head);
    const auto value = [&](int64_t d) { return key_element(p, token, head, d); };
    write_cache_row(p.k_cache.head_dim, p.k_cache.dtype, value, row);
  } else {
    const int64_t v_head = head - p.k_cache.num_heads,
                  first = (token * p.v_cache.num_heads + v_head) * p.v_cache.head_dim;
    const Row row = cache_row(page.v, p.v_cache, p.page_tokens, position, v_head);
    const auto value = [&](int64_t d) { return load_any(p.v, p.v_dtype, first + d); };
    write_cache_row(p.v_cache.head_dim, p.v_cache.dtype, value, row);
  }
}

struct RotatedKeysParams {
  KvAppendParams p;
  float* out;
};

__global__ void __launch_bounds__(kPlainThreads, 1) rotated_key_element(RotatedKeysParams r) {
  const int64_t dim = r.p.k_cache.head_dim, i = output_index();
  if (i >= r.p.num_tokens * r.p.k_cache.num_heads * dim) return;
  const int64_t row = i / dim;
  st_global(r.out + i, key_element(r.p, row / r.p.k_cache.num_heads, row % r.p.k_cache.num_heads, i % dim));
}

}  // namespace

void reference(const KvAppendParams& p, Context& context) {
  run_over(p.num_tokens * (p.k_cache.num_heads + p.v_cache.num_heads), kv_append_row, p, context);
  reference(p.q, context);
}

std::vector<float> rotated_keys(const KvAppendParams& p, Context& context) {
  const int64_t count = p.num_tokens * p.k_cache.num_heads * p.k_cache.head_dim;
  const RotatedKeysParams r = {p, static_cast<float*>(context.scratch(static_cast<size_t>(count) * sizeof(float)))};
  run_over(count, rotated_key_element, r, context);
  check_cuda(cudaStreamSynchronize(context.stream), "reference");
  return download(r.out, count);
}

OperatorCalls kv_append_calls() {
  OperatorCalls calls;
  const auto append = [](CallList& list, const KvAppendCase& c) {
    list.add("kv_append, " + text_of(c.k) + " and " + text_of(c.v), kv_append_call, c);
  };
  append(calls.seeded, {kF32, kBf16, kBf16, {64, 64}, true});
  append(calls.seeded, {kBf16, kI8, kF8, {64, 32}, true});
  append(calls.seeded, {kF16, kF8, kI8, {11, 10}, false});
  append(calls.seeded, {kBf16, kF32, kI8, {32, 64}, false});
  append(calls.small, {kBf16, kF8, kF8, {128, 128}, true});
  for (const DType dtype : kFloats) {
    const int64_t dim = dtype == kF32 ? 10 : 64;
    calls.small.add("kv_append, all in " + text_of(dtype), kv_append_call, {dtype, dtype, dtype, {dim, dim}, true});
  }
  for (const Sigma& model : kSigmas) {
    for (const int64_t tokens : kSigmaTokens) {
      for (const DType cache : {kBf16, kI8}) {
        calls.sigma.add(model.name + "kv_append" + (cache == kI8 ? " to i8, " : ", ") + tokens_text(tokens),
                        kv_append_call,
                        {kBf16, cache, cache, {model.head_dim, model.head_dim}, true, kSigmaHeads, tokens});
      }
    }
  }

  int i = 0;
  for (const DType dtype : kFloats) {
    const std::string type = "kv_append, " + text_of(dtype);
    for (const DType k : kCacheTypes) {
      for (const DType v : kCacheTypes) {
        for (const Dims& dims : {Dims{64, 72}, Dims{10, 9}}) {
          const bool rotate = i++ % 4 != 0;
          calls.ptx.add(type + " to " + text_of(k) + " and " + text_of(v) + (rotate ? ", rotated" : "") +
                            ", heads of " + std::to_string(dims.vo),
                        kv_append_call, {dtype, k, v, dims, rotate});
        }
      }
      for (const Dims& dims : {Dims{520, 600}, Dims{514, 601}}) {
        // RoPE in f32 cancels in some of so many elements, and a pool has no rows to judge them by.
        const bool rotate = dtype != kF32 || k != kF32;
        calls.ptx.add(type + " to " + text_of(k) + ", heads of " + std::to_string(dims.vo), kv_append_call,
                      {dtype, k, k, dims, rotate});
      }
    }
    calls.ptx.add_rejected(type + ", a position that is none", [=] {
      return with_integers(kv_append_call({dtype, kBf16, kI8, {10, dtype == kF32 ? 9 : 64}, true}), kv_append,
                           &KvAppendParams::positions, {0, dtype == kF16 ? -1 : 71, 1, 2, 64});
    });
  }
  return calls;
}

}  // namespace diffqkv::cuda
