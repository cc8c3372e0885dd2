// Products: gemv_tensor<T, kGated, kHalves>, gemv_plain<W, kGated, kTokens>, gemv_any<kGated>,
// gemv_packed<X, kType, kGated, Config> and gemm_kernel<T, kWeight, Config, kGated, kAligned>, each at sizes that leave
// parts of tiles over; and quantize_weight_kernel<kType, kGroupSize>.
#include "cases.h"

namespace diffqkv::ptx {
namespace {

using namespace emulated;

constexpr DType kF32 = DType::f32, kF16 = DType::f16, kBf16 = DType::bf16;
// The launchers choose larger tiles the fewer multiprocessors there are.
constexpr Shape kTiny = {1, 99 * 1024}, kSmall = {6, 99 * 1024}, kLarge = {132, 227 * 1024};

// x of f32, where the weights are of 16 bits.
template <typename Params>
Call with_wide_x(Call call, int64_t count, void (*launcher)(const Params&, Context&)) {
  Params p = std::get<Params>(call.params);
  p.x = add_random(call, "x in f32", kF32, static_cast<size_t>(count), 0.1f, 9);
  p.x_dtype = kF32;
  set_operator(call, launcher, p);
  return call;
}

std::string packing_text(const Packing& packing) {
  return packing.group_size == 0
             ? ""
             : std::string(", weights of ") + dtype_name(packing.dtype) + " by " + std::to_string(packing.group_size) +
                   ", scales of " + dtype_name(packing.scale_dtype);
}

void add_product(std::vector<Case>* cases, const MatmulCase& c, const Shape& shape, bool wide_x = false) {
  cases->push_back({std::string("product of ") + dtype_name(c.dtype) + (wide_x ? " by f32" : "") + ", " +
                        std::to_string(c.num_tokens) + " x " + std::to_string(c.in_features) + " x " +
                        std::to_string(c.out_features) + (c.accumulate ? ", accumulated" : "") +
                        packing_text(c.packing) + ", " + std::to_string(shape.multiprocessors) + " multiprocessors",
                    [=] {
                      return wide_x ? with_wide_x<MatmulParams>(matmul_call(c), c.num_tokens * c.in_features, matmul)
                                    : matmul_call(c);
                    },
                    shape});
}
void add_gated(std::vector<Case>* cases, const GatedMlpCase& c, const Shape& shape, bool wide_x = false) {
  cases->push_back({std::string("augmented Q of ") + dtype_name(c.dtype) + (wide_x ? " by f32" : "") + ", " +
                        std::to_string(c.num_tokens) + " x " + std::to_string(c.in_features) + " x " +
                        std::to_string(c.inner_size) + " x " + std::to_string(c.out_features) +
                        (c.accumulate ? ", accumulated" : "") + (c.has_gate ? "" : ", no gate") +
                        packing_text(c.packing) + ", activation " + std::to_string(static_cast<int>(c.activation)) +
                        ", " + std::to_string(shape.multiprocessors) + " multiprocessors",
                    [=] {
                      return wide_x ? with_wide_x<GatedMlpParams>(gated_mlp_call(c), c.num_tokens * c.in_features,
                                                                  gated_mlp)
                                    : gated_mlp_call(c);
                    },
                    shape});
}

}  // namespace

std::vector<Case> linear_cases() {
  std::vector<Case> cases;
  for (const DType dtype : {kBf16, kF16}) {
    for (const bool accumulate : {false, true}) {
      add_product(&cases, {dtype, 2, 264, 24, accumulate}, kLarge);
      add_product(&cases, {dtype, 8, 4104, 21, accumulate}, kLarge);
      add_product(&cases, {dtype, 5, 1032, 203, accumulate}, kSmall);
      add_product(&cases, {dtype, 20, 387, 51, accumulate}, kTiny);
      add_product(&cases, {dtype, 70, 515, 130, accumulate}, kTiny);
      add_product(&cases, {dtype, 20, 328, 320, accumulate}, kSmall);
      add_product(&cases, {dtype, 12, 264, 136, accumulate}, kLarge);
      add_product(&cases, {dtype, 150, 264, 136, accumulate}, kTiny);
      add_gated(&cases, {dtype, 12, 264, 72, 136, accumulate}, kLarge);
    }
    for (const auto& [name, activation] : kOtherActivations) {
      add_gated(&cases, {dtype, 3, 264, 40, 24, false, activation}, kSmall);
      add_gated(&cases, {dtype, 3, 131, 11, 7, false, activation}, kSmall);
      add_gated(&cases, {dtype, 12, 264, 40, 24, false, activation}, kSmall);
      add_gated(&cases, {dtype, 12, 264, 40, 24, false, activation, false}, kSmall);
    }
    add_gated(&cases, {dtype, 3, 264, 40, 24, true, Activation::silu, false}, kSmall);
    add_gated(&cases, {dtype, 6, 1032, 83, 40}, kSmall);
    add_gated(&cases, {dtype, 70, 387, 35, 40}, kTiny);
    add_gated(&cases, {dtype, 20, 264, 136, 72}, kSmall);
    add_gated(&cases, {dtype, 11, 264, 1100, 24}, kTiny);
    add_gated(&cases, {dtype, 150, 264, 136, 136}, kTiny);
  }
  for (const DType dtype : {kF32, kF16, kBf16}) {
    for (const int64_t tokens : {1, 3, 11}) {
      add_product(&cases, {dtype, tokens, 264, 41}, kSmall, true);
      add_product(&cases, {dtype, tokens, 2056, 9, true}, kLarge, true);
      add_product(&cases, {dtype, tokens, 131, 9, tokens == 3}, kSmall, true);
      add_gated(&cases, {dtype, tokens, 1032, 49, 40}, kSmall, true);
      for (const auto& [name, activation] : kOtherActivations) {
        add_gated(&cases, {dtype, tokens, 264, 9, 8, false, activation}, kSmall, true);
      }
      add_gated(&cases, {dtype, tokens, 131, 11, 7}, kSmall, true);
    }
    for (const bool accumulate : {false, true}) add_product(&cases, {dtype, 3, 131, 51, accumulate}, kLarge);
    add_gated(&cases, {dtype, 3, 67, 34, 40}, kSmall);
  }
  for (const DType packed : {DType::i8, DType::i4}) {
    for (const DType dtype : {kF32, kF16, kBf16}) {
      DType scales = kBf16;
      const auto product = [&](int64_t tokens, int64_t in, int64_t out, int64_t group_size, const Shape& shape) {
        add_product(&cases,
                    {.dtype = dtype,
                     .num_tokens = tokens,
                     .in_features = in,
                     .out_features = out,
                     .accumulate = group_size == 64,
                     .packing = {packed, group_size, scales}},
                    shape);
      };
      const auto gated = [&](int64_t tokens, int64_t in, int64_t inner, int64_t out, const Shape& shape) {
        add_gated(&cases,
                  {.dtype = dtype,
                   .num_tokens = tokens,
                   .in_features = in,
                   .inner_size = inner,
                   .out_features = out,
                   .packing = {packed, 32, scales}},
                  shape);
      };
      for (const int64_t tokens : {3, 11}) {
        for (const DType type : {kF16, kBf16}) {
          scales = type;
          product(tokens, 584, 37, 64, kLarge);
        }
        product(tokens, 331, 45, 32, kTiny);
        gated(tokens, 200, 41, 24, kSmall);
      }
      if (dtype == kF32) continue;
      for (const DType type : {kBf16, kF16}) {
        scales = type;
        product(20, 387, 51, 32, kTiny);
        product(20, 328, 320, 64, kSmall);
        product(20, 264, 136, 128, kLarge);
        product(150, 264, 136, 32, kTiny);
        gated(20, 387, 35, 40, kTiny);
        gated(20, 264, 136, 72, kSmall);
        gated(20, 264, 72, 136, kLarge);
        gated(150, 264, 136, 136, kTiny);
      }
    }
    for (const int64_t group_size : {32, 64, 128}) {
      cases.push_back({std::string("weights to ") + dtype_name(packed) + " by " + std::to_string(group_size), [=] {
                         return quantize_weight_call({kBf16, packed, group_size, 6, 200});
                       }});
    }
  }
  return cases;
}

}  // namespace diffqkv::ptx
