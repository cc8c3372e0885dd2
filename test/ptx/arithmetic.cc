// Instructions that a lane executes by itself: integers, floats, comparisons, conversions, moves. Each is the C++ function
// of one lane that the PTX ISA describes; the letters of its operands follow from the function's types.
#include <bit>
#include <cmath>
#include <string>
#include <unordered_map>
#include <utility>

#include "forms.h"
#include "machine.h"
#include "numbers.h"

namespace diffqkv::ptx {
namespace {

// ---- Rows of values of any type.

template <typename T>
T get(const uint32_t* row, int lane) {
  if constexpr (sizeof(T) == 8) {
    return std::bit_cast<T>(reinterpret_cast<const uint64_t*>(row)[lane]);
  } else if constexpr (sizeof(T) == 4) {
    return std::bit_cast<T>(row[lane]);
  } else {
    return std::bit_cast<T>(static_cast<uint16_t>(row[lane]));
  }
}
template <typename T>
void put(uint32_t* row, int lane, T value) {
  if constexpr (sizeof(T) == 8) {
    reinterpret_cast<uint64_t*>(row)[lane] = std::bit_cast<uint64_t>(value);
  } else if constexpr (sizeof(T) == 4) {
    row[lane] = std::bit_cast<uint32_t>(value);
  } else {
    row[lane] = std::bit_cast<uint16_t>(value);
  }
}

// An argument: a row, or a predicate's bits.
template <typename T>
struct Source {
  const uint32_t* row;
  Source(Warp& warp, uint32_t operand) : row(warp.rows + operand) {}
  T operator[](int lane) const { return get<T>(row, lane); }
};
template <>
struct Source<bool> {
  uint32_t bits;
  Source(Warp& warp, uint32_t operand) : bits(warp.predicates[operand]) {}
  bool operator[](int lane) const { return bits >> lane & 1; }
};

template <typename T>
constexpr char letter() {
  return std::is_same_v<T, bool> ? 'p' : sizeof(T) == 8 ? 'd' : sizeof(T) == 4 ? 'w' : 'h';
}

// Executes a function of one lane, a closure without captures.
template <typename Function, typename Signature>
struct Elementwise;
template <typename Function, typename R, typename... A>
struct Elementwise<Function, R (Function::*)(A...) const> {
  static constexpr char kOperands[] = {letter<R>(), letter<A>()..., 0};

  template <size_t... kIndex>
  static void apply(Warp& warp, const uint32_t* o, uint32_t lanes, std::index_sequence<kIndex...>) {
    const std::tuple<Source<A>...> sources = {Source<A>(warp, o[1 + kIndex])...};
    if constexpr (std::is_same_v<R, bool>) {
      uint32_t bits = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        // Lanes that are not to run hold values too; no function here minds.
        bits |= static_cast<uint32_t>(Function{}(std::get<kIndex>(sources)[lane]...)) << lane;
      }
      warp.predicates[o[0]] = (warp.predicates[o[0]] & ~lanes) | (bits & lanes);
    } else {
      uint32_t* const to = warp.rows + o[0];
      if (lanes == kAllLanes) {
#pragma GCC ivdep
        for (int lane = 0; lane < kLanes; ++lane) put<R>(to, lane, Function{}(std::get<kIndex>(sources)[lane]...));
      } else {
        for (uint32_t left = lanes; left; left &= left - 1) {
          const int lane = std::countr_zero(left);
          put<R>(to, lane, Function{}(std::get<kIndex>(sources)[lane]...));
        }
      }
    }
  }
  static void run(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
    apply(warp, o, lanes, std::index_sequence_for<A...>());
  }
};

using Forms = std::unordered_map<std::string, Form>;

// Adds a function under several names.
template <typename Function>
void add(Forms* forms, std::initializer_list<std::string> names, Function) {
  using Type = Elementwise<Function, decltype(&Function::operator())>;
  for (const std::string& name : names) (*forms)[name] = {Type::kOperands, Type::run};
}

// ---- Integers.

template <typename U>
void add_integers(Forms* forms, const std::string& bits) {
  using S = std::make_signed_t<U>;
  constexpr unsigned kBits = sizeof(U) * 8;
  const std::string u = ".u" + bits, s = ".s" + bits, b = ".b" + bits;
  add(forms, {"add" + u, "add" + s}, [](U x, U y) { return static_cast<U>(x + y); });
  add(forms, {"sub" + u, "sub" + s}, [](U x, U y) { return static_cast<U>(x - y); });
  add(forms, {"mul.lo" + u, "mul.lo" + s}, [](U x, U y) { return static_cast<U>(x * y); });
  add(forms, {"mad.lo" + u, "mad.lo" + s}, [](U x, U y, U z) { return static_cast<U>(x * y + z); });
  add(forms, {"neg" + s}, [](U x) { return static_cast<U>(0 - x); });
  add(forms, {"abs" + s}, [](S x) { return static_cast<S>(x < 0 ? 0 - static_cast<U>(x) : static_cast<U>(x)); });
  add(forms, {"min" + u}, [](U x, U y) { return x < y ? x : y; });
  add(forms, {"max" + u}, [](U x, U y) { return x > y ? x : y; });
  add(forms, {"min" + s}, [](S x, S y) { return x < y ? x : y; });
  add(forms, {"max" + s}, [](S x, S y) { return x > y ? x : y; });
  // A division by zero has no defined result: all bits set, as GPUs have it.
  add(forms, {"div" + u}, [](U x, U y) { return y == 0 ? static_cast<U>(~U{0}) : static_cast<U>(x / y); });
  add(forms, {"rem" + u}, [](U x, U y) { return y == 0 ? x : static_cast<U>(x % y); });
  add(forms, {"div" + s}, [](S x, S y) {
    return y == 0 ? static_cast<S>(-1) : y == -1 ? static_cast<S>(0 - static_cast<U>(x)) : static_cast<S>(x / y);
  });
  add(forms, {"rem" + s}, [](S x, S y) { return y == 0 ? x : y == -1 ? S{0} : static_cast<S>(x % y); });
  add(forms, {"and" + b}, [](U x, U y) { return static_cast<U>(x & y); });
  add(forms, {"or" + b}, [](U x, U y) { return static_cast<U>(x | y); });
  add(forms, {"xor" + b}, [](U x, U y) { return static_cast<U>(x ^ y); });
  add(forms, {"not" + b}, [](U x) { return static_cast<U>(~x); });
  // Shifts by more than the width are shifts by the width.
  add(forms, {"shl" + b}, [](U x, uint32_t n) { return n >= kBits ? U{0} : static_cast<U>(x << n); });
  add(forms, {"shr" + u, "shr" + b}, [](U x, uint32_t n) { return n >= kBits ? U{0} : static_cast<U>(x >> n); });
  add(forms, {"shr" + s}, [](S x, uint32_t n) { return static_cast<S>(x >> (n >= kBits ? kBits - 1 : n)); });
  add(forms, {"mov" + u, "mov" + s, "mov" + b}, [](U x) { return x; });
  add(forms, {"selp" + u, "selp" + s, "selp" + b}, [](U x, U y, bool p) { return p ? x : y; });
  add(forms, {"setp.eq" + u, "setp.eq" + s, "setp.eq" + b}, [](U x, U y) { return x == y; });
  add(forms, {"setp.ne" + u, "setp.ne" + s, "setp.ne" + b}, [](U x, U y) { return x != y; });
  add(forms, {"setp.lt" + u, "setp.lo" + u}, [](U x, U y) { return x < y; });
  add(forms, {"setp.le" + u, "setp.ls" + u}, [](U x, U y) { return x <= y; });
  add(forms, {"setp.gt" + u, "setp.hi" + u}, [](U x, U y) { return x > y; });
  add(forms, {"setp.ge" + u, "setp.hs" + u}, [](U x, U y) { return x >= y; });
  add(forms, {"setp.lt" + s}, [](S x, S y) { return x < y; });
  add(forms, {"setp.le" + s}, [](S x, S y) { return x <= y; });
  add(forms, {"setp.gt" + s}, [](S x, S y) { return x > y; });
  add(forms, {"setp.ge" + s}, [](S x, S y) { return x >= y; });
}

// bfi: the low `length` bits of `from` at `position` in `to`; what passes the top is dropped.
template <typename U>
constexpr U insert_bits(U from, U to, uint32_t position, uint32_t length) {
  constexpr uint32_t kBits = sizeof(U) * 8;
  position &= 0xff;
  length &= 0xff;
  if (position >= kBits || length == 0) return to;
  const U low = length >= kBits ? ~U{0} : static_cast<U>((U{1} << length) - 1);
  const U mask = static_cast<U>(low << position);
  return static_cast<U>((to & ~mask) | (static_cast<U>(from << position) & mask));
}

// prmt in its default mode: each nibble of the selector picks a byte of b:a; its top bit replicates that byte's sign.
constexpr uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7)) & 0xff);
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

constexpr uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}

void add_mixed_integers(Forms* forms) {
  add(forms, {"mul.wide.s16"}, [](int16_t x, int16_t y) { return int32_t{x} * y; });
  add(forms, {"mul.wide.u16"}, [](uint16_t x, uint16_t y) { return uint32_t{x} * y; });
  add(forms, {"mul.wide.s32"}, [](int32_t x, int32_t y) { return int64_t{x} * y; });
  add(forms, {"mul.wide.u32"}, [](uint32_t x, uint32_t y) { return uint64_t{x} * y; });
  add(forms, {"mad.wide.s32"}, [](int32_t x, int32_t y, int64_t z) {
    return static_cast<int64_t>(static_cast<uint64_t>(int64_t{x} * y) + static_cast<uint64_t>(z));
  });
  add(forms, {"mad.wide.u32"}, [](uint32_t x, uint32_t y, uint64_t z) { return uint64_t{x} * y + z; });
  add(forms, {"mul.hi.s32"}, [](int32_t x, int32_t y) { return static_cast<int32_t>(int64_t{x} * y >> 32); });
  add(forms, {"mul.hi.u32"}, [](uint32_t x, uint32_t y) { return static_cast<uint32_t>(uint64_t{x} * y >> 32); });
  add(forms, {"mul.hi.u64"},
      [](uint64_t x, uint64_t y) { return static_cast<uint64_t>(static_cast<unsigned __int128>(x) * y >> 64); });
  add(forms, {"bfi.b32"},
      [](uint32_t from, uint32_t to, uint32_t at, uint32_t n) { return insert_bits(from, to, at, n); });
  add(forms, {"bfi.b64"},
      [](uint64_t from, uint64_t to, uint32_t at, uint32_t n) { return insert_bits(from, to, at, n); });
  add(forms, {"prmt.b32"}, [](uint32_t a, uint32_t b, uint32_t selector) { return permute_bytes(a, b, selector); });
  add(forms, {"lop3.b32"}, [](uint32_t a, uint32_t b, uint32_t c, uint32_t t) { return logic3(a, b, c, t); });
  // The upper word of hi:lo shifted left, and the lower word of it shifted right, by at most 32 or modulo 32.
  add(forms, {"shf.l.wrap.b32"}, [](uint32_t lo, uint32_t hi, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{hi} << 32 | lo) << (n & 31) >> 32);
  });
  add(forms, {"shf.r.wrap.b32"}, [](uint32_t lo, uint32_t hi, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{hi} << 32 | lo) >> (n & 31));
  });
  add(forms, {"shf.l.clamp.b32"}, [](uint32_t lo, uint32_t hi, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{hi} << 32 | lo) << (n > 32 ? 32 : n) >> 32);
  });
  add(forms, {"shf.r.clamp.b32"}, [](uint32_t lo, uint32_t hi, uint32_t n) {
    return static_cast<uint32_t>((uint64_t{hi} << 32 | lo) >> (n > 32 ? 32 : n));
  });
  add(forms, {"popc.b32"}, [](uint32_t x) { return static_cast<uint32_t>(std::popcount(x)); });
  add(forms, {"popc.b64"}, [](uint64_t x) { return static_cast<uint32_t>(std::popcount(x)); });
  add(forms, {"clz.b32"}, [](uint32_t x) { return static_cast<uint32_t>(std::countl_zero(x)); });
  add(forms, {"clz.b64"}, [](uint64_t x) { return static_cast<uint32_t>(std::countl_zero(x)); });
  add(forms, {"brev.b32"}, [](uint32_t x) {
    uint32_t reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
  });
}

// ---- Conversions between integers. The result of 8 bits is kept, extended, in 16.

template <typename T>
constexpr auto widened(T x) {
  if constexpr (sizeof(T) == 1) {
    return static_cast<std::conditional_t<std::is_signed_v<T>, int16_t, uint16_t>>(x);
  } else {
    return x;
  }
}

template <typename To, typename From>
void add_cvt(Forms* forms, const std::string& to, const std::string& from) {
  using Register = decltype(widened(From{}));
  add(forms, {"cvt." + to + "." + from}, [](Register x) { return widened(static_cast<To>(static_cast<From>(x))); });
}
template <typename To>
void add_cvt_to(Forms* forms, const std::string& to) {
  add_cvt<To, uint8_t>(forms, to, "u8");
  add_cvt<To, int8_t>(forms, to, "s8");
  add_cvt<To, uint16_t>(forms, to, "u16");
  add_cvt<To, int16_t>(forms, to, "s16");
  add_cvt<To, uint32_t>(forms, to, "u32");
  add_cvt<To, int32_t>(forms, to, "s32");
  add_cvt<To, uint64_t>(forms, to, "u64");
  add_cvt<To, int64_t>(forms, to, "s64");
}

// ---- Floats.

template <typename F>
void add_comparisons(Forms* forms, const std::string& type) {
  add(forms, {"setp.eq" + type}, [](F x, F y) { return x == y; });
  add(forms, {"setp.ne" + type}, [](F x, F y) { return x < y || x > y; });
  add(forms, {"setp.lt" + type}, [](F x, F y) { return x < y; });
  add(forms, {"setp.le" + type}, [](F x, F y) { return x <= y; });
  add(forms, {"setp.gt" + type}, [](F x, F y) { return x > y; });
  add(forms, {"setp.ge" + type}, [](F x, F y) { return x >= y; });
  // Or one of them is NaN.
  add(forms, {"setp.equ" + type}, [](F x, F y) { return !(x < y || x > y); });
  add(forms, {"setp.neu" + type}, [](F x, F y) { return x != y; });
  add(forms, {"setp.ltu" + type}, [](F x, F y) { return !(x >= y); });
  add(forms, {"setp.leu" + type}, [](F x, F y) { return !(x > y); });
  add(forms, {"setp.gtu" + type}, [](F x, F y) { return !(x <= y); });
  add(forms, {"setp.geu" + type}, [](F x, F y) { return !(x < y); });
  add(forms, {"setp.num" + type}, [](F x, F y) { return x == x && y == y; });
  add(forms, {"setp.nan" + type}, [](F x, F y) { return x != x || y != y; });
}

template <typename F>
void add_floats(Forms* forms, const std::string& type) {
  add(forms, {"add" + type, "add.rn" + type}, [](F x, F y) { return canonical(x + y); });
  add(forms, {"sub" + type, "sub.rn" + type}, [](F x, F y) { return canonical(x - y); });
  add(forms, {"mul" + type, "mul.rn" + type}, [](F x, F y) { return canonical(x * y); });
  add(forms, {"fma.rn" + type}, [](F x, F y, F z) { return canonical(std::fma(x, y, z)); });
  add(forms, {"div.rn" + type}, [](F x, F y) { return canonical(x / y); });
  add(forms, {"rcp.rn" + type}, [](F x) { return canonical(F{1} / x); });
  add(forms, {"sqrt.rn" + type}, [](F x) { return canonical(std::sqrt(x)); });
  add(forms, {"neg" + type}, [](F x) { return -x; });
  add(forms, {"abs" + type}, [](F x) { return std::fabs(x); });
  add(forms, {"min" + type}, [](F x, F y) { return smaller(x, y); });
  add(forms, {"max" + type}, [](F x, F y) { return larger(x, y); });
  add(forms, {"selp" + type}, [](F x, F y, bool p) { return p ? x : y; });
  add(forms, {"mov" + type}, [](F x) { return x; });
  add_comparisons<F>(forms, type);
}

void add_float_functions(Forms* forms) {
  add(forms, {"fma.rm.f32"}, [](float x, float y, float z) { return fma_down(x, y, z); });
  add(forms, {"ex2.approx.ftz.f32"},
      [](float x) { return flushed(static_cast<float>(std::exp2(static_cast<double>(flushed(x))))); });
  add(forms, {"ex2.approx.f32"}, [](float x) { return static_cast<float>(std::exp2(static_cast<double>(x))); });
  add(forms, {"lg2.approx.ftz.f32"},
      [](float x) { return canonical(static_cast<float>(std::log2(static_cast<double>(flushed(x))))); });
  add(forms, {"lg2.approx.f32"},
      [](float x) { return canonical(static_cast<float>(std::log2(static_cast<double>(x)))); });
  add(forms, {"rcp.approx.ftz.f32"},
      [](float x) { return flushed(canonical(static_cast<float>(1 / static_cast<double>(flushed(x))))); });
  add(forms, {"rcp.approx.f32"}, [](float x) { return canonical(static_cast<float>(1 / static_cast<double>(x))); });
  add(forms, {"rsqrt.approx.ftz.f32"},
      [](float x) { return flushed(canonical(static_cast<float>(1 / std::sqrt(static_cast<double>(flushed(x)))))); });
  add(forms, {"rsqrt.approx.f32"},
      [](float x) { return canonical(static_cast<float>(1 / std::sqrt(static_cast<double>(x)))); });
  // About 20 bits of the result are right, and its lower word is 0.
  add(forms, {"rcp.approx.ftz.f64"}, [](double x) {
    const double y = canonical(1 / x);
    return std::fabs(y) < 0x1p-1022 ? std::copysign(0.0, y)
                                    : std::bit_cast<double>(std::bit_cast<uint64_t>(y) & 0xffffffff00000000u);
  });

  add(forms, {"cvt.sat.f32.f32"}, [](float x) { return !(x > 0) ? 0.0f : x < 1 ? x : 1.0f; });
  add(forms, {"cvt.rni.f32.f32"}, [](float x) { return canonical(std::nearbyint(x)); });
  add(forms, {"cvt.rzi.f32.f32"}, [](float x) { return canonical(std::trunc(x)); });
  add(forms, {"cvt.rmi.f32.f32"}, [](float x) { return canonical(std::floor(x)); });
  add(forms, {"cvt.rpi.f32.f32"}, [](float x) { return canonical(std::ceil(x)); });
  add(forms, {"cvt.rni.f64.f64"}, [](double x) { return std::nearbyint(x); });
  add(forms, {"cvt.rzi.f64.f64"}, [](double x) { return std::trunc(x); });
  add(forms, {"cvt.f64.f32"}, [](float x) { return static_cast<double>(x); });
  add(forms, {"cvt.rn.f32.f64"}, [](double x) { return canonical(static_cast<float>(x)); });
  add(forms, {"cvt.f32.f16"}, [](uint16_t x) { return canonical(widen_f16(x)); });
  add(forms, {"cvt.f32.bf16"}, [](uint16_t x) { return canonical(widen_bf16(x)); });
  add(forms, {"cvt.rn.f16.f32"}, [](float x) { return round_to_f16(x); });
  add(forms, {"cvt.rn.bf16.f32"}, [](float x) { return round_to_bf16(x); });
  // The first source is the upper half.
  add(forms, {"cvt.rn.f16x2.f32"},
      [](float x, float y) { return static_cast<uint32_t>(round_to_f16(x)) << 16 | round_to_f16(y); });
  add(forms, {"cvt.rn.bf16x2.f32"},
      [](float x, float y) { return static_cast<uint32_t>(round_to_bf16(x)) << 16 | round_to_bf16(y); });
  add(forms, {"fma.rn.f16x2"}, [](uint32_t x, uint32_t y, uint32_t z) { return fma_f16x2(x, y, z); });
  add(forms, {"fma.rn.bf16x2"}, [](uint32_t x, uint32_t y, uint32_t z) { return fma_bf16x2(x, y, z); });

  add(forms, {"cvt.rn.f32.s8"}, [](int16_t x) { return static_cast<float>(static_cast<int8_t>(x)); });
  add(forms, {"cvt.rn.f32.u8"}, [](uint16_t x) { return static_cast<float>(static_cast<uint8_t>(x)); });
  add(forms, {"cvt.rn.f32.s16"}, [](int16_t x) { return static_cast<float>(x); });
  add(forms, {"cvt.rn.f32.u16"}, [](uint16_t x) { return static_cast<float>(x); });
  add(forms, {"cvt.rn.f32.s32"}, [](int32_t x) { return static_cast<float>(x); });
  add(forms, {"cvt.rn.f32.u32"}, [](uint32_t x) { return static_cast<float>(x); });
  add(forms, {"cvt.rn.f32.s64"}, [](int64_t x) { return static_cast<float>(x); });
  add(forms, {"cvt.rn.f32.u64"}, [](uint64_t x) { return static_cast<float>(x); });
  add(forms, {"cvt.rn.f64.s32"}, [](int32_t x) { return static_cast<double>(x); });
  add(forms, {"cvt.rn.f64.u32"}, [](uint32_t x) { return static_cast<double>(x); });
  add(forms, {"cvt.rn.f64.s64"}, [](int64_t x) { return static_cast<double>(x); });
  add(forms, {"cvt.rn.f64.u64"}, [](uint64_t x) { return static_cast<double>(x); });
  // To integers: clamped, and NaN becomes 0.
  add(forms, {"cvt.rzi.s32.f32"}, [](float x) { return saturate<int32_t>(std::trunc(x)); });
  add(forms, {"cvt.rzi.u32.f32"}, [](float x) { return saturate<uint32_t>(std::trunc(x)); });
  add(forms, {"cvt.rni.s32.f32"}, [](float x) { return saturate<int32_t>(std::nearbyint(x)); });
  add(forms, {"cvt.rmi.s32.f32"}, [](float x) { return saturate<int32_t>(std::floor(x)); });
  add(forms, {"cvt.rzi.s32.f64"}, [](double x) { return saturate<int32_t>(std::trunc(x)); });
  add(forms, {"cvt.rzi.u32.f64"}, [](double x) { return saturate<uint32_t>(std::trunc(x)); });
  add(forms, {"cvt.rzi.s64.f64"}, [](double x) { return saturate<int64_t>(std::trunc(x)); });
  add(forms, {"cvt.rzi.u64.f64"}, [](double x) { return saturate<uint64_t>(std::trunc(x)); });
  add(forms, {"cvt.rni.s32.f64"}, [](double x) { return saturate<int32_t>(std::nearbyint(x)); });
}

// ---- Predicates.

void set_bits(Warp& warp, uint32_t predicate, uint32_t lanes, uint32_t bits) {
  warp.predicates[predicate] = (warp.predicates[predicate] & ~lanes) | (bits & lanes);
}
template <typename Function>
Form predicates2(Function) {
  return {"ppp", [](Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
            set_bits(warp, o[0], lanes, Function{}(warp.predicates[o[1]], warp.predicates[o[2]]));
          }};
}

void add_predicates(Forms* forms) {
  (*forms)["and.pred"] = predicates2([](uint32_t a, uint32_t b) { return a & b; });
  (*forms)["or.pred"] = predicates2([](uint32_t a, uint32_t b) { return a | b; });
  (*forms)["xor.pred"] = predicates2([](uint32_t a, uint32_t b) { return a ^ b; });
  (*forms)["not.pred"] = {"pp", [](Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
                            set_bits(warp, o[0], lanes, ~warp.predicates[o[1]]);
                          }};
  (*forms)["mov.pred"] = {"pp", [](Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
                            set_bits(warp, o[0], lanes, warp.predicates[o[1]]);
                          }};
}

Forms make_forms() {
  Forms forms;
  add_integers<uint16_t>(&forms, "16");
  add_integers<uint32_t>(&forms, "32");
  add_integers<uint64_t>(&forms, "64");
  add_mixed_integers(&forms);
  add_cvt_to<uint8_t>(&forms, "u8");
  add_cvt_to<int8_t>(&forms, "s8");
  add_cvt_to<uint16_t>(&forms, "u16");
  add_cvt_to<int16_t>(&forms, "s16");
  add_cvt_to<uint32_t>(&forms, "u32");
  add_cvt_to<int32_t>(&forms, "s32");
  add_cvt_to<uint64_t>(&forms, "u64");
  add_cvt_to<int64_t>(&forms, "s64");
  add_floats<float>(&forms, ".f32");
  add_floats<double>(&forms, ".f64");
  add_float_functions(&forms);
  add_predicates(&forms);
  // Moves between one register and two halves of it: "mov.b64 {lo, hi}, d".
  add(&forms, {"pack.b64"}, [](uint32_t lo, uint32_t hi) { return uint64_t{hi} << 32 | lo; });
  add(&forms, {"pack.b32"}, [](uint16_t lo, uint16_t hi) { return static_cast<uint32_t>(hi) << 16 | lo; });
  add(&forms, {"low.b64"}, [](uint64_t x) { return static_cast<uint32_t>(x); });
  add(&forms, {"high.b64"}, [](uint64_t x) { return static_cast<uint32_t>(x >> 32); });
  add(&forms, {"low.b32"}, [](uint32_t x) { return static_cast<uint16_t>(x); });
  add(&forms, {"high.b32"}, [](uint32_t x) { return static_cast<uint16_t>(x >> 16); });
  // From and to the generic windows.
  add(&forms, {"cvta.global.u64", "cvta.to.global.u64"}, [](uint64_t x) { return x; });
  add(&forms, {"cvta.shared.u64"}, [](uint64_t x) { return x + kSharedWindow; });
  add(&forms, {"cvta.to.shared.u64"}, [](uint64_t x) { return x - kSharedWindow; });
  add(&forms, {"cvta.local.u64"}, [](uint64_t x) { return x + kLocalWindow; });
  add(&forms, {"cvta.to.local.u64"}, [](uint64_t x) { return x - kLocalWindow; });
  add(&forms, {"cvta.param.u64"}, [](uint64_t x) { return x + kParameterWindow; });
  return forms;
}

}  // namespace

const Form* arithmetic_form(std::string_view name) {
  static const Forms forms = make_forms();
  const auto found = forms.find(std::string(name));
  return found == forms.end() ? nullptr : &found->second;
}

}  // namespace diffqkv::ptx
