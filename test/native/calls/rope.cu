// Calls of rope.
#include <cstring>

#include "calls/plain.h"

namespace diffqkv::cuda {
const double* add_frequencies(Call& call, int64_t head_dim) {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = std::pow(50000.0, -2 * static_cast<double>(i) / static_cast<double>(head_dim));
  frequencies.back() = 0;  // a pair that is not rotated
  std::vector<uint8_t> bytes(frequencies.size() * sizeof(double));
  std::memcpy(bytes.data(), frequencies.data(), bytes.size());
  return reinterpret_cast<const double*>(add_tensor(call, "inv_freq", DType::i32, bytes));
}

namespace {

struct RopeCase {
  DType dtype;
  int64_t num_tokens, num_heads, head_dim;
  bool in_place = false;
};

Call rope_call(const RopeCase& c) {
  const size_t count = count_of({c.num_tokens, c.num_heads, c.head_dim});
  std::vector<int32_t> positions(static_cast<size_t>(c.num_tokens));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = i == 0 ? 0 : i == 1 ? 131071 : static_cast<int32_t>(i);
  Call call;
  RopeParams p;
  p.out = add_output(call, "out", c.dtype, count, Comparison::values, c.head_dim, c.dtype);
  if (c.in_place) call.tensor("out").memory.upload(random_bytes(c.dtype, count, 0.1f, 1));
  p.x = c.in_place ? p.out : add_random(call, "x", c.dtype, count, 0.1f, 1);
  p.positions = add_integers(call, "positions", positions);
  p.inv_freq = add_frequencies(call, c.head_dim);
  p.dtype = c.dtype;
  p.num_tokens = c.num_tokens;
  p.num_heads = c.num_heads;
  p.head_dim = c.head_dim;
  p.scale = 1.25f;
  set_operator(call, rope, p);
  return call;
}

__global__ void __launch_bounds__(kPlainThreads, 1) rope_pair(RopeParams p) {
  const int64_t half = p.head_dim / 2, i = output_index();
  if (i >= p.num_tokens * p.num_heads * half) return;
  const int64_t row = i / half, d = i % half, first = row * p.head_dim;
  const Pair pair =
      rotated_pair(p.x, p.dtype, first, p.head_dim, d, ld_global(p.positions + row / p.num_heads), p.inv_freq, p.scale);
  store_any(p.out, p.dtype, first + d, pair.low);
  store_any(p.out, p.dtype, first + d + half, pair.high);
}

}  // namespace

void reference(const RopeParams& p, Context& context) {
  run_over(p.num_tokens * p.num_heads * (p.head_dim / 2), rope_pair, p, context);
}

OperatorCalls rope_calls() {
  OperatorCalls calls;
  for (const DType dtype : kFloats) {
    const std::string name = "rope, " + text_of(dtype);
    calls.small.add(name, rope_call, {dtype, 5, 4, 64});
    calls.small.add(name + ", in place, heads of 10", rope_call, {dtype, 3, 6, 10, true});
    calls.ptx.add(name + ", heads of 600", rope_call, {dtype, 3, 2, 600});
    calls.ptx.add_rejected(name + ", a position that is none", [=] {
      return with_integers(rope_call({dtype, 3, 2, 64}), rope, &RopeParams::positions, {1, -2, 3});
    });
  }
  for (const Sigma& model : kSigmas) {
    for (const int64_t tokens : kSigmaTokens) {
      calls.sigma.add(model.name + "rope, " + tokens_text(tokens), rope_call,
                      {kBf16, tokens, kSigmaHeads.q, model.head_dim, true});
    }
  }
  return calls;
}

}  // namespace diffqkv::cuda
