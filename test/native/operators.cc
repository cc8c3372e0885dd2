// Every operator's kernels through their launchers: the same bits whatever the order in which threads run, and the
// traffic that the design promises.
#include "operator_check.h"

namespace diffqkv::check {
namespace {

// Reads, writes, sectors and conflicts of one decode step over 4,096 tokens. `*bytes`: what it read in all.
std::string check_decode_traffic(Heads heads, int64_t dim, int multiprocessors, double* bytes) {
  constexpr int64_t kTokens = 4096;
  Call call = decode_call({.heads = heads, .dims = {dim, dim}, .kv_len = kTokens});
  Counters c;
  size_t partials = 0;
  std::string wrong = run_call(call, &c, 0, nullptr, &partials, multiprocessors);
  if (!wrong.empty()) return wrong;
  const Tensor &k = call.tensor("k"), &v = call.tensor("v");
  const double kv = bytes_of(k) + bytes_of(v);
  const double written = bytes_of(call.tensor("out")) + bytes_of(call.tensor("lse")) + static_cast<double>(partials);
  *bytes = static_cast<double>(c.read_bytes);
  wrong += within("K read", read_from(c, k) / bytes_of(k), 1, 1);
  wrong += within("V read", read_from(c, v) / bytes_of(v), 1, 1);
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
    Call call =
        prefill_call({.heads = {32, 4, 16}, .dims = {dim, dim}, .kv_len = 512, .q_len = q_len, .causal = false});
    Counters c;
    wrong += run_call(call, &c, 0, nullptr);
    const double k = read_from(c, call.tensor("k")) / bytes_of(call.tensor("k"));
    const double v = read_from(c, call.tensor("v")) / bytes_of(call.tensor("v"));
    const double tiles = q_len == 8 ? 1 : dim == 64 ? 8 : 16;  // 32 positions a tile, or 16
    wrong += within("K read", k, tiles, tiles);
    wrong += within("V read over K read", v / k, 1, 1);
  }
  return wrong;
}

std::string check_gemv_traffic(int64_t num_tokens) {
  Call call = matmul_call({DType::bf16, num_tokens, 1024, 768});
  Counters c;
  std::string wrong = run_call(call, &c, 0, nullptr);
  wrong += within("weights read", read_from(c, call.tensor("weight")) / bytes_of(call.tensor("weight")), 1, 1);
  Call gated = augmented_q_call({DType::bf16, num_tokens, 512, 384, 256});
  Counters g;
  wrong += run_call(gated, &g, 0, nullptr);
  for (const char* name : {"gate", "up", "down"})
    wrong += within("gate, up, down read", read_from(g, gated.tensor(name)) / bytes_of(gated.tensor(name)), 1, 1);
  return wrong;
}

}  // namespace

std::vector<Check> operator_checks() {
  std::vector<Check> checks;
  for (const NamedCall& call : seeded_calls()) {
    checks.push_back(
        {std::to_string(kSeeds) + " seeds: " + call.name, [make = call.make] { return same_in_all_seeds(make); }});
  }
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
