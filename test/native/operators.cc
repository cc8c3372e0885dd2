// Every operator's kernels through their launchers: the same bits whatever the order in which threads run, and the
// traffic that the design promises.
#include "operator_call.h"

namespace diffqkv::check {
namespace {

template <typename Params>
Params attention_params(Call& call, DType dtype, int64_t batch, int64_t q_len, int64_t kv_len, Heads heads, Dims dims) {
  call.tensors.push_back(random_tensor(dtype, words(batch, q_len, heads.q, dims.qk), 0.5f, 1));
  call.tensors.push_back(random_tensor(dtype, words(batch, kv_len, heads.k, dims.qk), 0.5f, 2));
  call.tensors.push_back(random_tensor(dtype, words(batch, kv_len, heads.v, dims.vo), 0.5f, 3));
  call.tensors.push_back(random_tensor(dtype, words(batch, q_len, heads.q, dims.vo), 1, 4));
  call.tensors.push_back(random_tensor(DType::f32, words(batch, q_len, heads.q), 1, 5));
  Params p;
  p.q = call.tensors[0]->data(), p.k = call.tensors[1]->data(), p.v = call.tensors[2]->data();
  p.out = call.tensors[3]->data(), p.lse = reinterpret_cast<float*>(call.tensors[4]->data());
  p.q_dtype = p.k_dtype = p.v_dtype = p.out_dtype = dtype;
  p.batch_size = batch, p.kv_len = kv_len;
  p.num_q_heads = heads.q, p.num_k_heads = heads.k, p.num_v_heads = heads.v;
  p.head_dim_qk = dims.qk, p.head_dim_vo = dims.vo;
  p.stride_k_batch = kv_len * heads.k * dims.qk, p.stride_v_batch = kv_len * heads.v * dims.vo;
  p.sm_scale = 1 / std::sqrt(static_cast<float>(dims.qk));
  return p;
}

Call decode_call(DType dtype, int64_t kv_len, Heads heads, Dims dims, int64_t num_splits, int64_t top_k = 0,
                 std::vector<int32_t> lengths = {}) {
  Call call;
  auto p = attention_params<AttentionDecodeParams>(
      call, dtype, std::max<int64_t>(1, static_cast<int64_t>(lengths.size())), 1, kv_len, heads, dims);
  if (!lengths.empty()) p.kv_lens = add_lengths(call, lengths);
  p.num_splits = num_splits, p.selective_top_k = top_k;
  call.enqueue = [p](Context& context) { attention_decode(p, context); };
  return call;
}

Call prefill_call(DType dtype, int64_t q_len, int64_t kv_len, Heads heads, Dims dims, bool causal,
                  std::vector<int32_t> lengths = {}) {
  Call call;
  auto p = attention_params<AttentionPrefillParams>(
      call, dtype, std::max<int64_t>(1, static_cast<int64_t>(lengths.size())), q_len, kv_len, heads, dims);
  if (!lengths.empty()) p.kv_lens = add_lengths(call, lengths);
  p.q_len = q_len, p.causal = causal;
  call.enqueue = [p](Context& context) { attention_prefill(p, context); };
  return call;
}

Call matmul_call(DType dtype, int64_t num_tokens, int64_t in_features, int64_t out_features, bool accumulate) {
  Call call;
  const DType out_dtype = accumulate ? DType::f32 : dtype;
  call.tensors.push_back(random_tensor(dtype, words(num_tokens, in_features), 1, 1));
  call.tensors.push_back(random_tensor(dtype, words(out_features, in_features), 1, 2));
  call.tensors.push_back(random_tensor(out_dtype, words(num_tokens, out_features), 1, 3));
  MatmulParams p;
  p.x = call.tensors[0]->data(), p.weight = call.tensors[1]->data(), p.out = call.tensors[2]->data();
  p.x_dtype = p.weight_dtype = dtype, p.out_dtype = out_dtype;
  p.num_tokens = num_tokens, p.in_features = in_features, p.out_features = out_features, p.accumulate = accumulate;
  call.enqueue = [p](Context& context) { matmul(p, context); };
  return call;
}

Call augmented_q_call(DType dtype, int64_t num_tokens, int64_t in_features, int64_t inner_size, int64_t out_features) {
  Call call;
  call.tensors.push_back(random_tensor(dtype, words(num_tokens, in_features), 1, 1));
  call.tensors.push_back(random_tensor(dtype, words(inner_size, in_features), 0.1f, 2));
  call.tensors.push_back(random_tensor(dtype, words(inner_size, in_features), 0.1f, 3));
  call.tensors.push_back(random_tensor(dtype, words(out_features, inner_size), 0.1f, 4));
  call.tensors.push_back(random_tensor(dtype, words(num_tokens, out_features), 1, 5));
  AugmentedQParams p;
  p.x = call.tensors[0]->data(), p.gate = call.tensors[1]->data(), p.up = call.tensors[2]->data();
  p.down = call.tensors[3]->data(), p.out = call.tensors[4]->data();
  p.x_dtype = p.weight_dtype = p.out_dtype = dtype;
  p.num_tokens = num_tokens, p.in_features = in_features, p.inner_size = inner_size, p.out_features = out_features;
  call.enqueue = [p](Context& context) { augmented_q(p, context); };
  return call;
}

Call rms_norm_call(int64_t num_tokens, int64_t hidden_size) {
  Call call;
  call.tensors.push_back(random_tensor(DType::f32, words(num_tokens, hidden_size), 1, 1));
  call.tensors.push_back(random_tensor(DType::f32, words(num_tokens, hidden_size), 1, 2));
  call.tensors.push_back(random_tensor(DType::f32, words(1, hidden_size), 1, 3));
  call.tensors.push_back(random_tensor(DType::bf16, words(num_tokens, hidden_size), 1, 4));
  RmsNormParams p;
  p.x = call.tensors[0]->data(), p.residual = call.tensors[1]->data(), p.weight = call.tensors[2]->data();
  p.out = call.tensors[3]->data();
  p.x_dtype = p.residual_dtype = p.weight_dtype = DType::f32, p.out_dtype = DType::bf16;
  p.num_tokens = num_tokens, p.hidden_size = hidden_size, p.eps = 1e-5f;
  call.enqueue = [p](Context& context) { rms_norm(p, context); };
  return call;
}

Call sample_call(int64_t vocab_size, float temperature, int64_t top_k, float top_p, float min_p, float penalty) {
  Call call;
  call.tensors.push_back(random_tensor(DType::f32, static_cast<size_t>(vocab_size), 3, 1));
  call.tensors.push_back(std::make_unique<Memory<uint8_t>>(std::vector<uint8_t>(4, 0)));
  SampleParams p;
  p.logits = reinterpret_cast<const float*>(call.tensors[0]->data());
  p.out_token = reinterpret_cast<int32_t*>(call.tensors[1]->data());
  p.history = add_lengths(call, {3, 5, 5, 0});
  p.history_len = 4;
  p.vocab_size = vocab_size, p.temperature = temperature, p.top_k = top_k, p.top_p = top_p, p.min_p = min_p;
  p.repetition_penalty = penalty, p.seed = 11, p.step = 3;
  call.enqueue = [p](Context& context) { sample(p, context); };
  return call;
}

// Reads, writes, sectors and conflicts of one decode step over 4,096 tokens. `*bytes`: what it read in all.
std::string check_decode_traffic(Heads heads, int64_t dim, int multiprocessors, double* bytes) {
  constexpr int64_t kTokens = 4096;
  Call call = decode_call(DType::bf16, kTokens, heads, {dim, dim}, 0);
  Counters c;
  size_t partials = 0;
  std::string wrong = run_call(call, &c, 0, nullptr, &partials, multiprocessors);
  if (!wrong.empty()) return wrong;
  const double kv = static_cast<double>(call.tensors[1]->bytes() + call.tensors[2]->bytes());
  const double written = static_cast<double>(call.tensors[3]->bytes() + call.tensors[4]->bytes() + partials);
  *bytes = static_cast<double>(c.read_bytes);
  wrong += within("K read", read_from(c, *call.tensors[1]) / static_cast<double>(call.tensors[1]->bytes()), 1, 1);
  wrong += within("V read", read_from(c, *call.tensors[2]) / static_cast<double>(call.tensors[2]->bytes()), 1, 1);
  wrong += within("all reads over K and V", *bytes / kv, 1, 1.03);
  wrong += within("all writes over output and partials", static_cast<double>(c.written_bytes) / written, 0.1, 1.02);
  wrong += within("bytes of sectors read over bytes read", 32 * static_cast<double>(c.read_sectors) / *bytes, 1, 1.01);
  wrong += within("launches", static_cast<double>(c.launches), 1, 1);
  // The main loop's accesses are thousands; a few conflicts where warps merge at the end are not in it.
  for (const auto& [line, conflicts] : c.conflicts_by_line)
    wrong += within(("bank conflicts at " + line).c_str(), static_cast<double>(conflicts) / kTokens, 0, 0.02);
  return wrong;
}

std::string check_decode_saving(int64_t dim, int multiprocessors) {
  double sigma = 0, standard = 0;
  std::string wrong = check_decode_traffic({32, 4, 16}, dim, multiprocessors, &sigma);
  wrong += check_decode_traffic({32, 16, 16}, dim, multiprocessors, &standard);
  return wrong + within("bytes read by 32/4/16 over 32/16/16", sigma / standard, 0.615, 0.635);
}

// One tile of queries reads each K and V row once, however many heads share them; more tiles, once each.
std::string check_prefill_traffic(int64_t dim) {
  std::string wrong;
  for (const int64_t q_len : {int64_t{8}, int64_t{256}}) {
    Call call = prefill_call(DType::bf16, q_len, 512, {32, 4, 16}, {dim, dim}, false);
    Counters c;
    wrong += run_call(call, &c, 0, nullptr);
    const double k = read_from(c, *call.tensors[1]) / static_cast<double>(call.tensors[1]->bytes());
    const double v = read_from(c, *call.tensors[2]) / static_cast<double>(call.tensors[2]->bytes());
    const double tiles = q_len == 8 ? 1 : dim == 64 ? 8 : 16;  // 32 positions a tile, or 16
    wrong += within("K read", k, tiles, tiles);
    wrong += within("V read over K read", v / k, 1, 1);
  }
  return wrong;
}

std::string check_gemv_traffic(int64_t num_tokens) {
  Call call = matmul_call(DType::bf16, num_tokens, 1024, 768, false);
  Counters c;
  std::string wrong = run_call(call, &c, 0, nullptr);
  wrong += within("weights read", read_from(c, *call.tensors[1]) / static_cast<double>(call.tensors[1]->bytes()), 1, 1);
  Call gated = augmented_q_call(DType::bf16, num_tokens, 512, 384, 256);
  Counters g;
  wrong += run_call(gated, &g, 0, nullptr);
  for (int i = 1; i <= 3; ++i) {
    const auto& weight = *gated.tensors[static_cast<size_t>(i)];
    wrong += within("gate, up, down read", read_from(g, weight) / static_cast<double>(weight.bytes()), 1, 1);
  }
  return wrong;
}

}  // namespace

std::vector<Check> operator_checks() {
  std::vector<Check> checks;
  const auto seeds = [&](const std::string& name, std::function<Call()> make) {
    checks.push_back(seeds_check(name, std::move(make)));
  };
  constexpr DType kBf16 = DType::bf16, kF16 = DType::f16, kF32 = DType::f32;
  seeds("decode attention 32/4/16 x 64", [] { return decode_call(kBf16, 300, {32, 4, 16}, {64, 64}, 3); });
  seeds("decode attention 8/8/8 x 128", [] { return decode_call(kF16, 200, {8, 8, 8}, {128, 128}, 2); });
  seeds("decode attention 6/6/1 x 32/128", [] { return decode_call(kBf16, 130, {6, 6, 1}, {32, 128}, 0); });
  seeds("decode attention, ragged", [] { return decode_call(kBf16, 90, {12, 3, 6}, {64, 64}, 2, 0, {90, 0, 33}); });
  seeds("decode attention x 256", [] { return decode_call(kBf16, 100, {8, 2, 4}, {256, 256}, 2); });
  seeds("decode attention, f32", [] { return decode_call(kF32, 100, {8, 2, 4}, {64, 64}, 0); });
  seeds("decode attention, top 10", [] { return decode_call(kBf16, 300, {8, 2, 4}, {64, 64}, 0, 10); });
  seeds("prefill attention 32/4/16 x 64", [] { return prefill_call(kBf16, 20, 70, {32, 4, 16}, {64, 64}, true); });
  seeds("prefill attention 8/8/8 x 128", [] { return prefill_call(kF16, 30, 70, {8, 8, 8}, {128, 128}, true); });
  seeds("prefill attention 6/6/1 x 32/128", [] { return prefill_call(kBf16, 20, 40, {6, 6, 1}, {32, 128}, false); });
  seeds("prefill attention, ragged", [] {
    return prefill_call(kBf16, 9, 40, {12, 3, 6}, {64, 64}, true, {40, 0, 17});
  });
  seeds("prefill attention x 256", [] { return prefill_call(kBf16, 20, 50, {8, 2, 4}, {256, 256}, true); });
  seeds("prefill attention, f32", [] { return prefill_call(kF32, 9, 30, {8, 2, 4}, {64, 64}, true); });
  seeds("decode attention 32/1/1 x 64", [] { return decode_call(kBf16, 150, {32, 1, 1}, {64, 64}, 3); });
  seeds("decode attention 32/1/4 x 128", [] { return decode_call(kBf16, 150, {32, 1, 4}, {128, 128}, 2); });
  seeds("prefill attention 12/4/6, plain", [] { return prefill_call(kBf16, 9, 30, {12, 4, 6}, {80, 64}, true); });
  seeds("GEMV, f32", [] { return matmul_call(kF32, 3, 264, 96, true); });
  seeds("GEMV, rows not aligned", [] { return matmul_call(kBf16, 2, 131, 50, false); });
  seeds("GEMM, rows not aligned", [] { return matmul_call(kBf16, 20, 131, 50, false); });
  seeds("GEMM, large tiles", [] { return matmul_call(kBf16, 260, 96, 1024, false); });
  seeds("augmented Q, f16", [] { return augmented_q_call(kF16, 20, 128, 96, 64); });
  seeds("RMSNorm, rows not aligned", [] { return rms_norm_call(2, 601); });
  seeds("GEMV", [] { return matmul_call(kBf16, 3, 264, 96, true); });
  seeds("GEMM", [] { return matmul_call(kBf16, 70, 200, 136, false); });
  seeds("GEMM, accumulated", [] { return matmul_call(kF16, 17, 72, 72, true); });
  seeds("augmented Q, few tokens", [] { return augmented_q_call(kBf16, 2, 128, 96, 64); });
  seeds("augmented Q, many tokens", [] { return augmented_q_call(kBf16, 40, 128, 96, 64); });
  seeds("augmented Q, f32, few tokens", [] { return augmented_q_call(kF32, 3, 64, 48, 32); });
  seeds("RMSNorm", [] { return rms_norm_call(3, 600); });
  seeds("greedy token", [] { return sample_call(5000, 0, 0, 1, 0, 1.2f); });
  seeds("sampled token", [] { return sample_call(5000, 0.8f, 40, 0.9f, 0.01f, 1.1f); });
  for (const int multiprocessors : {6, 132}) {
    for (const int64_t dim : {64, 128}) {
      checks.push_back({"traffic: decode attention x " + std::to_string(dim) + ", " + std::to_string(multiprocessors) +
                            " multiprocessors",
                        [=] { return check_decode_saving(dim, multiprocessors); }});
    }
  }
  checks.push_back({"traffic: prefill attention x 64", [] { return check_prefill_traffic(64); }});
  checks.push_back({"traffic: prefill attention x 128", [] { return check_prefill_traffic(128); }});
  for (const int64_t num_tokens : {1, 4, 8}) {
    checks.push_back({"traffic: GEMV, " + std::to_string(num_tokens) + " tokens",
                      [num_tokens] { return check_gemv_traffic(num_tokens); }});
  }
  for (Check& check : kv_cache_checks()) checks.push_back(std::move(check));
  for (Check& check : selective_checks()) checks.push_back(std::move(check));
  return checks;
}

}  // namespace diffqkv::check
