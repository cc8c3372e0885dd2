// Instructions of one lane.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "interpreter_checks.h"
#include "random.h"

namespace diffqkv::ptx {
namespace {

using check::Check;
using check::Random;

// Four words go in and one comes out.
using Input = std::array<uint32_t, 4>;
using Definition = std::function<uint32_t(const Input&)>;

std::string hexadecimal(uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", value);
  return text;
}

// `code` works on %r10 to %r13 and leaves %r20.
std::string check_lanes(const std::string& code, const std::function<Input(Random&)>& make, const Definition& expected,
                        int rounds = 40) {
  Random random(5);
  for (int round = 0; round < rounds; ++round) {
    Words memory(32 * 4);
    std::vector<Input> inputs(32);
    for (size_t lane = 0; lane < 32; ++lane) {
      inputs[lane] = make(random);
      std::memcpy(&memory[lane * 4], inputs[lane].data(), sizeof(Input));
    }
    const std::string body =
        "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd2];" + code + "st.global.u32 [%rd2], %r20;";
    const std::string fault = execute(body, &memory, {}, sizeof(Input));
    if (!fault.empty()) return fault;
    for (size_t lane = 0; lane < 32; ++lane) {
      const uint32_t want = expected(inputs[lane]);
      if (memory[lane * 4] == want) continue;
      std::string text = hexadecimal(memory[lane * 4]) + ", expected " + hexadecimal(want) + ", from";
      for (const uint32_t word : inputs[lane]) (text += ' ') += hexadecimal(word);
      return text;
    }
  }
  return "";
}

// ---- Inputs.

Input any_bits(Random& random) { return {random.word(), random.word(), random.word(), random.word()}; }

// The first is any word; the others are mostly small, as counts and positions are.
Input counts(Random& random) {
  Input input = any_bits(random);
  for (size_t i = 1; i < 4; ++i)
    if (random.word() % 4) input[i] %= 70;
  return input;
}

// Zeros, infinities, NaN, subnormal numbers, ties and the borders of integers are among them.
Input floats(Random& random) {
  static constexpr uint32_t kSpecial[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc12345u, 0x00000001u,
                                          0x807fffffu, 0x7f7fffffu, 0x3f800000u, 0x4b000001u, 0xcb000003u, 0x3f000000u,
                                          0x40200000u, 0x477ff000u, 0x33000000u, 0x4effffffu, 0xcf000001u, 0x4f800000u};
  Input input;
  for (uint32_t& word : input) {
    const uint32_t r = random.word();
    word = r % 3 == 0 ? kSpecial[r / 3 % std::size(kSpecial)] : bits_of(random.normal(r % 3 == 1 ? 3.0f : 1e9f));
  }
  return input;
}

// ---- Integers.

std::string check_prmt() {
  return check_lanes("prmt.b32 %r20, %r10, %r11, %r12;", any_bits, [](const Input& in) {
    uint32_t word = 0;
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t nibble = in[2] >> (4 * i) & 0xf, from = nibble % 8;
      const uint32_t byte = (from < 4 ? in[0] >> (8 * from) : in[1] >> (8 * (from - 4))) & 0xff;
      word |= (nibble < 8 ? byte : byte >= 128 ? 255 : 0) << (8 * i);
    }
    return word;
  });
}

std::string check_bfi() {
  return check_lanes("bfi.b32 %r20, %r10, %r11, %r12, %r13;", counts, [](const Input& in) {
    uint32_t word = in[1];
    const uint32_t position = in[2] & 255, length = in[3] & 255;
    for (uint32_t i = 0; i < std::min(length, 32u) && position + i < 32; ++i)
      word = (word & ~(1u << (position + i))) | (in[0] >> i & 1) << (position + i);
    return word;
  });
}

std::string check_shifts() {
  constexpr const char* kCode = R"(
    shl.b32 %r14, %r10, %r11;
    shr.u32 %r15, %r10, %r12;
    shr.s32 %r16, %r10, %r13;
    xor.b32 %r20, %r14, %r15;
    xor.b32 %r20, %r20, %r16;
  )";
  return check_lanes(kCode, counts, [](const Input& in) {
    uint32_t up = in[0], down = in[0];
    int32_t with_sign = static_cast<int32_t>(in[0]);
    for (uint32_t i = 0; i < std::min(in[1], 40u); ++i) up *= 2;
    for (uint32_t i = 0; i < std::min(in[2], 40u); ++i) down /= 2;
    for (uint32_t i = 0; i < std::min(in[3], 40u); ++i) with_sign >>= 1;
    return up ^ down ^ static_cast<uint32_t>(with_sign);
  });
}

std::string check_products() {
  constexpr const char* kCode = R"(
    mul.hi.s32 %r14, %r10, %r11;
    mul.wide.s32 %rd3, %r10, %r11;
    mad.wide.u32 %rd4, %r12, %r13, %rd3;
    shr.u64 %rd4, %rd4, 13;
    cvt.u32.u64 %r15, %rd4;
    xor.b32 %r20, %r14, %r15;
  )";
  return check_lanes(kCode, any_bits, [](const Input& in) {
    const __int128 product = static_cast<__int128>(static_cast<int32_t>(in[0])) * static_cast<int32_t>(in[1]);
    const __int128 sum = product + static_cast<__int128>(in[2]) * in[3];
    return static_cast<uint32_t>(product >> 32) ^ static_cast<uint32_t>(static_cast<uint64_t>(sum) >> 13);
  });
}

std::string check_division() {
  constexpr const char* kCode = R"(
    or.b32 %r11, %r11, 1;
    div.s32 %r14, %r10, %r11;
    rem.s32 %r15, %r10, %r11;
    mad.lo.s32 %r16, %r14, %r11, %r15;
    xor.b32 %r20, %r16, %r15;
  )";
  return check_lanes(kCode, counts, [](const Input& in) {
    const int64_t x = static_cast<int32_t>(in[0]), y = static_cast<int32_t>(in[1] | 1);
    return in[0] ^ static_cast<uint32_t>(x % y);
  });
}

std::string check_integer_conversions() {
  constexpr const char* kCode = R"(
    cvt.s64.s32 %rd3, %r10;
    cvt.u16.u32 %rs1, %r11;
    cvt.s32.s16 %r14, %rs1;
    cvt.s32.s8 %r15, %r12;
    shr.u64 %rd3, %rd3, 20;
    cvt.u32.u64 %r16, %rd3;
    xor.b32 %r20, %r14, %r15;
    xor.b32 %r20, %r20, %r16;
  )";
  return check_lanes(kCode, any_bits, [](const Input& in) {
    const int64_t wide = static_cast<int32_t>(in[0]);
    const auto extend = [](uint32_t x, uint32_t bits) {
      x &= (1u << bits) - 1;
      return x >> (bits - 1) ? x | ~0u << bits : x;
    };
    return extend(in[1], 16) ^ extend(in[2], 8) ^ static_cast<uint32_t>(static_cast<uint64_t>(wide) >> 20);
  });
}

std::string check_predicates() {
  constexpr const char* kCode = R"(
    setp.lt.u32 %p1, %r10, %r11;
    setp.lt.s32 %p2, %r12, 0;
    not.pred %p3, %p1;
    and.pred %p4, %p1, %p2;
    xor.pred %p5, %p3, %p2;
    mov.pred %p6, -1;
    and.pred %p5, %p5, %p6;
    selp.u32 %r20, 7, 5, %p4;
    @!%p5 add.s32 %r20, %r20, 16;
    @%p2 add.s32 %r20, %r20, 32;
  )";
  return check_lanes(kCode, any_bits, [](const Input& in) {
    const bool less = in[0] < in[1], negative = in[2] >> 31;
    return (less && negative ? 7u : 5u) + (!less != negative ? 0 : 16) + (negative ? 32 : 0);
  });
}

// ---- Floats.

// order: -1, 0 or 1 where the two are less, equal or greater.
using Holds = bool (*)(int order, bool unordered);

std::string check_comparison(const std::string& name, Holds holds) {
  constexpr const char* kCode = R"(
    mov.b32 %f1, %r10;
    mov.b32 %f2, %r11;
    setp.NAME.f32 %p1, %f1, %f2;
    selp.u32 %r20, 1, 0, %p1;
  )";
  return check_lanes(with(kCode, "NAME", name), floats, [holds](const Input& in) {
    const float x = float_of(in[0]), y = float_of(in[1]);
    return uint32_t{holds(x < y ? -1 : x > y ? 1 : 0, std::isnan(x) || std::isnan(y))};
  });
}

std::string check_minimum_and_maximum() {
  constexpr const char* kCode = R"(
    mov.b32 %f1, %r10;
    mov.b32 %f2, %r11;
    max.f32 %f3, %f1, %f2;
    min.f32 %f4, %f1, %f2;
    mov.b32 %r14, %f3;
    mov.b32 %r15, %f4;
    shr.u32 %r15, %r15, 1;
    add.s32 %r20, %r14, %r15;
  )";
  return check_lanes(kCode, floats, [](const Input& in) {
    const bool x_is_nan = std::isnan(float_of(in[0])), y_is_nan = std::isnan(float_of(in[1]));
    // As integers with a sign, -0 is below +0.
    const auto key = [](uint32_t bits) { return bits >> 31 ? -int64_t{bits & 0x7fffffff} - 1 : int64_t{bits}; };
    const bool x_is_less = key(in[0]) < key(in[1]);
    uint32_t high = x_is_less ? in[1] : in[0], low = x_is_less ? in[0] : in[1];
    if (x_is_nan) high = low = in[1];
    if (y_is_nan) high = low = in[0];
    if (x_is_nan && y_is_nan) high = low = 0x7fffffff;
    return high + (low >> 1);
  });
}

std::string check_rounding() {
  constexpr const char* kCode = R"(
    mov.b32 %f1, %r10;
    mov.b32 %f2, %r11;
    mov.b32 %f3, %r12;
    mul.f32 %f4, %f1, %f2;
    add.f32 %f4, %f4, %f3;
    fma.rn.f32 %f5, %f1, %f2, %f3;
    mov.b32 %r14, %f4;
    mov.b32 %r15, %f5;
    shl.b32 %r15, %r15, 3;
    add.s32 %r20, %r14, %r15;
  )";
  return check_lanes(kCode, floats, [](const Input& in) {
    const double x = float_of(in[0]), y = float_of(in[1]), z = float_of(in[2]);
    const auto one_nan = [](float r) { return r != r ? 0x7fffffffu : bits_of(r); };
    const float product = static_cast<float>(x * y), sum = static_cast<float>(static_cast<double>(product) + z);
    const float fused = static_cast<float>(static_cast<__float128>(x) * y + z);
    return one_nan(sum) + (one_nan(fused) << 3);
  });
}

// The largest float that is not above the exact a * b + c.
std::string check_fma_down() {
  constexpr const char* kCode = R"(
    mov.b32 %f1, %r10;
    mov.b32 %f2, %r11;
    mov.b32 %f3, %r12;
    fma.rm.f32 %f4, %f1, %f2, %f3;
    mov.b32 %r20, %f4;
  )";
  const auto make = [](Random& random) {
    Input in = {bits_of(random.normal(1)), bits_of(random.normal(1)), bits_of(random.normal(1)), 0};
    if (random.word() % 4 == 0) in[2] = bits_of(-float_of(in[0]) * float_of(in[1]));
    return in;
  };
  return check_lanes(kCode, make, [](const Input& in) {
    const __float128 exact = static_cast<__float128>(float_of(in[0])) * float_of(in[1]) + float_of(in[2]);
    const auto wide = [](float x) { return static_cast<__float128>(x); };
    float below = static_cast<float>(exact);
    while (wide(below) > exact) below = std::nextafter(below, -INFINITY);
    while (wide(std::nextafter(below, INFINITY)) <= exact) below = std::nextafter(below, INFINITY);
    return bits_of(exact == 0 ? 0.0f : below);
  });
}

std::string check_clamping() {
  constexpr const char* kCode = R"(
    mov.b32 %f1, %r10;
    cvt.rzi.s32.f32 %r14, %f1;
    cvt.rzi.u32.f32 %r15, %f1;
    cvt.rni.s32.f32 %r16, %f1;
    xor.b32 %r20, %r14, %r15;
    xor.b32 %r20, %r20, %r16;
  )";
  return check_lanes(kCode, floats, [](const Input& in) {
    const double x = float_of(in[0]);
    if (x != x) return 0u;
    const auto clamp = [](double v, double low, double high) {
      return static_cast<uint32_t>(static_cast<int64_t>(v < low ? low : v > high ? high : v));
    };
    double even = std::floor(x + 0.5);
    if (even - x == 0.5 && std::fmod(even, 2) != 0) even -= 1;
    return clamp(x, -2147483648.0, 2147483647.0) ^ clamp(x, 0, 4294967295.0) ^ clamp(even, -2147483648.0, 2147483647.0);
  });
}

// A 16-bit type. Beyond its largest value the next power of two, `limit`, stands for infinity.
struct HalfType {
  const char* name;
  float (*value)(uint32_t bits);
  double limit;
  uint32_t tie;                    // of f32: the bit below the last that the type keeps
  uint32_t exponents, few, least;  // of two values in a word: the exponents' bits, some of them, and what is added
};
constexpr HalfType kBf16 = {"bf16", bf16_value, 0x1p128, 0x8000, 0x7f807f80u, 0x0f800f80u, 0x30003000u};
constexpr HalfType kF16 = {"f16", f16_value, 0x1p16, 0x1000, 0x7c007c00u, 0x1c001c00u, 0x20002000u};

// The nearest of all 65,536 values, ties to even.
uint32_t nearest(double x, const HalfType& type) {
  if (x != x) return 0x7fff;
  double best = INFINITY;
  uint32_t found = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    double candidate = type.value(bits);
    if (candidate != candidate || (bits >> 15 != 0) != std::signbit(x)) continue;
    if (std::isinf(candidate)) candidate = std::copysign(type.limit, candidate);
    const double distance = std::isinf(x) ? std::fabs(candidate) != type.limit : std::fabs(x - candidate);
    if (distance < best || (distance == best && bits % 2 == 0)) {
      best = distance;
      found = bits;
    }
  }
  return found;
}

std::string check_half_conversion(const HalfType& type) {
  constexpr const char* kCode = R"(
    mov.b32 %f1, %r10;
    mov.b32 %f2, %r11;
    cvt.rn.TYPEx2.f32 %r20, %f1, %f2;
  )";
  const auto make = [&](Random& random) {
    Input in = floats(random);
    if (random.word() % 2) in[0] = (in[0] & ~(2 * type.tie - 1)) | type.tie | random.word() % 2;  // a tie, or nearly
    return in;
  };
  const auto expected = [&](const Input& in) {
    return nearest(static_cast<double>(float_of(in[0])), type) << 16 |
           nearest(static_cast<double>(float_of(in[1])), type);
  };
  return check_lanes(with(kCode, "TYPE", type.name), make, expected, 8);
}

// Of numbers whose exponents are near each other f64 holds the exact result.
std::string check_half_fma(const HalfType& type) {
  const auto make = [&](Random& random) {
    Input in;
    for (uint32_t& word : in) word = (random.word() & ~type.exponents) | ((random.word() & type.few) + type.least);
    return in;
  };
  const auto expected = [&](const Input& in) {
    uint32_t word = 0;
    for (const int shift : {0, 16}) {
      const auto half = [&](size_t i) { return static_cast<double>(type.value(in[i] >> shift & 0xffff)); };
      word |= nearest(half(0) * half(1) + half(2), type) << shift;
    }
    return word;
  };
  return check_lanes(with("fma.rn.TYPEx2 %r20, %r10, %r11, %r12;", "TYPE", type.name), make, expected, 8);
}

}  // namespace

std::vector<Check> instruction_checks() {
  std::vector<Check> checks = {
      {"prmt", check_prmt},
      {"bfi", check_bfi},
      {"shl and shr, past the width too", check_shifts},
      {"mul.hi, mul.wide and mad.wide", check_products},
      {"div and rem with signs", check_division},
      {"cvt between integers", check_integer_conversions},
      {"predicates and guards", check_predicates},
      {"min and max of NaN and zeros", check_minimum_and_maximum},
      {"add, mul and fma round once, and give one NaN", check_rounding},
      {"fma rounded down", check_fma_down},
      {"cvt to integers clamps", check_clamping},
      {"cvt to bf16, ties too", [] { return check_half_conversion(kBf16); }},
      {"cvt to f16, ties too", [] { return check_half_conversion(kF16); }},
      {"fma of bf16 pairs", [] { return check_half_fma(kBf16); }},
      {"fma of f16 pairs", [] { return check_half_fma(kF16); }},
  };
  const std::pair<const char*, Holds> comparisons[] = {
      {"eq", [](int order, bool unordered) { return !unordered && order == 0; }},
      {"ne", [](int order, bool unordered) { return !unordered && order != 0; }},
      {"lt", [](int order, bool unordered) { return !unordered && order < 0; }},
      {"le", [](int order, bool unordered) { return !unordered && order <= 0; }},
      {"gt", [](int order, bool unordered) { return !unordered && order > 0; }},
      {"ge", [](int order, bool unordered) { return !unordered && order >= 0; }},
      {"equ", [](int order, bool unordered) { return unordered || order == 0; }},
      {"neu", [](int order, bool unordered) { return unordered || order != 0; }},
      {"ltu", [](int order, bool unordered) { return unordered || order < 0; }},
      {"leu", [](int order, bool unordered) { return unordered || order <= 0; }},
      {"gtu", [](int order, bool unordered) { return unordered || order > 0; }},
      {"geu", [](int order, bool unordered) { return unordered || order >= 0; }},
      {"num", [](int, bool unordered) { return !unordered; }},
      {"nan", [](int, bool unordered) { return unordered; }},
  };
  for (const auto& [name, holds] : comparisons) {
    checks.push_back(
        {std::string("setp.") + name, [name = name, holds = holds] { return check_comparison(name, holds); }});
  }
  return checks;
}

}  // namespace diffqkv::ptx
