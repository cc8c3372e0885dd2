// The device layer's emulation against what the PTX ISA says of each instruction, written here once more and another way.
#include "backend/dtype.h"
#include "calls/memory.h"
#include "check.h"
#include "wrapper_inputs.h"
#include "wrappers.h"

namespace diffqkv::check {
namespace {

using namespace emulated;

using Words = std::vector<uint32_t>;

Words outputs_of(const char* name, const Words& in, std::string* wrong) {
  for (const Wrapper& wrapper : wrappers()) {
    if (std::string(wrapper.name) != name) continue;
    Memory<uint32_t> from(in), to(in.size() / kIn * kOut);
    *wrong = run(name, static_cast<unsigned>(in.size() / (32 * kIn)), 32, 512, wrapper.kernel, from.data(), to.data());
    return to.values();
  }
  *wrong = "there is no such wrapper";
  return {};
}

uint16_t half(const Words& in, size_t lane, int word, int which) {
  return static_cast<uint16_t>(in[lane * kIn + static_cast<size_t>(word)] >> (16 * which));
}

template <typename T>
float number(uint16_t bits) {
  return to_float(T{bits});
}

// The fragment tables of the ISA, the other way round than the emulation uses them: which lane and word hold A[i][k].
template <typename T>
std::string check_mma(const char* name) {
  const Words in = wrapper_input(__is_same(T, bf16) ? Input::bf16_pairs : Input::f16_pairs, 20, 1);
  std::string wrong;
  const Words out = outputs_of(name, in, &wrong);
  if (!wrong.empty()) return wrong;
  double worst = 0;
  for (size_t block = 0; block < in.size() / (32 * kIn); ++block) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 8; ++j) {
        const size_t c_lane = block * 32 + static_cast<size_t>(i % 8 * 4 + j / 2);
        const int c_word = i / 8 * 2 + j % 2;
        double sum = bit_cast<float>(in[c_lane * kIn + 6 + static_cast<size_t>(c_word)]), size = std::fabs(sum);
        for (int k = 0; k < 16; ++k) {
          const size_t a_lane = block * 32 + static_cast<size_t>(i % 8 * 4 + k % 8 / 2);
          const size_t b_lane = block * 32 + static_cast<size_t>(j * 4 + k % 8 / 2);
          const double a = number<T>(half(in, a_lane, i / 8 + k / 8 * 2, k % 2));
          const double b = number<T>(half(in, b_lane, 4 + k / 8, k % 2));
          sum += a * b, size += std::fabs(a * b);
        }
        const double got = bit_cast<float>(out[c_lane * kOut + static_cast<size_t>(c_word)]);
        const double error = std::fabs(got - sum) / size;
        if (!(error <= worst)) worst = error;
      }
    }
  }
  return worst <= 2e-6 ? "" : "off by " + std::to_string(worst) + " of the sum of magnitudes";
}

std::string check_ldmatrix(const char* name, int matrices, bool transpose) {
  const Words in = wrapper_input(Input::bits, 5, 2);
  std::string wrong;
  const Words out = outputs_of(name, in, &wrong);
  if (!wrong.empty()) return wrong;
  for (size_t lane = 0; lane < in.size() / kIn; ++lane) {
    const size_t first = lane / 32 * 32, l = lane % 32;
    for (int m = 0; m < matrices; ++m) {
      for (size_t e = 0; e < 2; ++e) {
        const size_t row = transpose ? l % 4 * 2 + e : l / 4, column = transpose ? l / 4 : l % 4 * 2 + e;
        const uint16_t expected = half(in, first + 8 * static_cast<size_t>(m) + row, static_cast<int>(column / 2),
                                       static_cast<int>(column % 2));
        if (static_cast<uint16_t>(out[lane * kOut + static_cast<size_t>(m)] >> (16 * e)) != expected)
          return "matrix " + std::to_string(m) + ", lane " + std::to_string(l);
      }
    }
  }
  return "";
}

template <typename Expected>
std::string check_words(const char* name, Input input, int num_words, const Expected& expected) {
  const Words in = wrapper_input(input, 30, 3);
  std::string wrong;
  const Words out = outputs_of(name, in, &wrong);
  if (!wrong.empty()) return wrong;
  for (size_t lane = 0; lane < in.size() / kIn; ++lane) {
    for (int w = 0; w < num_words; ++w) {
      const uint32_t want = expected(in, lane, w), got = out[lane * kOut + static_cast<size_t>(w)];
      if (want != got) {
        return "word " + std::to_string(w) + " of lane " + std::to_string(lane) + " is " + std::to_string(got) +
               ", expected " + std::to_string(want);
      }
    }
  }
  return "";
}

uint32_t word(const Words& in, size_t lane, int w) { return in[lane * kIn + static_cast<size_t>(w)]; }

// Round to nearest even, by looking for the nearest of all 65,536 values (infinity counts as the next power of two).
template <typename T>
uint16_t nearest(float x, double limit) {
  if (x != x) return 0x7fff;
  double best = INFINITY;
  uint16_t found = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    if ((bits >> 15 != 0) != std::signbit(x)) continue;
    double value = number<T>(static_cast<uint16_t>(bits));
    if (value != value) continue;
    if (std::isinf(value)) value = value > 0 ? limit : -limit;
    const double distance = std::isinf(x) ? (std::isinf(number<T>(static_cast<uint16_t>(bits))) ? 0 : 1)
                                          : std::fabs(static_cast<double>(x) - value);
    if (distance < best || (distance == best && bits % 2 == 0)) best = distance, found = static_cast<uint16_t>(bits);
  }
  return found;
}

template <typename T>
std::string check_conversions(const char* name, double limit) {
  const Words in = wrapper_input(Input::floats, 3, 4);
  std::string wrong;
  const Words out = outputs_of(name, in, &wrong);
  if (!wrong.empty()) return wrong;
  for (size_t lane = 0; lane < in.size() / kIn; ++lane) {
    const float low = bit_cast<float>(word(in, lane, 0)), high = bit_cast<float>(word(in, lane, 1));
    const uint32_t expected = nearest<T>(low, limit) | static_cast<uint32_t>(nearest<T>(high, limit)) << 16;
    if (out[lane * kOut] != expected)
      return std::to_string(low) + ", " + std::to_string(high) + " give " + std::to_string(out[lane * kOut]) +
             ", expected " + std::to_string(expected);
  }
  // And back, for every value.
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = number<T>(static_cast<uint16_t>(bits));
    if (x == x && from_float<T>(x).bits != bits) return "there and back changes " + std::to_string(bits);
  }
  return "";
}

// Compares eight 16-bit results of each lane with expected(inputs, lane, i).
template <typename T, typename Expected>
std::string check_eight(const char* name, const Expected& expected) {
  const Words in = wrapper_input(Input::bits, 30, 5);
  std::string wrong;
  const Words out = outputs_of(name, in, &wrong);
  if (!wrong.empty()) return wrong;
  for (size_t lane = 0; lane < in.size() / kIn; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const float want = expected(in, lane, i);
      const float got =
          number<T>(static_cast<uint16_t>(out[lane * kOut + static_cast<size_t>(i / 2)] >> (16 * (i % 2))));
      if (got != want && (got == got || want == want)) {
        return "element " + std::to_string(i) + " of lane " + std::to_string(lane) + " is " + std::to_string(got) +
               ", expected " + std::to_string(want);
      }
    }
  }
  return "";
}

// Against the host's conversions.
template <typename T>
std::string check_widening(const char* name, DType dtype) {
  return check_eight<T>(name, [dtype](const Words& in, size_t lane, int i) {
    const uint8_t byte = static_cast<uint8_t>(word(in, lane, i / 2) >> (16 * (i % 2) + 8 * (lane % 2)));
    float want = static_cast<float>(static_cast<int8_t>(byte));
    if (dtype == DType::f8e4m3) convert_to_f32(dtype, &want, &byte, 1);
    return want;
  });
}

// Against the definition in WeightView.
template <typename T>
std::string check_unpacking(const char* name, DType dtype) {
  return check_eight<T>(name, [dtype](const Words& in, size_t lane, int i) {
    const int bit = dtype == DType::i4 ? 16 * (i % 2) + 4 * (i / 2) : 8 * (i % 4);
    const uint32_t bits = word(in, lane, dtype == DType::i4 ? 0 : i / 4) >> bit;
    return static_cast<float>(dtype == DType::i4 ? static_cast<int>(bits & 15) - 8 : static_cast<int8_t>(bits));
  });
}

std::string check_softmax() {
  Random random(7);
  for (int round = 0; round < 200; ++round) {
    // Scores in two parts, some of them empty or all -inf, merged, against one pass in float64.
    std::vector<float> scores(random.word() % 9);
    const float sm_scale = round % 2 == 0 ? 0.5f : -0.5f, scale_log2 = 0.5f * 1.44269504088896341f;
    const float size = round % 3 == 0 ? 1e36f : 40;  // of huge scores, only the largest has a weight
    for (float& x : scores) x = random.word() % 5 == 0 ? -INFINITY : random.normal(size);
    const size_t cut = scores.empty() ? 0 : random.word() % (scores.size() + 1);
    SoftmaxState parts[2] = {SoftmaxState::empty(), SoftmaxState::empty()};
    float o[2] = {0, 0};
    double top = -INFINITY, d = 0, sum = 0;
    for (const float x : scores) top = std::fmax(top, x);
    for (size_t i = 0; i < scores.size(); ++i) {
      SoftmaxState& part = parts[i >= cut];
      const float v = static_cast<float>(i) + 1;
      float& acc = o[i >= cut];
      acc *= part.raise(scores[i], scale_log2);
      const float p = part.weight(scores[i], scale_log2);
      part.d += p, acc += p * v;
      const double exact = top > -INFINITY ? std::exp((static_cast<double>(scores[i]) - top) * 0.5) : 0;
      d += exact, sum += exact * v;
    }
    SoftmaxState merged = {std::fmax(parts[0].m, parts[1].m), 0};
    float o_merged = 0;
    for (int i = 0; i < 2; ++i) {
      const float factor = SoftmaxState::factor(parts[i].m, merged.m, scale_log2);
      merged.d += parts[i].d * factor, o_merged += o[i] * factor;
    }
    const double got = merged.d == 0 ? 0 : o_merged / merged.d;
    const double expected = d == 0 ? 0 : sum / d, lse = d == 0 ? -INFINITY : top * 0.5 + std::log(d);
    if (!(std::fabs(got - expected) <= 1e-5 * (std::fabs(expected) + 1e-30))) return "o is " + std::to_string(got);
    const double got_lse = merged.lse(std::fabs(sm_scale));
    if (!(got_lse == lse || std::fabs(got_lse - lse) <= 1e-5 * std::fabs(lse) + 1e-6))
      return "lse is " + std::to_string(got_lse) + ", expected " + std::to_string(lse);
  }
  return "";
}

}  // namespace

std::vector<Check> device_layer_checks() {
  return {
      {"mma bf16", [] { return check_mma<bf16>("mma bf16"); }},
      {"mma f16", [] { return check_mma<f16>("mma f16"); }},
      {"ldmatrix x4", [] { return check_ldmatrix("ldmatrix x4", 4, false); }},
      {"ldmatrix x4 trans", [] { return check_ldmatrix("ldmatrix x4 trans", 4, true); }},
      {"ldmatrix x2", [] { return check_ldmatrix("ldmatrix x2", 2, false); }},
      {"ldmatrix x2 trans", [] { return check_ldmatrix("ldmatrix x2 trans", 2, true); }},
      {"movmatrix",
       [] {
         return check_words("movmatrix", Input::bits, 1, [](const Words& in, size_t lane, int) {
           const size_t first = lane / 32 * 32, l = lane % 32;
           const auto element = [&](size_t row, size_t column) {
             return static_cast<uint32_t>(half(in, first + row * 4 + column / 2, 0, static_cast<int>(column % 2)));
           };
           return element(l % 4 * 2, l / 4) | element(l % 4 * 2 + 1, l / 4) << 16;
         });
       }},
      {"cp.async",
       [] {
         return check_words("cp.async", Input::bits, 4, [](const Words& in, size_t lane, int w) {
           const size_t from = lane / 32 * 32 + (lane + 1) % 32;
           const int valid = static_cast<int>(word(in, lane, 0) % 17) - 4 * w;
           const uint32_t mask = valid >= 4 ? ~0u : valid <= 0 ? 0 : (1u << (8 * valid)) - 1;
           return word(in, from, 1 + w) & mask;
         });
       }},
      {"bulk copies",
       [] {
         return check_words("bulk copies", Input::bits, 3, [](const Words& in, size_t lane, int w) {
           return in[lane / 32 * 32 * kIn + static_cast<size_t>(w) * 32 + (lane + 1) % 32];
         });
       }},
      {"shuffles",
       [] {
         return check_words("shuffles", Input::bits, 4, [](const Words& in, size_t lane, int w) {
           const size_t first = lane / 32 * 32, l = lane % 32;
           const size_t from[] = {word(in, lane, 1) % 32, l ^ 5, l < 3 ? l : l - 3, l + 7 > 31 ? l : l + 7};
           return word(in, first + from[w], 0);
         });
       }},
      {"votes",
       [] {
         return check_words("votes", Input::bits, 2, [](const Words& in, size_t lane, int w) {
           uint32_t bits = 0;
           for (size_t l = 0; l < 32; ++l) {
             const uint32_t x = word(in, lane / 32 * 32 + l, w);
             bits |= (w == 0 ? x & 1 : static_cast<uint32_t>((x & 7) == 0)) << l;
           }
           return bits;
         });
       }},
      {"conversions bf16", [] { return check_conversions<bf16>("conversions bf16", 0x1p128); }},
      {"conversions f16", [] { return check_conversions<f16>("conversions f16", 0x1p16); }},
      {"widen i8 to bf16", [] { return check_widening<bf16>("widen i8 to bf16", DType::i8); }},
      {"widen i8 to f16", [] { return check_widening<f16>("widen i8 to f16", DType::i8); }},
      {"widen f8e4m3 to bf16", [] { return check_widening<bf16>("widen f8e4m3 to bf16", DType::f8e4m3); }},
      {"widen f8e4m3 to f16", [] { return check_widening<f16>("widen f8e4m3 to f16", DType::f8e4m3); }},
      {"unpack i4 to bf16", [] { return check_unpacking<bf16>("unpack i4 to bf16", DType::i4); }},
      {"unpack i4 to f16", [] { return check_unpacking<f16>("unpack i4 to f16", DType::i4); }},
      {"unpack i8 to bf16", [] { return check_unpacking<bf16>("unpack i8 to bf16", DType::i8); }},
      {"unpack i8 to f16", [] { return check_unpacking<f16>("unpack i8 to f16", DType::i8); }},
      {"f8e4m3",
       [] {
         return check_words("f8e4m3", Input::floats, 2, [](const Words& in, size_t lane, int w) {
           const float x = bit_cast<float>(word(in, lane, 0));
           uint8_t byte = static_cast<uint8_t>(word(in, lane, 1));
           float value;
           if (w == 0) convert_from_f32(DType::f8e4m3, &byte, &x, 1);
           convert_to_f32(DType::f8e4m3, &value, &byte, 1);
           return w == 0 ? byte : bit_cast<uint32_t>(value);
         });
       }},
      {"softmax state", check_softmax},
  };
}

}  // namespace diffqkv::check
