// Calls at the shapes of Sigma-1.5B and Sigma-10B.
#include "calls/call.h"

namespace diffqkv::cuda {
namespace {

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kF8 = DType::f8e4m3;

struct Sigma {
  const char* name;
  int64_t hidden_size, head_dim, aug_q_size, intermediate_size;
};
constexpr Sigma kSigmas[] = {{"1.5B", 2048, 64, 3072, 6144}, {"10B", 4096, 128, 6144, 14336}};
constexpr Heads kSigmaHeads = {32, 4, 16}, kStandardHeads = {32, 16, 16};
constexpr int64_t kVocabSize = 128256;

std::string tokens_text(int64_t tokens) { return std::to_string(tokens) + (tokens == 1 ? " token" : " tokens"); }

class SigmaCalls {
 public:
  std::vector<NamedCall> calls() {
    for (const Sigma& model : kSigmas) {
      add_decode(model);
      add_prefill(model);
      add_products(model);
      add_small_operators(model);
    }
    add_sampling();
    return std::move(calls_);
  }

 private:
  template <typename Case>
  void add(const Sigma& model, const std::string& name, Call (*make)(const Case&), const Case& c) {
    calls_.push_back({std::string("Sigma-") + model.name + ": " + name, [=] { return make(c); }});
  }

  void add_decode(const Sigma& model) {
    const auto decode = [&](const std::string& name, const AttentionCase& c) {
      add(model, "decode attention, " + name, decode_call, c);
    };
    const AttentionCase paged = {.heads = kSigmaHeads,
                                 .dims = {model.head_dim, model.head_dim},
                                 .kv_len = 4096,
                                 .lengths = {4096},
                                 .page_tokens = 64};
    decode("4k", paged);
    AttentionCase c = paged;
    c.page_tokens = 0;
    decode("4k, contiguous", c);
    c = paged;
    c.heads = kStandardHeads;
    decode("4k, 32/16/16", c);
    c = paged;
    c.types = same(kF16);
    decode("4k, f16", c);
    c.types = {kBf16, kBf16, kI8};
    decode("4k, V in i8", c);
    c.types = {kBf16, kI8, kI8};
    decode("4k, K and V in i8", c);
    c.types = {kBf16, kF8, kF8};
    decode("4k, K and V in f8e4m3", c);
    c = paged;
    c.lengths = {4096, 1, 4095, 63, 2000, 65, 3000, 0};
    decode("batch 8, ragged", c);
    c = paged;
    c.top_k = 100;
    decode("4k, top 100", c);
    c = paged;
    c.kv_len = 32768;
    c.lengths = {32768};
    decode("32k", c);
    c.top_k = 1000;
    decode("32k, top 1000", c);
    c = paged;
    c.kv_len = 131072;
    c.lengths = {131072};
    decode("128k", c);
  }

  void add_prefill(const Sigma& model) {
    const auto prefill = [&](const std::string& name, const AttentionCase& c) {
      add(model, "prefill attention, " + name, prefill_call, c);
    };
    const AttentionCase paged = {.heads = kSigmaHeads,
                                 .dims = {model.head_dim, model.head_dim},
                                 .kv_len = 4096,
                                 .lengths = {4096},
                                 .page_tokens = 64,
                                 .q_len = 512};
    prefill("512 on 4k", paged);
    AttentionCase c = paged;
    c.types = same(kF16);
    prefill("512 on 4k, f16", c);
    c.types = {kBf16, kI8, kI8};
    prefill("512 on 4k, K and V in i8", c);
    c.types = {kBf16, kF8, kF8};
    prefill("512 on 4k, K and V in f8e4m3", c);
    c = paged;
    c.kv_len = 512;
    c.lengths = {512};
    prefill("512 on 512", c);
    c = paged;
    c.page_tokens = 0;
    c.kv_len = 2048;
    c.lengths = {2048};
    c.q_len = 2048;
    prefill("2k on 2k, contiguous", c);
  }

  void add_products(const Sigma& model) {
    const auto product = [&](const std::string& name, const MatmulCase& c) {
      add(model, name + ", " + tokens_text(c.num_tokens), matmul_call, c);
    };
    const auto gated = [&](const std::string& name, const GatedMlpCase& c) {
      add(model, name + ", " + tokens_text(c.num_tokens), gated_mlp_call, c);
    };
    const int64_t hidden = model.hidden_size, out = kSigmaHeads.q * model.head_dim;
    for (const int64_t tokens : {1, 4, 8, 16, 512}) {
      product("K product", {kBf16, tokens, hidden, kSigmaHeads.k * model.head_dim});
      product("V product", {kBf16, tokens, hidden, kSigmaHeads.v * model.head_dim});
      product("O product", {kBf16, tokens, out, hidden, true});
      if (tokens <= 16) product("LM head", {kBf16, tokens, hidden, kVocabSize, false, true});
      gated("augmented Q", {kBf16, tokens, hidden, model.aug_q_size, out});
      gated("FFN", {kBf16, tokens, hidden, model.intermediate_size, hidden, true});
    }
    for (const DType packed : {DType::i8, DType::i4}) {
      const std::string type = dtype_name(packed);
      for (const int64_t tokens : {1, 8, 16, 512}) {
        product("O product of " + type, {.dtype = kBf16,
                                         .num_tokens = tokens,
                                         .in_features = out,
                                         .out_features = hidden,
                                         .accumulate = true,
                                         .packing = {packed, 32}});
        gated("FFN of " + type, {.dtype = kBf16,
                                 .num_tokens = tokens,
                                 .in_features = hidden,
                                 .inner_size = model.intermediate_size,
                                 .out_features = hidden,
                                 .accumulate = true,
                                 .packing = {packed, 32}});
      }
    }
    for (const int64_t tokens : {1, 16, 512})
      gated("FFN in f16", {kF16, tokens, hidden, model.intermediate_size, hidden});
    for (const int64_t tokens : {1, 16}) gated("FFN in f32", {kF32, tokens, hidden, model.intermediate_size, hidden});
  }

  void add_small_operators(const Sigma& model) {
    const int64_t hidden = model.hidden_size, dim = model.head_dim;
    for (const int64_t tokens : {1, 16, 512}) {
      const std::string name = ", " + tokens_text(tokens);
      add(model, "RMSNorm" + name, rms_norm_call, RmsNormCase{kF32, kF32, kF32, kBf16, tokens, hidden, false});
      add(model, "embed" + name, embed_call, EmbedCase{kBf16, kF32, tokens, hidden, kVocabSize});
      add(model, "rope" + name, rope_call, RopeCase{kBf16, tokens, kSigmaHeads.q, dim, true});
      add(model, "kv_append" + name, kv_append_call,
          KvAppendCase{kBf16, kBf16, kBf16, {dim, dim}, true, kSigmaHeads, tokens});
      add(model, "kv_append to i8" + name, kv_append_call,
          KvAppendCase{kBf16, kI8, kI8, {dim, dim}, true, kSigmaHeads, tokens});
    }
    add(model, "kv_gather of f8e4m3, 4k", kv_gather_call, KvGatherCase{kF8, kBf16, 4096, kSigmaHeads.k, dim});
    add(model, "quantize to i8, 8k rows", quantize_call, QuantizeCase{kBf16, kI8, dim, 8192});
    add(model, "gated_activation, 512 tokens", gated_activation_call,
        GatedActivationCase{kBf16, 512 * model.intermediate_size});
  }

  void add_sampling() {
    const auto token = [&](const std::string& name, const SampleCase& c) {
      calls_.push_back({"Sigma: " + name, [c] { return sample_call(c); }});
    };
    token("greedy token", {.vocab_size = kVocabSize});
    token("sampled token, all tokens", {.vocab_size = kVocabSize, .temperature = 1});
    token("sampled token, top-k 40, top-p 0.9",
          {.vocab_size = kVocabSize, .temperature = 0.8f, .top_k = 40, .top_p = 0.9f});
    token("sampled token, top-p 0.9", {.vocab_size = kVocabSize, .temperature = 1, .top_p = 0.9f, .penalty = 1.1f});
  }

  std::vector<NamedCall> calls_;
};

}  // namespace

std::vector<NamedCall> sigma_calls() { return SigmaCalls().calls(); }

}  // namespace diffqkv::cuda
