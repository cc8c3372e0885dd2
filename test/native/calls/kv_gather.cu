// Calls of kv_gather.
#include "calls/plain.h"

namespace diffqkv::cuda {

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

namespace {

__global__ void __launch_bounds__(kPlainThreads, 1) kv_gather_element(KvGatherParams p) {
  const int64_t i = output_index(), row = i / p.k.head_dim, key = row / p.k.num_heads;
  if (key >= p.num_keys) return;
  const Row from = cache_row(page_of(p.pages, key, p.page_tokens).k, p.k, p.page_tokens, key, row % p.k.num_heads);
  const float x = load_code(from.at(i % p.k.head_dim), p.k.dtype, 0);
  store_any(p.out, p.out_dtype, i, is_quantized(p.k.dtype) ? x * load_float(from.scale) : x);
}

}  // namespace

void reference(const KvGatherParams& p, Context& context) {
  run_over(p.num_keys * p.k.num_heads * p.k.head_dim, kv_gather_element, p, context);
}

OperatorCalls kv_gather_calls() {
  OperatorCalls calls;
  calls.seeded.add("kv_gather", kv_gather_call, {kI8, kBf16, 100, 2, 32});
  for (const DType cache : kCacheTypes) {
    const std::string name = "kv_gather of " + text_of(cache);
    calls.small.add(name, kv_gather_call, {cache, kF32, 150, 4, 64});
    calls.small.add(name + ", heads of 10", kv_gather_call, {cache, kF32, 150, 3, 10});
    for (const DType out : kFloats) {
      const std::string types = "kv_gather, " + text_of(cache) + " to " + text_of(out);
      calls.ptx.add(types, kv_gather_call, {cache, out, 70, 2, 64});
      calls.ptx.add(types + ", heads of 10", kv_gather_call, {cache, out, 70, 3, 10});
    }
  }
  for (const Sigma& model : kSigmas) {
    calls.sigma.add(model.name + "kv_gather of f8e4m3, 4k", kv_gather_call,
                    {kF8, kBf16, 4096, kSigmaHeads.k, model.head_dim});
  }
  return calls;
}

}  // namespace diffqkv::cuda
