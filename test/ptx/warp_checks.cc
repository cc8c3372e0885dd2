// Instructions of a warp, and lanes that part and meet.
#include <functional>

#include "interpreter_checks.h"
#include "random.h"

namespace diffqkv::ptx {
namespace {

using check::Check;
using check::Random;

Words random_words(size_t count, uint64_t seed) {
  Random random(seed);
  Words words(count);
  for (uint32_t& word : words) word = random.word();
  return words;
}

// Element `column` of a row of 16-bit elements, two a word.
uint32_t element(const Words& words, size_t row, size_t column) {
  return words[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
}

// A sign, an exponent of 2^-8 to 2^3, and any mantissa.
uint32_t small_half(Random& random, bool is_bf16) {
  const uint32_t bits = random.word(), exponent = random.word() % 12;
  return is_bf16 ? (bits & 0x807f) | (119 + exponent) << 7 : (bits & 0x83ff) | (7 + exponent) << 10;
}

// Against the product, with the fragment tables the other way round than in the interpreter: which lane and word hold an
// element.
std::string check_mma(const std::string& type, float (*value)(uint32_t)) {
  constexpr const char* kCode = R"(
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd2];
    ld.global.v2.u32 {%r14, %r15}, [%rd2+16];
    ld.global.v2.f32 {%f1, %f2}, [%rd2+24];
    ld.global.v2.f32 {%f3, %f4}, [%rd2+32];
    mma.sync.aligned.m16n8k16.row.col.f32.TYPE.TYPE.f32
      {%f1, %f2, %f3, %f4}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f2, %f3, %f4};
    st.global.v4.f32 [%rd2], {%f1, %f2, %f3, %f4};
  )";
  constexpr size_t kStride = 16;  // words of a lane: a, b, c, and room
  Random random(3);
  for (int round = 0; round < 20; ++round) {
    Words memory(32 * kStride);
    for (size_t i = 0; i < memory.size(); ++i) {
      const uint32_t low = small_half(random, type == "bf16"), high = small_half(random, type == "bf16");
      memory[i] = i % kStride < 6 ? low | high << 16 : bits_of(random.normal(4));
    }
    const Words in = memory;
    const std::string fault = execute(with(kCode, "TYPE", type), &memory, {}, kStride * 4);
    if (!fault.empty()) return fault;
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 8; ++j) {
        const size_t c_lane = i % 8 * 4 + j / 2, c_word = i / 8 * 2 + j % 2;
        __float128 sum = float_of(in[c_lane * kStride + 6 + c_word]);
        for (size_t k = 0; k < 16; ++k) {
          const size_t a_lane = i % 8 * 4 + k % 8 / 2, b_lane = j * 4 + k % 8 / 2;
          const uint32_t a = in[a_lane * kStride + i / 8 + k / 8 * 2] >> (16 * (k % 2));
          const uint32_t b = in[b_lane * kStride + 4 + k / 8] >> (16 * (k % 2));
          sum += static_cast<__float128>(value(a & 0xffff)) * value(b & 0xffff);
        }
        const float got = float_of(memory[c_lane * kStride + c_word]), want = static_cast<float>(sum);
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
  constexpr const char* kCode = R"(
    mov.u32 %r5, shared;
    shl.b32 %r6, %r1, 4;
    add.s32 %r6, %r5, %r6;
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd2];
    st.shared.v4.u32 [%r6], {%r10, %r11, %r12, %r13};
    bar.warp.sync -1;
    mov.u32 %r22, 0;
    mov.u32 %r23, 0;
    ldmatrix.sync.aligned.m8n8.KIND.shared.b16 REGISTERS, [%r6];
    st.global.v4.u32 [%rd2], {%r20, %r21, %r22, %r23};
  )";
  const std::string kind = (matrices == 4 ? "x4" : "x2") + std::string(transpose ? ".trans" : "");
  const char* const registers = matrices == 4 ? "{%r20, %r21, %r22, %r23}" : "{%r20, %r21}";
  const Words in = random_words(32 * 4, 4);
  Words memory = in;
  const std::string fault =
      execute(with(with(kCode, "KIND", kind), "REGISTERS", registers), &memory, {.shared_bytes = 512}, 16);
  if (!fault.empty()) return fault;
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t m = 0; m < matrices; ++m) {
      for (size_t e = 0; e < 2; ++e) {
        const size_t row = transpose ? lane % 4 * 2 + e : lane / 4, column = transpose ? lane / 4 : lane % 4 * 2 + e;
        if ((memory[lane * 4 + m] >> (16 * e) & 0xffff) != element(in, 8 * m + row, column))
          return "matrix " + std::to_string(m) + ", lane " + std::to_string(lane);
      }
    }
  }
  return "";
}

std::string check_movmatrix() {
  constexpr const char* kCode = R"(
    ld.global.u32 %r10, [%rd2];
    movmatrix.sync.aligned.m8n8.trans.b16 %r11, %r10;
    st.global.u32 [%rd2], %r11;
  )";
  const Words in = random_words(32, 6);
  Words memory = in;
  const std::string fault = execute(kCode, &memory);
  if (!fault.empty()) return fault;
  for (size_t lane = 0; lane < 32; ++lane) {
    for (size_t e = 0; e < 2; ++e) {
      if ((memory[lane] >> (16 * e) & 0xffff) != element(in, lane % 4 * 2 + e, lane / 4))
        return "lane " + std::to_string(lane);
    }
  }
  return "";
}

// source: the lane that is read, or -1 where it is out of range, and a lane keeps its own.
std::string check_shuffle(const std::string& mode, const std::string& clamp, int (*source)(int lane, int by)) {
  constexpr const char* kCode = R"(
    ld.global.u32 %r10, [%rd2];
    shfl.sync.MODE.b32 %r11|%p1, %r10, BY, CLAMP, -1;
    selp.u32 %r12, 1, 0, %p1;
    st.global.v2.u32 [%rd2], {%r11, %r12};
  )";
  for (int by = 0; by < 32; ++by) {
    Words memory(64);
    for (uint32_t lane = 0; lane < 32; ++lane) memory[lane * 2] = 100 + lane;
    const std::string code = with(with(with(kCode, "MODE", mode), "BY", std::to_string(by)), "CLAMP", clamp);
    const std::string fault = execute(code, &memory, {.seed = static_cast<uint64_t>(by)}, 8);
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
  constexpr const char* kCode = R"(
    mov.u32 %r10, 0;
    mov.u32 %r11, 0;
    and.b32 %r9, %r1, 31;
  AGAIN:
    setp.ge.u32 %p1, %r10, %r9;
    @%p1 bra DONE;
    and.b32 %r12, %r10, 1;
    setp.eq.u32 %p2, %r12, 0;
    @%p2 bra EVEN;
    add.s32 %r11, %r11, 100;
    bra.uni NEXT;
  EVEN:
    add.s32 %r11, %r11, 1;
  NEXT:
    add.s32 %r10, %r10, 1;
    bra.uni AGAIN;
  DONE:
    setp.gt.u32 %p3, %r11, 500;
    vote.sync.ballot.b32 %r13, %p3, -1;
    add.s32 %r11, %r11, %r13;
    st.global.u32 [%rd2], %r11;
  )";
  const auto count = [](uint32_t lane) { return lane / 2 * 100 + (lane + 1) / 2; };
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) votes |= uint32_t{count(lane) > 500} << lane;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    Words memory(64);
    const std::string fault = execute(kCode, &memory, {.threads = 64, .seed = seed});
    if (!fault.empty()) return fault;
    for (uint32_t thread = 0; thread < 64; ++thread) {
      if (memory[thread] != count(thread % 32) + votes)
        return "seed " + std::to_string(seed) + ", thread " + std::to_string(thread);
    }
  }
  return "";
}

// Copies of 16 bytes of which 0, 4, 8, 12 or 16 are read.
std::string check_zero_fill() {
  constexpr const char* kCode = R"(
    mov.u32 %r5, shared;
    shl.b32 %r6, %r1, 4;
    add.s32 %r6, %r5, %r6;
    rem.u32 %r7, %r1, 5;
    shl.b32 %r7, %r7, 2;
    cp.async.cg.shared.global [%r6], [%rd2], 16, %r7;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r6];
    st.global.v4.u32 [%rd2], {%r10, %r11, %r12, %r13};
  )";
  Words memory(32 * 4);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<uint32_t>(i + 1);
  const std::string fault = execute(kCode, &memory, {.shared_bytes = 512}, 16);
  if (!fault.empty()) return fault;
  for (size_t i = 0; i < memory.size(); ++i) {
    const uint32_t want = i % 4 < i / 4 % 5 ? static_cast<uint32_t>(i + 1) : 0;
    if (memory[i] != want) return "word " + std::to_string(i) + " is " + std::to_string(memory[i]);
  }
  return "";
}

}  // namespace

std::vector<Check> warp_checks() {
  return {
      {"mma of bf16 against the product", [] { return check_mma("bf16", bf16_value); }},
      {"mma of f16 against the product", [] { return check_mma("f16", f16_value); }},
      {"ldmatrix x4", [] { return check_ldmatrix(4, false); }},
      {"ldmatrix x4, transposed", [] { return check_ldmatrix(4, true); }},
      {"ldmatrix x2", [] { return check_ldmatrix(2, false); }},
      {"ldmatrix x2, transposed", [] { return check_ldmatrix(2, true); }},
      {"movmatrix", check_movmatrix},
      {"shfl.bfly", [] { return check_shuffle("bfly", "31", [](int lane, int by) { return lane ^ by; }); }},
      {"shfl.idx", [] { return check_shuffle("idx", "31", [](int, int by) { return by; }); }},
      {"shfl.up", [] { return check_shuffle("up", "0", [](int lane, int by) { return lane - by; }); }},
      {"shfl.down",
       [] { return check_shuffle("down", "31", [](int lane, int by) { return lane + by < 32 ? lane + by : -1; }); }},
      {"lanes that part and meet", check_divergence},
      {"cp.async fills with zeros", check_zero_fill},
  };
}

}  // namespace diffqkv::ptx
