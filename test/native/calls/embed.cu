// Calls of embed.
#include "calls/plain.h"

namespace diffqkv::cuda {
namespace {

struct EmbedCase {
  DType table, out;
  int64_t num_tokens, hidden_size;
  int64_t vocab_size = 50;
  float scale = 1;
};

Call embed_call(const EmbedCase& c) {
  std::vector<int32_t> tokens(static_cast<size_t>(c.num_tokens));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>((c.vocab_size - 1 + 17 * static_cast<int64_t>(i)) % c.vocab_size);
  Call call;
  EmbedParams p;
  p.table = add_random(call, "table", c.table, count_of({c.vocab_size, c.hidden_size}), 0.1f, 1);
  p.tokens = add_integers(call, "tokens", tokens);
  p.out = add_output(call, "out", c.out, count_of({c.num_tokens, c.hidden_size}), Comparison::bits);
  p.scale = c.scale;
  p.table_dtype = c.table;
  p.out_dtype = c.out;
  p.num_tokens = c.num_tokens;
  p.vocab_size = c.vocab_size;
  p.hidden_size = c.hidden_size;
  set_operator(call, embed, p);
  return call;
}

__global__ void __launch_bounds__(kPlainThreads, 1) embed_element(EmbedParams p) {
  const int64_t i = output_index();
  if (i >= p.num_tokens * p.hidden_size) return;
  const int64_t token = ld_global(p.tokens + i / p.hidden_size);
  const float x = load_any(p.table, p.table_dtype, token * p.hidden_size + i % p.hidden_size);
  store_any(p.out, p.out_dtype, i, x * p.scale);
}

}  // namespace

void reference(const EmbedParams& p, Context& context) {
  run_over(p.num_tokens * p.hidden_size, embed_element, p, context);
}

OperatorCalls embed_calls() {
  OperatorCalls calls;
  for (const DType dtype : kFloats) {
    const std::string type = "embed, " + text_of(dtype);
    calls.small.add(type + ", scaled", embed_call, {dtype, kBf16, 5, 264, 50, 12.5f});
    calls.small.add(type + ", rows not aligned", embed_call, {dtype, dtype, 3, 33});
    for (const DType out : kFloats) {
      const std::string name = type + " to " + text_of(out);
      calls.small.add(name, embed_call, {dtype, out, 5, 264});
      for (const int64_t hidden : {33, 1027, 4104})
        calls.ptx.add(name + ", rows of " + std::to_string(hidden), embed_call, {dtype, out, 3, hidden});
      calls.ptx.add(name + ", scaled", embed_call, {dtype, out, 3, 1027, 50, 12.5f});
      calls.ptx.add_rejected(name + ", a token that is none", [=] {
        return with_integers(embed_call({dtype, out, 3, dtype == out ? 64 : 33}), embed, &EmbedParams::tokens,
                             {3, dtype == kF32 ? -1 : 50, 1});
      });
    }
  }
  for (const Sigma& model : kSigmas) {
    for (const int64_t tokens : kSigmaTokens) {
      calls.sigma.add(model.name + "embed, " + tokens_text(tokens), embed_call,
                      {kBf16, kF32, tokens, model.hidden_size, kSigmaVocabSize});
    }
  }
  return calls;
}

}  // namespace diffqkv::cuda
