// Selective V: the earlier of equal scores, and how little of K and V is moved.
#include "operator_check.h"

namespace diffqkv::check {
namespace {

// All scores are equal, so that the first top_k rows of V are kept, each with the weight 1 / kv_len.
std::string check_earlier_wins(int64_t kv_len, int64_t top_k, int64_t num_splits) {
  constexpr int64_t kDim = 32;
  Call call = selective_call({.types = same(DType::f16),
                              .heads = {2, 1, 1},
                              .dims = {32, kDim},
                              .kv_len = kv_len,
                              .distinct_keys = 1,
                              .num_splits = num_splits,
                              .top_k = top_k});
  const std::string wrong = run_call(call, nullptr, 0, nullptr);
  if (!wrong.empty()) return wrong;
  const std::vector<float> out = floats_of_bytes(DType::f16, call.tensor("out").memory.values());
  const std::vector<float> v = floats_of_bytes(DType::f16, call.tensor("v").memory.values());
  for (size_t i = 0; i < out.size(); ++i) {
    double sum = 0;
    for (size_t j = 0; j < static_cast<size_t>(top_k); ++j) sum += static_cast<double>(v[j * kDim + i % kDim]);
    const double expected = sum / static_cast<double>(kv_len);
    if (!(std::fabs(static_cast<double>(out[i]) - expected) <= 1e-4 + std::fabs(expected) / 512)) {
      return "element " + std::to_string(i) + " is " + std::to_string(out[i]) + ", expected " +
             std::to_string(expected);
    }
  }
  return "";
}

}  // namespace

std::vector<Check> selective_checks() {
  std::vector<Check> checks;
  checks.push_back({"selective V: of equal scores the earlier wins",
                    [] { return check_earlier_wins(300, 70, 0) + check_earlier_wins(2500, 1200, 3); }});
  return checks;
}

// All bytes that one step moves over 32,768 tokens, over those of K and V. K alone is 0.2 of them.
std::string check_selective_traffic() {
  Call call = selective_call({.heads = {32, 4, 16}, .dims = {64, 64}, .kv_len = 32768, .top_k = 100});
  Counters c;
  std::string wrong = count_traffic(call, &c);
  const Tensor &k = call.tensor("k"), &v = call.tensor("v");
  const double dense = bytes_of(k) + bytes_of(v);
  wrong += within("K read", read_from(c, k) / bytes_of(k), 1, 1);
  wrong += within("V read, over 100 rows a query head", read_from(c, v) / (32 * 100 * 64 * 2), 0.99, 1);
  wrong += within("all bytes over K and V", static_cast<double>(c.read_bytes + c.written_bytes) / dense, 0.2, 0.25);
  return wrong + within("launches", static_cast<double>(c.launches), 2, 2);
}

}  // namespace diffqkv::check
