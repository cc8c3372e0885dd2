// Every operator's kernels through their launchers: the same bits whatever the order in which threads run, and the
// traffic that the design promises, on the GPU that DIFFQKV_EMULATED_GPU names.
#include "operator_check.h"

namespace diffqkv::check {
namespace {

// Reads, writes, sectors and conflicts of one decode step over 4,096 tokens. `*bytes`: what it read in all.
std::string check_decode_traffic(Heads heads, int64_t dim, double* bytes) {
  constexpr int64_t kTokens = 4096;
  Call call = decode_call({.heads = heads, .dims = {dim, dim}, .kv_len = kTokens});
  Counters c;
  size_t partials = 0;
  std::string wrong = count_traffic(call, &c, &partials);
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

std::string check_decode_saving(int64_t dim) {
  double sigma = 0, standard = 0;
  std::string wrong = check_decode_traffic({32, 4, 16}, dim, &sigma);
  wrong += check_decode_traffic({32, 16, 16}, dim, &standard);
  return wrong + within("bytes read by 32/4/16 over 32/16/16", sigma / standard, 0.615, 0.635);
}

// A block reads each K and V row once for all its query positions, however many heads share the row. With more shared
// memory it takes more positions, as long as every multiprocessor has a block.
std::string check_prefill_traffic(int64_t dim) {
  const bool is_large = gpu_shape().max_shared_bytes > 200 * 1024;
  const int64_t positions = dim == 64 ? 32 : is_large ? 32 : 16;        // of a block
  const int64_t most_blocks = gpu_shape().num_multiprocessors / 4 + 1;  // of each K head
  std::string wrong;
  for (const int64_t blocks : {int64_t{1}, most_blocks}) {
    const int64_t q_len = blocks == 1 ? 8 : positions * blocks;
    // 16 tiles of keys, and 6 if there are many blocks: more than the stages that are loaded ahead.
    const int64_t kv_len = blocks == 1 ? 512 : 192;
    Call call =
        prefill_call({.heads = {32, 4, 16}, .dims = {dim, dim}, .kv_len = kv_len, .q_len = q_len, .causal = false});
    Counters c;
    wrong += count_traffic(call, &c);
    const double k = read_from(c, call.tensor("k")) / bytes_of(call.tensor("k"));
    const double v = read_from(c, call.tensor("v")) / bytes_of(call.tensor("v"));
    wrong += within("K read", k, static_cast<double>(blocks), static_cast<double>(blocks));
    wrong += within("V read over K read", v / k, 1, 1);
  }
  return wrong;
}

std::string check_gemv_traffic(int64_t num_tokens) {
  Call call = matmul_call({DType::bf16, num_tokens, 1024, 768});
  Counters c;
  std::string wrong = count_traffic(call, &c);
  wrong += within("weights read", read_from(c, call.tensor("weight")) / bytes_of(call.tensor("weight")), 1, 1);
  Call gated = gated_mlp_call({DType::bf16, num_tokens, 512, 384, 256});
  Counters g;
  wrong += count_traffic(gated, &g);
  for (const char* name : {"gate", "up", "down"})
    wrong += within("gate, up, down read", read_from(g, gated.tensor(name)) / bytes_of(gated.tensor(name)), 1, 1);
  return wrong;
}

// Integers and scales are read once, whatever the number of tokens.
std::string check_packed_gemv_traffic(DType packed, int64_t num_tokens) {
  const Packing packing = {packed, 32};
  Call call = matmul_call(
      {.dtype = DType::bf16, .num_tokens = num_tokens, .in_features = 1024, .out_features = 768, .packing = packing});
  Counters c;
  std::string wrong = count_traffic(call, &c);
  for (const char* name : {"weight", "weight scales"})
    wrong += within(name, read_from(c, call.tensor(name)) / bytes_of(call.tensor(name)), 1, 1);
  Call gated = gated_mlp_call({.dtype = DType::bf16,
                               .num_tokens = num_tokens,
                               .in_features = 512,
                               .inner_size = 384,
                               .out_features = 256,
                               .packing = packing});
  Counters g;
  wrong += count_traffic(gated, &g);
  for (const char* name : {"gate", "up", "down", "gate scales", "up scales", "down scales"})
    wrong += within(name, read_from(g, gated.tensor(name)) / bytes_of(gated.tensor(name)), 1, 1);
  return wrong;
}

// Augmented Q of a layer, with K and V and the norm of x, is two launches, which read each weight once.
std::string check_layer_traffic(const Packing& packing, int64_t num_tokens) {
  Call call = gated_mlp_call({.dtype = DType::bf16,
                              .num_tokens = num_tokens,
                              .in_features = 512,
                              .inner_size = 384,
                              .out_features = 256,
                              .packing = packing,
                              .others = {128, 64},
                              .has_norm = true});
  Counters c;
  std::string wrong = count_traffic(call, &c);
  for (const char* name : {"gate", "up", "down", "weight2", "weight3"})
    wrong += within(name, read_from(c, call.tensor(name)) / bytes_of(call.tensor(name)), 1, 1);
  return wrong + within("launches", static_cast<double>(c.launches), 2, 2);
}

// Each output of a product with several has the bits of that product alone.
std::string check_joined_products(const MatmulCase& c) {
  for (const int multiprocessors : {1, 6, 132}) {
    Call joined = matmul_call(c);
    std::string wrong = run_call(joined, nullptr, 0, nullptr, nullptr, multiprocessors);
    for (int i = 0; i <= static_cast<int>(c.others.size()) && wrong.empty(); ++i) {
      const std::string out = i == 0 ? "out" : "out" + std::to_string(i + 1);
      Call alone = matmul_call(c);
      const MatmulParams p = std::get<MatmulParams>(alone.params);
      set_operator(alone, matmul, p.single(i));
      wrong = run_call(alone, nullptr, 0, nullptr, nullptr, multiprocessors);
      if (wrong.empty() && alone.tensor(out).memory.values() != joined.tensor(out).memory.values())
        wrong = out + " has other bits";
    }
    if (!wrong.empty()) return std::to_string(multiprocessors) + " multiprocessors: " + wrong;
  }
  return "";
}

// Few normalized rows are a launch less, if shared memory has room for them, with the same bits.
std::string check_folded_norm(MatmulCase c) {
  constexpr size_t kRoomForRing = 72 * 1024;
  std::string wrong;
  for (c.num_tokens = 4; c.num_tokens <= 8; ++c.num_tokens) {
    Call folded = matmul_call(c), launched = matmul_call(c);
    Counters one, two;
    wrong += run_call(folded, &one, 0, nullptr, nullptr, 132);
    wrong += run_call(launched, &two, 0, nullptr, nullptr, 132, kRoomForRing);
    if (one.launches != 1 || two.launches != 2)
      wrong += std::to_string(one.launches) + " and " + std::to_string(two.launches) + " launches; ";
    if (folded.tensor("out").memory.values() != launched.tensor("out").memory.values()) wrong += "other bits; ";
    if (!wrong.empty()) return std::to_string(c.num_tokens) + " tokens: " + wrong;
  }
  return "";
}

// How many tokens of a model's hidden size a product normalizes.
std::string check_folded_tokens(DType weight, int64_t hidden_size, int64_t expected) {
  for (const int64_t num_tokens : {int64_t{1}, expected, expected + 1}) {
    MatmulCase c = {.dtype = DType::bf16, .num_tokens = num_tokens, .in_features = hidden_size, .out_features = 16};
    if (weight != DType::bf16) c.packing = {weight, 32};
    c.has_norm = true;
    Call call = matmul_call(c);
    Counters counters;
    std::string wrong = count_traffic(call, &counters);
    if (counters.launches != (num_tokens <= expected ? 1 : 2)) wrong += std::to_string(counters.launches) + " launches";
    if (!wrong.empty()) return std::to_string(num_tokens) + " tokens: " + wrong;
  }
  return "";
}

// Augmented Q and two products of its x, in one call, have the bits of each alone.
std::string check_joined_mlp(const GatedMlpCase& c) {
  for (const int multiprocessors : {1, 6, 132}) {
    Call joined = gated_mlp_call(c), alone = gated_mlp_call(c);
    std::string wrong = run_call(joined, nullptr, 0, nullptr, nullptr, multiprocessors);
    GatedMlpParams p = std::get<GatedMlpParams>(alone.params);
    const int num_others = std::exchange(p.num_others, 0);
    set_operator(alone, gated_mlp, p);
    if (wrong.empty()) wrong = run_call(alone, nullptr, 0, nullptr, nullptr, multiprocessors);
    for (int i = 0; i < num_others && wrong.empty(); ++i) {
      MatmulParams product;
      product.x = p.x;
      product.norm = p.norm;
      product.weight = p.others[i].weight;
      product.out = p.others[i].out;
      product.x_dtype = p.x_dtype;
      product.out_dtype = p.out_dtype;
      product.num_tokens = p.num_tokens;
      product.in_features = p.in_features;
      product.out_features = p.others[i].out_features;
      set_operator(alone, matmul, product);
      wrong = run_call(alone, nullptr, 0, nullptr, nullptr, multiprocessors);
    }
    for (const char* out : {"out", "out2", "out3"}) {
      if (wrong.empty() && alone.tensor(out).memory.values() != joined.tensor(out).memory.values())
        wrong = std::string(out) + " has other bits";
    }
    if (!wrong.empty()) return std::to_string(multiprocessors) + " multiprocessors: " + wrong;
  }
  return "";
}

}  // namespace

std::vector<Check> operator_checks() {
  std::vector<Check> checks;
  for (const NamedCall& call : seeded_calls()) {
    checks.push_back(
        {std::to_string(kSeeds) + " seeds: " + call.name, [make = call.make] { return same_in_all_seeds(make); }});
  }
  for (const DType dtype : {kF32, kBf16}) {
    for (const DType weight : {dtype, kI8, kI4}) {
      MatmulCase c = {.dtype = dtype, .num_tokens = 2, .in_features = 1032, .out_features = 24, .others = {520, 72}};
      if (weight != dtype) c.packing = {weight, 32};
      checks.push_back(
          {std::string("three products of ") + dtype_name(dtype) + " by " + dtype_name(weight) + ": as each alone",
           [c] { return check_joined_products(c); }});
    }
  }
  for (const DType dtype : {kF32, kF16, kBf16}) {
    for (const DType weight : {dtype, kI8, kI4}) {
      for (const int64_t in_features : {1032, 131}) {
        GatedMlpCase c = {.dtype = dtype,
                          .num_tokens = 2,
                          .in_features = in_features,
                          .inner_size = 200,
                          .out_features = 40,
                          .others = {72, 24},
                          .has_norm = true};
        if (weight != dtype) c.packing = {weight, 32};
        checks.push_back({std::string("augmented Q of ") + dtype_name(dtype) + " by " + dtype_name(weight) +
                              " with two products of " + std::to_string(in_features) + " features: as each alone",
                          [c] { return check_joined_mlp(c); }});
      }
    }
  }
  for (const DType dtype : {kF16, kBf16}) {
    for (const DType weight : {dtype, kI8, kI4}) {
      MatmulCase c = {.dtype = dtype, .num_tokens = 4, .in_features = 1032, .out_features = 200, .has_norm = true};
      if (weight != dtype) c.packing = {weight, 32};
      checks.push_back({std::string("normalized rows of ") + dtype_name(dtype) + " by " + dtype_name(weight) +
                            ": folded into the product",
                        [c] { return check_folded_norm(c); }});
    }
  }
  for (const DType weight : {kBf16, kI8, kI4}) {
    const bool is_large = gpu_shape().max_shared_bytes > 200 * 1024;
    const auto add = [&](int64_t hidden_size, int64_t small_expected) {
      checks.push_back({std::string("a product of ") + std::to_string(hidden_size) + " features by " +
                            dtype_name(weight) + ": how many tokens it normalizes",
                        [=] { return check_folded_tokens(weight, hidden_size, is_large ? 8 : small_expected); }});
    };
    add(2048, weight == kBf16 ? 6 : weight == kI8 ? 8 : 7);
    add(4096, weight == kI8 ? 4 : 3);
  }
  for (Check& check : kv_cache_checks()) checks.push_back(std::move(check));
  for (Check& check : selective_checks()) checks.push_back(std::move(check));
  return checks;
}

// A row is read once. For each of the 20 most likely tokens it is read again by one thread of 512.
std::string check_log_probs_traffic() {
  for (const NamedCall& named : seeded_calls()) {
    if (named.name != "log_probs, the most likely tokens") continue;
    Call call = named.make();
    Counters c;
    const std::string wrong = count_traffic(call, &c);
    const Tensor& logits = call.tensor("logits");
    return wrong + within("logits read", read_from(c, logits) / bytes_of(logits), 1, 1 + 21.0 / 512 + 0.02) +
           within("launches", static_cast<double>(c.launches), 1, 1);
  }
  return "there is no such call";
}

std::vector<Check> traffic_checks() {
  std::vector<Check> checks;
  for (const int64_t dim : {64, 128}) {
    const std::string size = " x " + std::to_string(dim);
    checks.push_back({"decode attention" + size, [dim] { return check_decode_saving(dim); }});
    checks.push_back({"prefill attention" + size, [dim] { return check_prefill_traffic(dim); }});
  }
  for (const int64_t num_tokens : {1, 8}) {
    for (const Packing& packing : {Packing{}, Packing{kI8, 32}, Packing{kI4, 32}}) {
      checks.push_back({"augmented Q, K and V, " + std::to_string(num_tokens) + " tokens" + packing_text(packing),
                        [packing, num_tokens] { return check_layer_traffic(packing, num_tokens); }});
    }
  }
  for (const int64_t num_tokens : {1, 4, 8, 16}) {
    checks.push_back(
        {"GEMV, " + std::to_string(num_tokens) + " tokens", [num_tokens] { return check_gemv_traffic(num_tokens); }});
  }
  for (const DType packed : {DType::i8, DType::i4}) {
    for (const int64_t num_tokens : {1, 8, 16}) {
      checks.push_back({std::string("GEMV of ") + dtype_name(packed) + ", " + std::to_string(num_tokens) + " tokens",
                        [=] { return check_packed_gemv_traffic(packed, num_tokens); }});
    }
  }
  checks.push_back({"decode attention, paged", check_paged_traffic});
  checks.push_back({"selective V", check_selective_traffic});
  checks.push_back({"log probabilities", check_log_probs_traffic});
  return checks;
}

}  // namespace diffqkv::check
