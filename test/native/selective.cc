// Selective V: the same bits in any order of threads, the earlier of equal scores, and how little of K and V is moved.
#include <algorithm>

#include "operator_call.h"

namespace diffqkv::check {
namespace {

struct Case {
  const char* name;
  DType dtype;
  Heads heads;
  Dims dims;
  int64_t kv_len, top_k, num_splits;
  std::vector<int32_t> lengths = {};
  bool shared_cache = false, renormalize = false;
  int64_t distinct_keys = 0;  // rows of K that differ; 0: all do
};

Call selective_call(const Case& c) {
  Call call;
  const auto add = [&](std::unique_ptr<Memory<uint8_t>> tensor) {
    call.tensors.push_back(std::move(tensor));
    return call.tensors.back()->data();
  };
  const int64_t batch = std::max<int64_t>(1, static_cast<int64_t>(c.lengths.size()));
  const int64_t caches = c.shared_cache ? 1 : batch;
  AttentionDecodeParams p;
  p.out = add(random_tensor(c.dtype, words(batch, c.heads.q, c.dims.vo), 1, 4));
  p.lse = reinterpret_cast<float*>(add(random_tensor(DType::f32, words(batch, c.heads.q), 1, 5)));
  p.q = add(random_tensor(c.dtype, words(batch, c.heads.q, c.dims.qk), 0.5f, 1));
  uint8_t* const k = add(random_tensor(c.dtype, words(caches, c.kv_len, c.heads.k, c.dims.qk), 0.5f, 2));
  const size_t row = words(c.heads.k, c.dims.qk) * dtype_size(c.dtype);
  for (int64_t j = c.distinct_keys; c.distinct_keys > 0 && j < caches * c.kv_len; ++j)
    std::memcpy(k + static_cast<size_t>(j) * row, k + static_cast<size_t>(j % c.distinct_keys) * row, row);
  p.k = k;
  p.v = add(random_tensor(c.dtype, words(caches, c.kv_len, c.heads.v, c.dims.vo), 0.5f, 3));
  if (!c.lengths.empty()) p.kv_lens = add_lengths(call, c.lengths);
  p.q_dtype = p.k_dtype = p.v_dtype = p.out_dtype = c.dtype;
  p.batch_size = batch, p.kv_len = c.kv_len;
  p.num_q_heads = c.heads.q, p.num_k_heads = c.heads.k, p.num_v_heads = c.heads.v;
  p.head_dim_qk = c.dims.qk, p.head_dim_vo = c.dims.vo;
  if (!c.shared_cache) {
    p.stride_k_batch = c.kv_len * c.heads.k * c.dims.qk, p.stride_v_batch = c.kv_len * c.heads.v * c.dims.vo;
  }
  p.sm_scale = 1 / std::sqrt(static_cast<float>(c.dims.qk));
  p.num_splits = c.num_splits, p.selective_top_k = c.top_k, p.renormalize = c.renormalize;
  call.enqueue = [p](Context& context) {
    if (!attention_selective(p, context)) throw std::runtime_error("attention_selective does not take the call");
  };
  return call;
}

// All scores are equal, so that the first top_k rows of V are kept, each with the weight 1 / kv_len.
std::string check_earlier_wins(int64_t kv_len, int64_t top_k, int64_t num_splits) {
  const int64_t dim = 32;
  Call call = selective_call({"", DType::f16, {2, 1, 1}, {32, dim}, kv_len, top_k, num_splits, {}, false, false, 1});
  std::string wrong = run_call(call, nullptr, 0, nullptr);
  if (!wrong.empty()) return wrong;
  std::vector<float> out(words(2, dim)), v(words(kv_len, dim));
  convert_to_f32(DType::f16, out.data(), call.tensors[0]->data(), out.size());
  convert_to_f32(DType::f16, v.data(), call.tensors[4]->data(), v.size());
  for (size_t i = 0; i < out.size(); ++i) {
    double sum = 0;
    for (size_t j = 0; j < words(top_k, 1); ++j) sum += static_cast<double>(v[j * words(dim, 1) + i % words(dim, 1)]);
    const double expected = sum / static_cast<double>(kv_len);
    if (!(std::fabs(static_cast<double>(out[i]) - expected) <= 1e-4 + std::fabs(expected) / 512)) {
      return "element " + std::to_string(i) + " is " + std::to_string(out[i]) + ", expected " +
             std::to_string(expected);
    }
  }
  return "";
}

// All bytes that one step moves over 32,768 tokens, over those of K and V. K alone is 0.2 of them.
std::string check_traffic(int multiprocessors) {
  Call call = selective_call({"", DType::bf16, {32, 4, 16}, {64, 64}, 32768, 100, 0});
  Counters c;
  std::string wrong = run_call(call, &c, 0, nullptr, nullptr, multiprocessors);
  const Memory<uint8_t>&k = *call.tensors[3], &v = *call.tensors[4];
  const double dense = static_cast<double>(k.bytes() + v.bytes());
  wrong += within("K read", read_from(c, k) / static_cast<double>(k.bytes()), 1, 1);
  wrong += within("V read, over 100 rows a query head", read_from(c, v) / (32 * 100 * 64 * 2), 0.99, 1);
  wrong += within("all bytes over K and V", static_cast<double>(c.read_bytes + c.written_bytes) / dense, 0.2, 0.25);
  return wrong + within("launches", static_cast<double>(c.launches), 2, 2);
}

}  // namespace

std::vector<Check> selective_checks() {
  constexpr DType kBf16 = DType::bf16, kF16 = DType::f16;
  const std::vector<Case> cases = {
      {"32/4/16 x 64", kBf16, {32, 4, 16}, {64, 64}, 300, 20, 3},
      {"32/1/4 x 128/96, all but one", kF16, {32, 1, 4}, {128, 96}, 150, 149, 2, {}, false, true},
      {"8/8/8 x 32, all", kBf16, {8, 8, 8}, {32, 32}, 90, 100, 0},
      {"equal scores", kBf16, {8, 2, 4}, {64, 64}, 700, 300, 2, {}, false, false, 3},
      {"ragged", kF16, {12, 3, 6}, {64, 32}, 130, 10, 2, {130, 0, 33}, false, true},
      {"one cache for all", kBf16, {8, 2, 4}, {64, 64}, 100, 60, 0, {98, 99, 100}, true},
      {"x 256", kBf16, {8, 2, 4}, {256, 256}, 100, 30, 0}};
  std::vector<Check> checks;
  for (const Case& c : cases) {
    checks.push_back(seeds_check(std::string("selective V, ") + c.name, [c] { return selective_call(c); }));
  }
  checks.push_back({"selective V: of equal scores the earlier wins",
                    [] { return check_earlier_wins(300, 70, 0) + check_earlier_wins(2500, 1200, 3); }});
  for (const int multiprocessors : {6, 132}) {
    checks.push_back({"traffic: selective V, " + std::to_string(multiprocessors) + " multiprocessors",
                      [=] { return check_traffic(multiprocessors); }});
  }
  return checks;
}

}  // namespace diffqkv::check
