// Checks of the interpreter: instructions against their definition in the PTX ISA, written another way than in the
// interpreter; and what must be a fault.
#include "interpreter_checks.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "backend/dtype.h"
#include "emulation/engine.h"
#include "global_memory.h"
#include "machine.h"
#include "program.h"
#include "random.h"

namespace diffqkv::ptx {
namespace {

using check::Check;
using check::Random;
using Words = std::vector<uint32_t>;

struct Run {
  unsigned threads = 32, blocks = 1;
  size_t shared_bytes = 0;
  uint64_t seed = 0;
};

// Runs a body as an entry with one parameter, the address of `memory`, which it may read and write. %rd1 is that address,
// %r1 the thread and %rd2 the address of the thread's own words, `stride` bytes apart. Returns the fault, or nothing.
std::string execute(const std::string& body, Words* memory, const Run& how = {}, int stride = 4) {
  const std::string text =
      ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 128 .b8 shared[];\n"
      ".visible .entry kernel(.param .u64 kernel_param_0)\n.maxntid 256, 1, 1\n{\n"
      ".reg .pred %p<20>;\n.reg .b16 %rs<20>;\n.reg .b32 %r<60>;\n.reg .f32 %f<20>;\n.reg .b64 %rd<20>;\n"
      ".reg .f64 %fd<20>;\n"
      "ld.param.u64 %rd1, [kernel_param_0];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, " +
      std::to_string(stride) + ";\nadd.s64 %rd2, %rd2, %rd1;\n" + body + "\nret;\n}\n";
  // 16 bytes that nobody may touch lie before and after.
  std::vector<unsigned char> storage(memory->size() * 4 + 64, 0xee);
  unsigned char* const data = storage.data() + 32 + (16 - reinterpret_cast<uintptr_t>(storage.data()) % 16) % 16;
  std::memcpy(data, memory->data(), memory->size() * 4);
  emulated::add_memory(data, memory->size() * 4);
  std::string fault;
  try {
    const auto module = parse_module("a check", text);
    Grid grid;
    grid.entry = &module->entries[0];
    grid.size = {how.blocks, 1, 1};
    grid.threads = how.threads;
    grid.shared_bytes = how.shared_bytes;
    grid.seed = how.seed;
    grid.parameters.resize(8);
    std::memcpy(grid.parameters.data(), &data, 8);
    GlobalMemory global(how.threads);
    Block block;
    for (unsigned i = 0; i < how.blocks; ++i) block.run(grid, global, {i, 0, 0}, i);
  } catch (const Fault& found) {
    fault = found.what();
  }
  emulated::remove_memory(data);
  std::memcpy(memory->data(), data, memory->size() * 4);
  return fault;
}

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}
uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
float f16_value(uint32_t bits) {
  float value;
  const uint16_t half = static_cast<uint16_t>(bits);
  convert_to_f32(DType::f16, &value, &half, 1);
  return value;
}
float bf16_value(uint32_t bits) { return float_of(bits << 16); }

// ---- Instructions of one lane: four words go in and one comes out, for many inputs.

using Input = std::array<uint32_t, 4>;

// `code` works on %r10 to %r13 and leaves %r20. `expected` is the definition.
std::string check_lanes(const std::string& code, const std::function<Input(Random&)>& make,
                        const std::function<uint32_t(const Input&)>& expected, int rounds = 40) {
  Random random(5);
  for (int round = 0; round < rounds; ++round) {
    Words memory(32 * 4);
    std::vector<Input> inputs(32);
    for (size_t lane = 0; lane < 32; ++lane) {
      inputs[lane] = make(random);
      std::memcpy(&memory[lane * 4], inputs[lane].data(), 16);
    }
    const std::string fault = execute("ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd2];\n" + code +
                                          "\nst.global.u32 [%rd2], %r20;",
                                      &memory, {}, 16);
    if (!fault.empty()) return fault;
    for (size_t lane = 0; lane < 32; ++lane) {
      const uint32_t want = expected(inputs[lane]);
      if (memory[lane * 4] == want) continue;
      std::string text = hex(memory[lane * 4]) + ", expected " + hex(want) + ", from";
      for (const uint32_t word : inputs[lane]) text += " " + hex(word);
      return text;
    }
  }
  return "";
}

Input any_bits(Random& random) { return {random.word(), random.word(), random.word(), random.word()}; }
// Small numbers among them, for counts and positions.
Input some_small(Random& random) {
  Input input = any_bits(random);
  for (size_t i = 1; i < 4; ++i)
    if (random.word() % 4) input[i] %= 70;
  return input;
}
Input floats(Random& random) {
  static constexpr uint32_t kSpecial[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc12345u, 0x00000001u,
                                          0x807fffffu, 0x7f7fffffu, 0x3f800000u, 0x4b000001u, 0xcb000003u, 0x3f000000u,
                                          0x40200000u, 0x477ff000u, 0x33000000u, 0x4effffffu, 0xcf000001u, 0x4f800000u};
  Input input;
  for (uint32_t& word : input) {
    const uint32_t r = random.word();
    word = r % 3 == 0 ? kSpecial[r / 3 % 18] : bits_of(random.normal(r % 3 == 1 ? 3.0f : 1e9f));
  }
  return input;
}

// A number to the nearest of all 65,536 values of a 16-bit type, ties to even; beyond the largest the next power of two
// stands for infinity.
uint32_t nearest_half(double x, float (*value)(uint32_t), double limit) {
  if (x != x) return 0x7fff;
  double best = INFINITY;
  uint32_t found = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    double candidate = value(bits);
    if (candidate != candidate || (bits >> 15 != 0) != std::signbit(x)) continue;
    if (std::isinf(candidate)) candidate = std::copysign(limit, candidate);
    const double distance = std::isinf(x) ? (std::fabs(candidate) == limit ? 0 : 1) : std::fabs(x - candidate);
    if (distance < best || (distance == best && bits % 2 == 0)) {
      best = distance;
      found = bits;
    }
  }
  return found;
}

std::string check_comparison(const std::string& name, bool (*holds)(int order, bool unordered)) {
  return check_lanes("mov.b32 %f1, %r10;\nmov.b32 %f2, %r11;\nsetp." + name + ".f32 %p1, %f1, %f2;\nselp.u32 %r20, 1, 0, %p1;",
                     floats, [holds](const Input& in) {
                       const float x = float_of(in[0]), y = float_of(in[1]);
                       const bool unordered = std::isnan(x) || std::isnan(y);
                       return uint32_t{holds(x < y ? -1 : x > y ? 1 : 0, unordered)};
                     });
}

std::string check_conversion(const std::string& type, float (*value)(uint32_t), double limit) {
  return check_lanes("mov.b32 %f1, %r10;\nmov.b32 %f2, %r11;\ncvt.rn." + type + "x2.f32 %r20, %f1, %f2;",
                     [&](Random& random) {
                       Input in = floats(random);
                       // A tie, or next to one.
                       if (random.word() % 2)
                         in[0] = (in[0] & 0xffff0000u) | (type == "bf16" ? 0x8000u : 0x1000u) | random.word() % 2;
                       return in;
                     },
                     [&](const Input& in) {
                       return nearest_half(static_cast<double>(float_of(in[0])), value, limit) << 16 |
                              nearest_half(static_cast<double>(float_of(in[1])), value, limit);
                     },
                     8);
}

// Of three numbers with few bits the exact result needs no more than f64 has.
std::string check_fma2(const std::string& type, float (*value)(uint32_t), double limit) {
  const auto make = [&](Random& random) {
    Input in;
    for (uint32_t& word : in) {
      word = random.word();
      const uint32_t exponents = type == "bf16" ? 0x0f800f80u : 0x1c001c00u, fixed = type == "bf16" ? 0x30003000u : 0x20002000u;
      word = (word & ~(type == "bf16" ? 0x7f807f80u : 0x7c007c00u)) | (random.word() & exponents) | fixed;
    }
    return in;
  };
  return check_lanes("fma.rn." + type + "x2 %r20, %r10, %r11, %r12;", make, [&](const Input& in) {
    uint32_t word = 0;
    for (int shift : {0, 16}) {
      const auto half = [&](size_t i) { return static_cast<double>(value(in[i] >> shift & 0xffff)); };
      word |= nearest_half(half(0) * half(1) + half(2), value, limit) << shift;
    }
    return word;
  }, 8);
}

// The largest float that is not above the exact a * b + c, found from the nearest one in long double, which is exact here.
std::string check_fma_down() {
  const auto make = [](Random& random) {
    Input in = {bits_of(random.normal(1)), bits_of(random.normal(1)), bits_of(random.normal(1)), 0};
    if (random.word() % 4 == 0) in[2] = bits_of(-float_of(in[0]) * float_of(in[1]));
    return in;
  };
  return check_lanes("mov.b32 %f1, %r10;\nmov.b32 %f2, %r11;\nmov.b32 %f3, %r12;\nfma.rm.f32 %f4, %f1, %f2, %f3;\nmov.b32 %r20, %f4;",
                     make, [](const Input& in) {
                       const __float128 exact = static_cast<__float128>(float_of(in[0])) * float_of(in[1]) + float_of(in[2]);
                       float below = static_cast<float>(exact);
                       while (static_cast<__float128>(below) > exact) below = std::nextafter(below, -INFINITY);
                       while (static_cast<__float128>(std::nextafter(below, INFINITY)) <= exact)
                         below = std::nextafter(below, INFINITY);
                       return exact == 0 ? bits_of(below + 0.0f) : bits_of(below);
                     });
}

uint32_t byte_of(uint32_t a, uint32_t b, uint32_t i) { return (i < 4 ? a >> (8 * i) : b >> (8 * (i - 4))) & 0xff; }

std::vector<Check> lane_checks() {
  return {
      {"prmt", [] {
         return check_lanes("prmt.b32 %r20, %r10, %r11, %r12;", any_bits, [](const Input& in) {
           uint32_t word = 0;
           for (uint32_t i = 0; i < 4; ++i) {
             const uint32_t nibble = in[2] >> (4 * i) & 0xf;
             const uint32_t byte = byte_of(in[0], in[1], nibble % 8);
             word |= (nibble < 8 ? byte : byte >= 128 ? 255 : 0) << (8 * i);
           }
           return word;
         });
       }},
      {"bfi", [] {
         return check_lanes("bfi.b32 %r20, %r10, %r11, %r12, %r13;", some_small, [](const Input& in) {
           uint32_t word = in[1];
           const uint32_t at = in[2] & 255, count = in[3] & 255;
           for (uint32_t i = 0; i < count && at + i < 32; ++i) {
             if (i < 32) word = (word & ~(1u << (at + i))) | (in[0] >> i & 1) << (at + i);
           }
           return word;
         });
       }},
      {"shl and shr past the width", [] {
         return check_lanes("shl.b32 %r14, %r10, %r11;\nshr.u32 %r15, %r10, %r12;\nshr.s32 %r16, %r10, %r13;\n"
                            "xor.b32 %r20, %r14, %r15;\nxor.b32 %r20, %r20, %r16;",
                            some_small, [](const Input& in) {
                              uint32_t up = in[0], down = in[0];
                              int32_t with_sign = static_cast<int32_t>(in[0]);
                              for (uint32_t i = 0; i < std::min(in[1], 40u); ++i) up *= 2;
                              for (uint32_t i = 0; i < std::min(in[2], 40u); ++i) down /= 2;
                              for (uint32_t i = 0; i < std::min(in[3], 40u); ++i) with_sign >>= 1;
                              return up ^ down ^ static_cast<uint32_t>(with_sign);
                            });
       }},
      {"mul.hi, mul.wide and mad.wide", [] {
         return check_lanes("mul.hi.s32 %r14, %r10, %r11;\nmul.wide.s32 %rd3, %r10, %r11;\n"
                            "mad.wide.u32 %rd4, %r12, %r13, %rd3;\nshr.u64 %rd4, %rd4, 13;\ncvt.u32.u64 %r15, %rd4;\n"
                            "xor.b32 %r20, %r14, %r15;",
                            any_bits, [](const Input& in) {
                              const __int128 product =
                                  static_cast<__int128>(static_cast<int32_t>(in[0])) * static_cast<int32_t>(in[1]);
                              const __int128 sum = product + static_cast<__int128>(in[2]) * in[3];
                              return static_cast<uint32_t>(product >> 32) ^
                                     static_cast<uint32_t>(static_cast<uint64_t>(sum) >> 13);
                            });
       }},
      {"div and rem with signs", [] {
         return check_lanes("or.b32 %r11, %r11, 1;\ndiv.s32 %r14, %r10, %r11;\nrem.s32 %r15, %r10, %r11;\n"
                            "mad.lo.s32 %r16, %r14, %r11, %r15;\nxor.b32 %r20, %r16, %r15;",
                            some_small, [](const Input& in) {
                              const int64_t x = static_cast<int32_t>(in[0]), y = static_cast<int32_t>(in[1] | 1);
                              return in[0] ^ static_cast<uint32_t>(x % y);
                            });
       }},
      {"conversions of integers", [] {
         return check_lanes("cvt.s64.s32 %rd3, %r10;\ncvt.u16.u32 %rs1, %r11;\ncvt.s32.s16 %r14, %rs1;\n"
                            "cvt.s32.s8 %r15, %r12;\nshr.u64 %rd3, %rd3, 20;\ncvt.u32.u64 %r16, %rd3;\n"
                            "xor.b32 %r20, %r14, %r15;\nxor.b32 %r20, %r20, %r16;",
                            any_bits, [](const Input& in) {
                              const int64_t wide = static_cast<int32_t>(in[0]);
                              const auto extend = [](uint32_t x, uint32_t bits) {
                                x &= (1u << bits) - 1;
                                return x >> (bits - 1) ? x | ~0u << bits : x;
                              };
                              return extend(in[1], 16) ^ extend(in[2], 8) ^
                                     static_cast<uint32_t>(static_cast<uint64_t>(wide) >> 20);
                            });
       }},
      {"setp.eq", [] { return check_comparison("eq", [](int o, bool u) { return !u && o == 0; }); }},
      {"setp.ne", [] { return check_comparison("ne", [](int o, bool u) { return !u && o != 0; }); }},
      {"setp.lt", [] { return check_comparison("lt", [](int o, bool u) { return !u && o < 0; }); }},
      {"setp.le", [] { return check_comparison("le", [](int o, bool u) { return !u && o <= 0; }); }},
      {"setp.gt", [] { return check_comparison("gt", [](int o, bool u) { return !u && o > 0; }); }},
      {"setp.ge", [] { return check_comparison("ge", [](int o, bool u) { return !u && o >= 0; }); }},
      {"setp.equ", [] { return check_comparison("equ", [](int o, bool u) { return u || o == 0; }); }},
      {"setp.neu", [] { return check_comparison("neu", [](int o, bool u) { return u || o != 0; }); }},
      {"setp.ltu", [] { return check_comparison("ltu", [](int o, bool u) { return u || o < 0; }); }},
      {"setp.leu", [] { return check_comparison("leu", [](int o, bool u) { return u || o <= 0; }); }},
      {"setp.gtu", [] { return check_comparison("gtu", [](int o, bool u) { return u || o > 0; }); }},
      {"setp.geu", [] { return check_comparison("geu", [](int o, bool u) { return u || o >= 0; }); }},
      {"setp.num", [] { return check_comparison("num", [](int, bool u) { return !u; }); }},
      {"setp.nan", [] { return check_comparison("nan", [](int, bool u) { return u; }); }},
      {"min and max of NaN and zeros", [] {
         return check_lanes("mov.b32 %f1, %r10;\nmov.b32 %f2, %r11;\nmax.f32 %f3, %f1, %f2;\nmin.f32 %f4, %f1, %f2;\n"
                            "mov.b32 %r14, %f3;\nmov.b32 %r15, %f4;\nshr.u32 %r15, %r15, 1;\nadd.s32 %r20, %r14, %r15;",
                            floats, [](const Input& in) {
                              const bool nan_x = std::isnan(float_of(in[0])), nan_y = std::isnan(float_of(in[1]));
                              // As integers with a sign, -0 is below +0.
                              const auto key = [](uint32_t b) { return b >> 31 ? -int64_t{b & 0x7fffffff} - 1 : int64_t{b}; };
                              const bool x_is_less = key(in[0]) < key(in[1]);
                              uint32_t high = x_is_less ? in[1] : in[0], low = x_is_less ? in[0] : in[1];
                              if (nan_x) high = low = in[1];
                              if (nan_y) high = low = in[0];
                              if (nan_x && nan_y) high = low = 0x7fffffff;
                              return high + (low >> 1);
                            });
       }},
      {"add, mul and fma round once, and give one NaN", [] {
         return check_lanes("mov.b32 %f1, %r10;\nmov.b32 %f2, %r11;\nmov.b32 %f3, %r12;\nmul.f32 %f4, %f1, %f2;\n"
                            "add.f32 %f4, %f4, %f3;\nfma.rn.f32 %f5, %f1, %f2, %f3;\nmov.b32 %r14, %f4;\n"
                            "mov.b32 %r15, %f5;\nshl.b32 %r15, %r15, 3;\nadd.s32 %r20, %r14, %r15;",
                            floats, [](const Input& in) {
                              const double x = float_of(in[0]), y = float_of(in[1]), z = float_of(in[2]);
                              const auto one_nan = [](float r) { return r != r ? 0x7fffffffu : bits_of(r); };
                              const float product = static_cast<float>(x * y);
                              const float sum = static_cast<float>(static_cast<double>(product) + z);
                              const float fused = static_cast<float>(static_cast<__float128>(x) * y + z);
                              return one_nan(sum) + (one_nan(fused) << 3);
                            });
       }},
      {"cvt to integers clamps", [] {
         return check_lanes("mov.b32 %f1, %r10;\ncvt.rzi.s32.f32 %r14, %f1;\ncvt.rzi.u32.f32 %r15, %f1;\n"
                            "cvt.rni.s32.f32 %r16, %f1;\nxor.b32 %r20, %r14, %r15;\nxor.b32 %r20, %r20, %r16;",
                            floats, [](const Input& in) {
                              const double x = float_of(in[0]);
                              if (x != x) return 0u;
                              const auto clamp = [](double v, double low, double high) {
                                return static_cast<uint32_t>(static_cast<int64_t>(v < low ? low : v > high ? high : v));
                              };
                              double even = std::floor(x + 0.5);
                              if (even - x == 0.5 && std::fmod(even, 2) != 0) even -= 1;
                              return clamp(x, -2147483648.0, 2147483647.0) ^ clamp(x, 0, 4294967295.0) ^
                                     clamp(even, -2147483648.0, 2147483647.0);
                            });
       }},
      {"cvt to bf16: ties", [] { return check_conversion("bf16", bf16_value, 0x1p128); }},
      {"cvt to f16: ties", [] { return check_conversion("f16", f16_value, 0x1p16); }},
      {"fma of bf16 pairs", [] { return check_fma2("bf16", bf16_value, 0x1p128); }},
      {"fma of f16 pairs", [] { return check_fma2("f16", f16_value, 0x1p16); }},
      {"fma rounded down", check_fma_down},
      {"predicates", [] {
         return check_lanes("setp.lt.u32 %p1, %r10, %r11;\nsetp.lt.s32 %p2, %r12, 0;\nnot.pred %p3, %p1;\n"
                            "and.pred %p4, %p1, %p2;\nxor.pred %p5, %p3, %p2;\nmov.pred %p6, -1;\n"
                            "and.pred %p5, %p5, %p6;\nselp.u32 %r20, 7, 5, %p4;\n@!%p5 add.s32 %r20, %r20, 16;\n"
                            "@%p2 add.s32 %r20, %r20, 32;",
                            any_bits, [](const Input& in) {
                              const bool less = in[0] < in[1], negative = in[2] >> 31;
                              return (less && negative ? 7u : 5u) + (!less != negative ? 0 : 16) + (negative ? 32 : 0);
                            });
       }},
  };
}

// ---- What a warp does together.

std::string check_mma(const std::string& type, float (*value)(uint32_t)) {
  Random random(3);
  for (int round = 0; round < 20; ++round) {
    Words memory(32 * 16);  // a lane: a, b, c and room
    for (uint32_t& word : memory) {
      const auto half = [&] {
        return type == "bf16" ? (random.word() & 0x807f) | (119 + random.word() % 12) << 7
                              : (random.word() & 0x83ff) | (7 + random.word() % 12) << 10;
      };
      word = half() << 16;
      word |= half();
    }
    for (size_t lane = 0; lane < 32; ++lane)
      for (size_t i = 6; i < 10; ++i) memory[lane * 16 + i] = bits_of(random.normal(4));
    const Words in = memory;
    const std::string fault = execute(
        "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd2];\nld.global.v2.u32 {%r14, %r15}, [%rd2+16];\n"
        "ld.global.v2.f32 {%f1, %f2}, [%rd2+24];\nld.global.v2.f32 {%f3, %f4}, [%rd2+32];\n"
        "mma.sync.aligned.m16n8k16.row.col.f32." + type + "." + type + ".f32 {%f1, %f2, %f3, %f4}, "
        "{%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f2, %f3, %f4};\nst.global.v4.f32 [%rd2], {%f1, %f2, %f3, %f4};",
        &memory, {}, 64);
    if (!fault.empty()) return fault;
    // Which lane and word hold an element, the other way round than the interpreter has it.
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 8; ++j) {
        const size_t c_lane = i % 8 * 4 + j / 2, c_word = i / 8 * 2 + j % 2;
        __float128 sum = float_of(in[c_lane * 16 + 6 + c_word]);
        for (size_t k = 0; k < 16; ++k) {
          const uint32_t a = in[(i % 8 * 4 + k % 8 / 2) * 16 + i / 8 + k / 8 * 2] >> (16 * (k % 2));
          const uint32_t b = in[(j * 4 + k % 8 / 2) * 16 + 4 + k / 8] >> (16 * (k % 2));
          sum += static_cast<__float128>(value(a & 0xffff)) * value(b & 0xffff);
        }
        const float got = float_of(memory[c_lane * 16 + c_word]), want = static_cast<float>(sum);
        if (got != want) {
          return "C[" + std::to_string(i) + "][" + std::to_string(j) + "] is " + std::to_string(got) + ", expected " +
                 std::to_string(want);
        }
      }
    }
  }
  return "";
}

std::string check_ldmatrix(size_t matrices, bool transpose) {
  Random random(4);
  Words memory(32 * 4);
  for (uint32_t& word : memory) word = random.word();
  const Words in = memory;
  std::string registers;
  for (size_t m = 0; m < matrices; ++m) registers += (m ? ", %r2" : "%r2") + std::to_string(m);
  const std::string fault = execute(
      "mov.u32 %r5, shared;\nshl.b32 %r6, %r1, 4;\nadd.s32 %r6, %r5, %r6;\nld.global.v4.u32 {%r10, %r11, %r12, %r13}, "
      "[%rd2];\nst.shared.v4.u32 [%r6], {%r10, %r11, %r12, %r13};\nbar.warp.sync -1;\nmov.u32 %r21, 0;\n"
      "mov.u32 %r22, 0;\nmov.u32 %r23, 0;\nldmatrix.sync.aligned.m8n8.x" + std::to_string(matrices) +
      (transpose ? ".trans" : "") + ".shared.b16 {" + registers + "}, [%r6];\n"
      "st.global.v4.u32 [%rd2], {%r20, %r21, %r22, %r23};",
      &memory, {.shared_bytes = 512}, 16);
  if (!fault.empty()) return fault;
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t m = 0; m < matrices; ++m) {
      for (size_t e = 0; e < 2; ++e) {
        const size_t row = transpose ? lane % 4 * 2 + e : lane / 4, column = transpose ? lane / 4 : lane % 4 * 2 + e;
        const uint32_t want = in[(8 * m + row) * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
        if ((memory[lane * 4 + m] >> (16 * e) & 0xffff) != want)
          return "matrix " + std::to_string(m) + ", lane " + std::to_string(lane);
      }
    }
  }
  return "";
}

std::string check_movmatrix() {
  Words memory(32);
  Random random(6);
  for (uint32_t& word : memory) word = random.word();
  const Words in = memory;
  const std::string fault = execute(
      "ld.global.u32 %r10, [%rd2];\nmovmatrix.sync.aligned.m8n8.trans.b16 %r11, %r10;\nst.global.u32 [%rd2], %r11;", &memory);
  if (!fault.empty()) return fault;
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t e = 0; e < 2; ++e) {
      const size_t row = lane % 4 * 2 + e, column = lane / 4;
      const uint32_t want = in[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
      if ((memory[lane] >> (16 * e) & 0xffff) != want) return "lane " + std::to_string(lane);
    }
  }
  return "";
}

std::string check_shuffle(const std::string& mode, uint32_t clamp, const std::function<int(int lane, int by)>& source) {
  for (int by = 0; by < 32; ++by) {
    Words memory(64);
    for (uint32_t lane = 0; lane < 32; ++lane) memory[lane * 2] = 100 + lane;
    const std::string fault =
        execute("ld.global.u32 %r10, [%rd2];\nshfl.sync." + mode + ".b32 %r11|%p1, %r10, " + std::to_string(by) + ", " +
                    std::to_string(clamp) + ", -1;\nselp.u32 %r12, 1, 0, %p1;\nst.global.v2.u32 [%rd2], {%r11, %r12};",
                &memory, {.seed = static_cast<uint64_t>(by)}, 8);
    if (!fault.empty()) return fault;
    for (int lane = 0; lane < 32; ++lane) {
      const int from = source(lane, by);
      const bool inside = from >= 0;
      const size_t at = static_cast<size_t>(lane) * 2;
      if (memory[at] != static_cast<uint32_t>(100 + (inside ? from : lane)) || memory[at + 1] != uint32_t{inside})
        return "by " + std::to_string(by) + ", lane " + std::to_string(lane) + " has " + std::to_string(memory[at]);
    }
  }
  return "";
}

// Each lane goes round a loop as often as its number says, by two ways, and votes; in all orders of threads.
std::string check_divergence() {
  for (uint64_t seed = 0; seed < 24; ++seed) {
    Words memory(64);
    const std::string fault = execute(
        "mov.u32 %r10, 0;\nmov.u32 %r11, 0;\nand.b32 %r9, %r1, 31;\n"
        "LOOP:\nsetp.ge.u32 %p1, %r10, %r9;\n@%p1 bra DONE;\nand.b32 %r12, %r10, 1;\nsetp.eq.u32 %p2, %r12, 0;\n"
        "@%p2 bra EVEN;\nadd.s32 %r11, %r11, 100;\nbra.uni NEXT;\nEVEN:\nadd.s32 %r11, %r11, 1;\nNEXT:\n"
        "add.s32 %r10, %r10, 1;\nbra.uni LOOP;\nDONE:\nsetp.gt.u32 %p3, %r11, 500;\n"
        "vote.sync.ballot.b32 %r13, %p3, -1;\nadd.s32 %r11, %r11, %r13;\nst.global.u32 [%rd2], %r11;",
        &memory, {.threads = 64, .seed = seed});
    if (!fault.empty()) return fault;
    uint32_t votes = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) votes |= uint32_t{lane / 2 * 100 + (lane + 1) / 2 > 500} << lane;
    for (uint32_t thread = 0; thread < 64; ++thread) {
      const uint32_t lane = thread % 32, want = lane / 2 * 100 + (lane + 1) / 2 + votes;
      if (memory[thread] != want) return "seed " + std::to_string(seed) + ", thread " + std::to_string(thread);
    }
  }
  return "";
}

// Copies of 16 bytes of which 0, 4, ... are read: the rest is 0.
std::string check_zero_fill() {
  Words memory(32 * 4);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint32_t>(i + 1);
  const std::string fault = execute(
      "mov.u32 %r5, shared;\nshl.b32 %r6, %r1, 4;\nadd.s32 %r6, %r5, %r6;\nrem.u32 %r7, %r1, 5;\nshl.b32 %r7, %r7, 2;\n"
      "cp.async.cg.shared.global [%r6], [%rd2], 16, %r7;\ncp.async.commit_group;\ncp.async.wait_group 0;\n"
      "ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r6];\nst.global.v4.u32 [%rd2], {%r10, %r11, %r12, %r13};",
      &memory, {.shared_bytes = 512}, 16);
  if (!fault.empty()) return fault;
  for (size_t i = 0; i < memory.size(); ++i) {
    const uint32_t want = i % 4 < i / 4 % 5 ? static_cast<uint32_t>(i + 1) : 0;
    if (memory[i] != want) return "word " + std::to_string(i) + " is " + std::to_string(memory[i]);
  }
  return "";
}

std::vector<Check> warp_checks() {
  return {
      {"mma of bf16 against the product", [] { return check_mma("bf16", bf16_value); }},
      {"mma of f16 against the product", [] { return check_mma("f16", f16_value); }},
      {"ldmatrix x4", [] { return check_ldmatrix(4, false); }},
      {"ldmatrix x4, transposed", [] { return check_ldmatrix(4, true); }},
      {"ldmatrix x2", [] { return check_ldmatrix(2, false); }},
      {"ldmatrix x2, transposed", [] { return check_ldmatrix(2, true); }},
      {"movmatrix", check_movmatrix},
      {"shfl.bfly", [] { return check_shuffle("bfly", 31, [](int lane, int by) { return lane ^ by; }); }},
      {"shfl.idx", [] { return check_shuffle("idx", 31, [](int, int by) { return by; }); }},
      {"shfl.up", [] { return check_shuffle("up", 0, [](int lane, int by) { return lane - by; }); }},
      {"shfl.down",
       [] { return check_shuffle("down", 31, [](int lane, int by) { return lane + by < 32 ? lane + by : -1; }); }},
      {"lanes that part and meet", check_divergence},
      {"cp.async fills with zeros", check_zero_fill},
  };
}

// ---- Faults.

struct Hazard {
  const char* name;
  std::string body;
  const char* message;  // part of the fault; empty: there is none
  Run how = {};
  uint64_t seeds = 1;
};

constexpr const char* kCopy =
    "mov.u32 %r5, shared;\nshl.b32 %r6, %r1, 4;\nadd.s32 %r6, %r5, %r6;\nmul.wide.u32 %rd3, %r1, 16;\n"
    "add.s64 %rd3, %rd3, %rd1;\ncp.async.cg.shared.global [%r6], [%rd3], 16;\ncp.async.commit_group;\n";
constexpr const char* kStore = "mov.u32 %r5, shared;\nshl.b32 %r6, %r1, 2;\nadd.s32 %r6, %r5, %r6;\nst.shared.u32 [%r6], %r1;\n";
// All blocks write a word; the last to arrive reads them all, with a fence between or without.
std::string last_block(const char* release, const char* acquire) {
  return std::string("mov.u32 %r2, %ctaid.x;\nmul.wide.u32 %rd3, %r2, 4;\nadd.s64 %rd3, %rd3, %rd1;\n"
                     "setp.ne.u32 %p1, %r1, 0;\n@%p1 bra END;\nst.global.u32 [%rd3+16], 7;\n") +
         release + "atom.global.add.u32 %r3, [%rd1], 1;\nsetp.ne.u32 %p2, %r3, 3;\n@%p2 bra END;\n" + acquire +
         "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd1+16];\nEND:\n";
}

std::string check_hazard(const Hazard& hazard) {
  for (uint64_t seed = 0; seed < hazard.seeds; ++seed) {
    Run how = hazard.how;
    how.seed = seed;
    Words memory(64 * 4, 0);
    const std::string fault = execute(hazard.body, &memory, how);
    const bool as_wanted = *hazard.message ? fault.find(hazard.message) != std::string::npos : fault.empty();
    if (!as_wanted)
      return "seed " + std::to_string(seed) + ": " + (fault.empty() ? "no fault" : fault);
  }
  return "";
}

std::vector<Check> hazard_checks() {
  static const std::string copy = kCopy, store = kStore;
  static const std::string early = copy + "ld.shared.u32 %r10, [%r6];\n";
  static const std::string newer_group =
      copy + "add.s32 %r7, %r6, 512;\ncp.async.cg.shared.global [%r7], [%rd3], 16;\ncp.async.commit_group;\n"
             "cp.async.wait_group 1;\nld.shared.u32 %r10, [%r6];\nld.shared.u32 %r11, [%r7];\n";
  static const std::string neighbour =
      copy + "cp.async.wait_group 0;\nxor.b32 %r7, %r6, 16;\nld.shared.u32 %r10, [%r7];\n";
  static const std::string neighbour_after_barrier =
      copy + "cp.async.wait_group 0;\nbar.sync 0;\nxor.b32 %r7, %r6, 16;\nld.shared.u32 %r10, [%r7];\n";
  static const std::string shared_race = store + "xor.b32 %r7, %r6, 4;\nld.shared.u32 %r10, [%r7];\n";
  static const std::string shared_race_of_warps =
      store + "bar.sync 0;\nst.shared.u32 [%r6], 5;\nbar.warp.sync -1;\nxor.b32 %r7, %r1, 32;\nshl.b32 %r7, %r7, 2;\nadd.s32 %r7, %r5, %r7;\nld.shared.u32 %r10, [%r7];\n";
  static const std::string shared_in_a_warp =
      store + "bar.warp.sync -1;\nxor.b32 %r7, %r6, 4;\nld.shared.u32 %r10, [%r7];\n";
  static const std::string overwritten =
      store + "bar.sync 0;\nxor.b32 %r7, %r1, 32;\nshl.b32 %r7, %r7, 2;\nadd.s32 %r7, %r5, %r7;\nld.shared.u32 %r10, [%r7];\nst.shared.u32 [%r6], 5;\n";
  static const std::string named =
      store + "setp.ge.u32 %p1, %r1, 64;\n@%p1 bra OTHER;\nbar.sync 1, 64;\nxor.b32 %r7, %r1, 32;\nshl.b32 %r7, %r7, 2;\nadd.s32 %r7, %r5, %r7;\n"
              "ld.shared.u32 %r10, [%r7];\nbra.uni END;\nOTHER:\nbar.sync 2, 64;\nEND:\n";
  static const std::string released = last_block("membar.gl;\n", "membar.gl;\n");
  static const std::string not_released = last_block("", "membar.gl;\n");
  static const std::string not_acquired = last_block("membar.gl;\n", "");
  const Run shared = {.shared_bytes = 2048}, two_warps = {.threads = 64, .shared_bytes = 2048};
  const Run four_warps = {.threads = 128, .shared_bytes = 2048};
  const Run four_blocks = {.blocks = 4};
  const std::vector<Hazard> hazards = {
      {"a 16-byte load at 8 modulo 16", "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd1+8];", "not aligned"},
      {"a store that is not aligned", "st.global.u32 [%rd1+2], %r1;", "not aligned"},
      {"a load past the end", "ld.global.u32 %r10, [%rd1+1024];", "1024 from the beginning"},
      {"a load before the beginning", "ld.global.u32 %r10, [%rd1+-4];", "reads global memory"},
      {"a store through null", "mov.u64 %rd3, 0;\nst.global.u32 [%rd3], %r1;", "in no allocation"},
      {"ld.shared of a global address", "ld.shared.u32 %r10, [%rd1];", "reads shared memory at byte"},
      {"ld.global of a shared address", "mov.u64 %rd3, shared;\nld.global.u32 %r10, [%rd3];", "in no allocation", shared},
      {"a generic address of shared memory", "mov.u64 %rd3, shared;\ncvta.shared.u64 %rd4, %rd3;\nmul.wide.u32 %rd5, %r1, 4;\nadd.s64 %rd4, %rd4, %rd5;\n"
       "st.u32 [%rd4], %r1;\nld.u32 %r10, [%rd4];", "", shared},
      {"a store to the parameters", "mov.u64 %rd3, kernel_param_0;\nst.param.u32 [%rd3], %r1;", "writes to the parameters"},
      {"shared memory that nobody has written", "ld.shared.u32 %r10, [shared+8];", "nobody has written", shared},
      {"the bytes of a load that are not used", "setp.ne.u32 %p1, %r1, 0;\n@%p1 bra END;\nst.shared.v2.u32 [shared], {%r1, %r1};\nst.shared.u32 [shared+8], %r1;\n"
       ".pragma \"used_bytes_mask 4095\";\nld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [shared];\nEND:", "", shared},
      {"shared memory past the launch's", "st.shared.u32 [shared+2048], %r1;", "of 2048", shared},
      {"cp.async: read before its wait", early, "under way", shared},
      {"cp.async: the newer group is not waited for", newer_group, "under way", shared},
      {"cp.async: another thread's, without a barrier", neighbour, "no barrier", shared},
      {"cp.async: another thread's, after a barrier", neighbour_after_barrier, "", shared, 20},
      {"cp.async: from 8 modulo 16", "mov.u32 %r5, shared;\ncp.async.cg.shared.global [%r5], [%rd1+8], 16;", "not aligned", shared},
      {"cp.async: past the end", "mov.u32 %r5, shared;\ncp.async.cg.shared.global [%r5], [%rd1+1024], 16;", "cp.async reads global memory", shared},
      {"cp.async: nothing is read of none", "shl.b32 %r6, %r1, 4;\nmov.u32 %r5, shared;\nadd.s32 %r5, %r5, %r6;\nmov.u32 %r7, 0;\ncp.async.cg.shared.global [%r5], [%rd1+1024], 16, %r7;", "", shared},
      {"cp.async: more than it copies", "mov.u32 %r5, shared;\nmov.u32 %r7, 17;\ncp.async.cg.shared.global [%r5], [%rd1], 16, %r7;", "more bytes than it copies", shared},
      {"shared memory: a read without a barrier", shared_race, "no barrier", shared},
      {"shared memory: bar.warp.sync does not order warps", shared_race_of_warps, "no barrier", two_warps},
      {"shared memory: bar.warp.sync orders lanes", shared_in_a_warp, "", shared, 20},
      {"shared memory: overwritten while it is read", overwritten, "no barrier", two_warps},
      {"shared memory: named barriers", named, "", four_warps, 20},
      {"global memory of another thread, without a barrier", "st.global.u32 [%rd2], %r1;\nxor.b32 %r3, %r1, 1;\nmul.wide.u32 %rd3, %r3, 4;\nadd.s64 %rd3, %rd3, %rd1;\n"
       "ld.global.u32 %r10, [%rd3];", "no barrier"},
      {"the last block reads: fences", released, "", four_blocks, 8},
      {"the last block reads: no fence after the write", not_released, "no fence after it", four_blocks},
      {"the last block reads: no fence before the read", not_acquired, "without a fence", four_blocks},
      {"ld.global.nc of what the kernel has written", "st.global.u32 [%rd2], %r1;\nld.global.nc.u32 %r10, [%rd2];", "has written"},
      {"a write to what ld.global.nc has read", "ld.global.nc.u32 %r10, [%rd2];\nst.global.u32 [%rd2], %r1;", "has read"},
      {"bar.sync that a warp does not reach", "setp.ge.u32 %p1, %r1, 32;\n@%p1 bra END;\nbar.sync 0;\nEND:", "not all threads arrive", two_warps},
      {"bar.sync that half a warp does not reach", "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra END;\nbar.sync 0;\nEND:", "not all threads arrive"},
      {"lanes at different barriers", "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra OTHER;\nbar.sync 0;\nbra.uni END;\nOTHER:\nbar.sync 0;\nEND:", "different barriers"},
      {"a shuffle that lanes miss", "setp.eq.u32 %p1, %r1, 5;\n@%p1 bra WAIT;\nshfl.sync.bfly.b32 %r10|%p2, %r1, 1, 31, -1;\nbra.uni END;\nWAIT:\nbar.sync 0;\nEND:", "not all threads arrive", {}, 8},
      {"lanes at different shuffles", "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra OTHER;\nshfl.sync.bfly.b32 %r10|%p2, %r1, 1, 31, -1;\nbra.uni END;\nOTHER:\n"
       "shfl.sync.bfly.b32 %r10|%p2, %r1, 2, 31, -1;\nEND:", "different operations", {}, 8},
      {"a shuffle from a lane that is not in the mask", "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra END;\nshfl.sync.bfly.b32 %r10|%p2, %r1, 16, 31, 65535;\nEND:", "not in the mask"},
      {"ldmatrix of rows that are not aligned", "mov.u32 %r5, shared;\nadd.s32 %r5, %r5, 8;\nldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r10, %r11}, [%r5];", "not aligned", shared},
      {"ldmatrix of what other lanes write, without bar.warp.sync", "mov.u32 %r5, shared;\nshl.b32 %r6, %r1, 4;\nadd.s32 %r6, %r5, %r6;\nst.shared.v4.u32 [%r6], {%r1, %r1, %r1, %r1};\n"
       "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r6];", "no barrier", shared},
      {"an instruction that is not known", "add.sat.s32 %r10, %r1, %r1;", "not known: add.sat.s32"},
      {"a modifier that is not known", "ld.global.lu.u32 %r10, [%rd2];", "not known: ld.global.lu.u32"},
      {"a directive that is not known", ".shared .b32 x;", "not known: .shared"},
      {"a source of the wrong type", "add.s32 %r10, %r1, %rd1;", "wrong type"},
      {"a register too small", "ld.global.u32 %rs1, [%rd2];", "too small"},
      {"a register that is not declared", "add.s32 %r10, %r99, 1;", "not known: %r99"},
      {"another number of operands", "add.s32 %r10, %r1;", "number of operands"},
      {"cp.async.cg of 8 bytes", "mov.u32 %r5, shared;\ncp.async.cg.shared.global [%r5], [%rd1], 8;", "cannot copy", shared},
  };
  std::vector<Check> checks;
  for (const Hazard& hazard : hazards) checks.push_back({hazard.name, [hazard] { return check_hazard(hazard); }});
  return checks;
}

}  // namespace

std::vector<Check> interpreter_checks() {
  std::vector<Check> checks = lane_checks();
  for (Check& check : warp_checks()) checks.push_back(std::move(check));
  for (Check& check : hazard_checks()) checks.push_back(std::move(check));
  return checks;
}

}  // namespace diffqkv::ptx
