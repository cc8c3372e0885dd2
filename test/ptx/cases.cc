// The calls that reach every instantiation of every kernel: those of test/native/calls, and tables by the template
// parameters that a launcher chooses by.
#include "cases.h"

#include "backend/backend.h"

namespace diffqkv::ptx {
namespace {

using namespace emulated;

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16, kI8 = DType::i8, kF8 = DType::f8e4m3;
constexpr int64_t kDims[] = {32, 64, 96, 128, 256};

// GPUs as launchers plan for them; the first has few multiprocessors, so that small calls are planned as large ones.
constexpr Shape kSmall = {6, 99 * 1024}, kTiny = {1, 99 * 1024}, kLarge = {132, 227 * 1024};

std::string name_of(DType dtype) { return dtype_name(dtype); }
std::string name_of(const Dims& dims) { return std::to_string(dims.qk) + "/" + std::to_string(dims.vo); }

// attention_decode_kernel<T, kDimVo, kTiles, kScaled>: 8 query heads a unit or more, K and V of T or of 8 bits.
void add_decode(std::vector<Case>* cases) {
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const int64_t dim : kDims) {
      for (const bool many_heads : {false, true}) {
        for (const Types& types : {Types{q, q, q}, Types{q, kI8, kF8}, Types{q, kF8, kI8}}) {
          AttentionCase c;
          c.types = types;
          c.heads = many_heads ? Heads{12, 1, 2} : Heads{8, 2, 4};
          c.dims = {kDims[(i + 1) % 5], dim};  // all pairs of sizes that are next to each other
          if (i % 3 == 0) c.dims.qk = dim;
          c.kv_len = 75;
          c.lengths = {75, 33};
          c.num_splits = 2;
          c.page_tokens = i % 2 == 0 ? 64 : 0;
          ++i;
          cases->push_back({"decode attention, " + name_of(types.q) + " on " + name_of(types.k) + " and " +
                                name_of(types.v) + ", " + name_of(c.dims) + (many_heads ? ", 12/1/2" : ", 8/2/4"),
                            [c] { return decode_call(c); }, kSmall});
        }
      }
    }
  }
}

// attention_prefill_kernel<T, kDimQk, kDimVo, kQuantised>: kDimQk is that of both where they are equal, else 0.
void add_prefill(std::vector<Case>* cases) {
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const int64_t dim : kDims) {
      for (const int kind : {0, 1, 2}) {
        AttentionCase c;
        const DType k = i % 2 == 0 ? kI8 : kF8, v = i % 2 == 0 ? kF8 : kI8;
        c.types = kind == 2 ? Types{q, k, v} : same(q);
        c.heads = i % 4 == 3 ? Heads{4, 4, 2} : Heads{8, 2, 4};
        c.dims = {kind == 1 ? (dim == 64 ? 32 : 64) : dim, dim};
        c.kv_len = 70;
        c.q_len = 9;
        c.page_tokens = i % 3 == 0 ? 64 : 0;
        c.lengths = {70};
        ++i;
        const std::string name = "prefill attention, " + name_of(q) + " on " + name_of(c.types.k) + " and " +
                                 name_of(c.types.v) + ", " + name_of(c.dims);
        cases->push_back({name, [c] { return prefill_call(c); }, kSmall});
        cases->push_back({name + ", large GPU", [c] { return prefill_call(c); }, kLarge});
      }
    }
  }
}

// attention_selective_scores_kernel<T, K, kTiles> and attention_selective_values_kernel<V>: up to 8 query heads for a K
// head, or up to 16.
void add_selective(std::vector<Case>* cases) {
  int i = 0;
  for (const DType q : {kBf16, kF16}) {
    for (const DType k : {q, kI8, kF8}) {
      for (const bool many_heads : {false, true}) {
        const DType v = std::initializer_list<DType>{kI8, kF8, kF32, kF16, kBf16}.begin()[i++ % 5];
        AttentionCase c;
        c.types = {q, k, v};
        c.heads = many_heads ? Heads{12, 1, 4} : Heads{8, 2, 4};
        c.dims = {64, 32};
        c.kv_len = 90;
        c.lengths = {90};
        c.page_tokens = i % 2 == 0 ? 64 : 0;
        c.top_k = 10;
        c.num_splits = 2;
        cases->push_back({"selective V, " + name_of(q) + " on " + name_of(k) + " and " + name_of(v) +
                              (many_heads ? ", 12/1/4" : ", 8/2/4"),
                          [c] { return selective_call(c); }, kSmall});
      }
    }
  }
}

// x of f32, where the weights are of 16 bits.
template <typename Params>
void widen_x(Call* call, int64_t count, void (*launcher)(const Params&, Context&)) {
  Params p = std::get<Params>(call->params);
  p.x = add_random(*call, "x in f32", kF32, static_cast<size_t>(count), 0.1f, 9);
  p.x_dtype = kF32;
  set_operator(*call, launcher, p);
}

// gemv_tensor<T, kGated, kHalves>, gemv_plain<W, kGated, kTokens>, gemv_any<kGated>, and
// gemm_kernel<T, Config, kGated, kAligned>.
void add_linear(std::vector<Case>* cases) {
  const auto product = [&](const std::string& name, const MatmulCase& c, const Shape& shape) {
    cases->push_back({"product of " + name_of(c.dtype) + ", " + name, [c] { return matmul_call(c); }, shape});
  };
  const auto gated = [&](const std::string& name, const AugmentedQCase& c, const Shape& shape) {
    cases->push_back({"augmented Q of " + name_of(c.dtype) + ", " + name, [c] { return augmented_q_call(c); }, shape});
  };
  for (const DType dtype : {kBf16, kF16}) {
    product("half a tile to a block", {dtype, 2, 264, 24}, kLarge);
    product("accumulated", {dtype, 12, 72, 136, true}, kSmall);
    product("rows not aligned, many tokens", {dtype, 20, 67, 50}, kTiny);
    product("small tiles", {dtype, 20, 72, 320}, kSmall);
    product("large tiles", {dtype, 150, 72, 136}, kTiny);
    gated("rows not aligned, many tokens", {dtype, 20, 67, 34, 40}, kTiny);
    gated("small tiles", {dtype, 20, 72, 136, 72}, kSmall);
    gated("large tiles", {dtype, 150, 72, 136, 136}, kTiny);
  }
  gated("rows not aligned", {kBf16, 3, 67, 34, 40}, kSmall);
  for (const DType dtype : {kF32, kF16, kBf16}) {
    for (const int64_t tokens : {1, 3}) {
      const std::string name = "of f32 by " + name_of(dtype) + ", " + std::to_string(tokens) + " tokens";
      cases->push_back({"product " + name,
                        [=] {
                          Call call = matmul_call({dtype, tokens, 264, 40});
                          widen_x<MatmulParams>(&call, tokens * 264, matmul);
                          return call;
                        },
                        kSmall});
      cases->push_back({"augmented Q " + name,
                        [=] {
                          Call call = augmented_q_call({dtype, tokens, 264, 48, 40});
                          widen_x<AugmentedQParams>(&call, tokens * 264, augmented_q);
                          return call;
                        },
                        kSmall});
    }
  }
}

// Tensors that begin an element past an aligned address.
Call shifted_silu_mul(DType dtype, int64_t count) {
  Call call = silu_mul_call({dtype, count + 1});
  SiluMulParams p = std::get<SiluMulParams>(call.params);
  const size_t bytes = dtype_size(dtype);
  p.gate = static_cast<const uint8_t*>(p.gate) + bytes;
  p.up = static_cast<const uint8_t*>(p.up) + bytes;
  p.out = static_cast<uint8_t*>(p.out) + bytes;
  p.count = count;
  set_operator(call, silu_mul, p);
  return call;
}

void add_others(std::vector<Case>* cases) {
  for (const DType dtype : {kF32, kF16, kBf16}) {
    cases->push_back({"silu_mul, " + name_of(dtype) + ", not aligned", [=] { return shifted_silu_mul(dtype, 300); }});
    for (const DType out : {kF32, kF16, kBf16}) {
      cases->push_back({"embed, " + name_of(dtype) + " to " + name_of(out) + ", rows not aligned", [=] {
                          return embed_call({dtype, out, 3, 33});
                        }});
    }
  }
  cases->push_back({"kv_append, rows not aligned", [] { return kv_append_call({kF16, kBf16, kF32, {10, 9}, true}); }});
  cases->push_back({"the probe of a device that is opened", [] {
                      Call call;
                      call.enqueue = [](Context&) { make_emulated_backend()->synchronize(); };
                      return call;
                    }});
}

}  // namespace

std::vector<Case> all_cases() {
  std::vector<Case> cases = wrapper_cases();
  for (NamedCall& call : operator_calls()) cases.push_back({call.name, std::move(call.make)});
  add_decode(&cases);
  add_prefill(&cases);
  add_selective(&cases);
  add_linear(&cases);
  add_others(&cases);
  return cases;
}

}  // namespace diffqkv::ptx
