// What must be a fault, and next to it what must not.
#include <cstring>

#include "interpreter_checks.h"

namespace diffqkv::ptx {
namespace {

using check::Check;

struct Case {
  const char* name;
  const char* message;  // a part of the fault; empty: there is none
  Run how;
  std::string body;
  uint64_t seeds = 1;
};

std::string check_case(const Case& c) {
  for (uint64_t seed = 0; seed < c.seeds; ++seed) {
    Run how = c.how;
    how.seed = seed;
    Words memory(256, 0);  // 1,024 bytes
    const std::string fault = execute(c.body, &memory, how);
    const bool is_as_wanted = *c.message ? fault.find(c.message) != std::string::npos : fault.empty();
    if (!is_as_wanted) return "seed " + std::to_string(seed) + ": " + (fault.empty() ? "no fault" : fault);
  }
  return "";
}

constexpr Run kPlain = {}, kShared = {.shared_bytes = 2048}, kTwoWarps = {.threads = 64, .shared_bytes = 2048},
              kFourWarps = {.threads = 128, .shared_bytes = 2048}, kFourBlocks = {.blocks = 4, .shared_bytes = 16};

std::vector<Case> addresses() {
  return {
      {"a 16-byte load at 8 modulo 16", "not aligned", kPlain, "ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd1+8];"},
      {"a store that is not aligned", "not aligned", kPlain, "st.global.u32 [%rd1+2], %r1;"},
      {"a load past the end", "1024 from the beginning", kPlain, "ld.global.u32 %r10, [%rd1+1024];"},
      {"a load before the beginning", "reads global memory", kPlain, "ld.global.u32 %r10, [%rd1+-4];"},
      {"a store through null", "in no allocation", kPlain, "mov.u64 %rd3, 0; st.global.u32 [%rd3], %r1;"},
      {"ld.shared of a global address", "reads shared memory at byte", kPlain, "ld.shared.u32 %r10, [%rd1];"},
      {"ld.global of a shared address", "in no allocation", kShared,
       "mov.u64 %rd3, shared; ld.global.u32 %r10, [%rd3];"},
      {"shared memory by a generic address", "", kShared, R"(
        mov.u64 %rd3, shared;
        cvta.shared.u64 %rd4, %rd3;
        mul.wide.u32 %rd5, %r1, 4;
        add.s64 %rd4, %rd4, %rd5;
        st.u32 [%rd4], %r1;
        ld.u32 %r10, [%rd4];)"},
      {"shared memory by half of a generic address", "writes shared memory at byte", kShared, R"(
        mov.u64 %rd3, shared;
        cvta.shared.u64 %rd4, %rd3;
        cvt.u32.u64 %r10, %rd4;
        st.shared.u32 [%r10], %r1;)"},
      {"a store to the parameters", "writes to the parameters", kPlain,
       "mov.u64 %rd3, kernel_param_0; st.param.u32 [%rd3], %r1;"},
      {"shared memory past the launch's", "of 2048", kShared, "st.shared.u32 [shared+2048], %r1;"},
      {"ldmatrix of rows that are not aligned", "not aligned", kShared, R"(
        mov.u32 %r5, shared;
        add.s32 %r5, %r5, 8;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r10, %r11}, [%r5];)"},
      {"local memory past the thread's", "of 16", kPlain, R"(
        .local .align 4 .b8 depot[16];
        mov.u64 %rd3, depot;
        st.local.u32 [%rd3+16], %r1;)"},
      {"local memory that the thread has not written", "has not written", kPlain, R"(
        .local .align 4 .b8 depot[16];
        mov.u64 %rd3, depot;
        st.local.u32 [%rd3], %r1;
        ld.local.u32 %r10, [%rd3];
        ld.local.u32 %r10, [%rd3+4];)"},
  };
}

// Each thread copies 16 bytes, to %r6 from %rd3.
constexpr const char* kCopy = R"(
  mov.u32 %r5, shared;
  shl.b32 %r6, %r1, 4;
  add.s32 %r6, %r5, %r6;
  mul.wide.u32 %rd3, %r1, 16;
  add.s64 %rd3, %rd3, %rd1;
  cp.async.cg.shared.global [%r6], [%rd3], 16;
  cp.async.commit_group;
)";

std::vector<Case> copies() {
  const std::string copy = kCopy, of_the_neighbor = "xor.b32 %r7, %r6, 16; ld.shared.u32 %r10, [%r7];";
  return {
      {"cp.async: read before its wait", "under way", kShared, copy + "ld.shared.u32 %r10, [%r6];"},
      {"cp.async: written before its wait", "under way", kShared, copy + "st.shared.u32 [%r6], %r1;"},
      {"cp.async: two to one place", "a copy is under way", kShared,
       copy + "cp.async.cg.shared.global [%r6], [%rd3], 16;"},
      {"cp.async: not in a group when that is waited for", "under way", kShared, copy + R"(
        add.s32 %r7, %r6, 512;
        cp.async.cg.shared.global [%r7], [%rd3], 16;
        cp.async.wait_group 0;
        ld.shared.u32 %r10, [%r7];)"},
      {"cp.async: in the newest group, which is not waited for", "under way", kShared, copy + R"(
        add.s32 %r7, %r6, 512;
        cp.async.cg.shared.global [%r7], [%rd3], 16;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.u32 %r10, [%r6];
        ld.shared.u32 %r11, [%r7];)"},
      {"cp.async: another thread's, without a barrier", "no barrier", kShared,
       copy + "cp.async.wait_group 0;" + of_the_neighbor},
      {"cp.async: another thread's, after a barrier", "", kShared,
       copy + "cp.async.wait_group 0; bar.sync 0;" + of_the_neighbor, 20},
      {"cp.async: from 8 modulo 16", "not aligned", kShared,
       "mov.u32 %r5, shared; cp.async.cg.shared.global [%r5], [%rd1+8], 16;"},
      {"cp.async: past the end", "cp.async reads global memory", kShared,
       "mov.u32 %r5, shared; cp.async.cg.shared.global [%r5], [%rd1+1024], 16;"},
      {"cp.async: nothing from past the end", "", kShared, R"(
        mov.u32 %r5, shared;
        shl.b32 %r6, %r1, 4;
        add.s32 %r6, %r5, %r6;
        mov.u32 %r7, 0;
        cp.async.cg.shared.global [%r6], [%rd1+1024], 16, %r7;)"},
      {"cp.async: more than it copies", "more bytes than it copies", kShared,
       "mov.u32 %r5, shared; mov.u32 %r7, 17; cp.async.cg.shared.global [%r5], [%rd1], 16, %r7;"},
  };
}

// Thread 0 copies 256 bytes in bulk, from %rd1 to %r6, on the mbarrier at %r5.
std::string bulk_copy(const std::string& expected = "256", const std::string& arrivals = "1",
                      const std::string& source = "%rd1") {
  return R"(
    mov.u32 %r5, shared;
    add.s32 %r6, %r5, 128;
    add.s64 %rd3, %rd1, 8;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra ISSUED;
    mbarrier.init.shared::cta.b64 [%r5], )" +
         arrivals + R"(;
    fence.proxy.async.shared::cta;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], )" +
         expected + R"(;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r6], [)" +
         source + R"(], 256, [%r5];
    ISSUED:
    bar.sync 0;)";
}
std::string wait_for(const std::string& parity) {
  return R"(
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5], )" +
         parity + R"(;
    @!%p2 bra WAIT;)";
}

std::vector<Case> bulk_copies() {
  const std::string read = "shl.b32 %r7, %r1, 2; add.s32 %r7, %r7, %r6; ld.shared.u32 %r10, [%r7];";
  return {
      {"cp.async.bulk: read after its phase", "", kTwoWarps, bulk_copy() + wait_for("0") + read, 20},
      {"cp.async.bulk: read before its phase", "under way", kTwoWarps, bulk_copy() + read},
      {"cp.async.bulk: the other parity", "under way", kTwoWarps, bulk_copy() + wait_for("1") + read},
      {"cp.async.bulk: written before its phase", "under way", kTwoWarps, bulk_copy() + "st.shared.u32 [%r6], %r1;"},
      {"cp.async.bulk: fewer bytes than expected", "never completes", kShared, bulk_copy("272") + wait_for("0")},
      {"cp.async.bulk: more bytes than expected", "more bytes", kShared, bulk_copy("240") + wait_for("0")},
      {"an mbarrier of more arrivals", "never completes", kShared, bulk_copy("256", "2") + wait_for("0")},
      {"an mbarrier that nobody began", "nobody began", kShared, "mov.u32 %r5, shared;" + wait_for("0")},
      {"cp.async.bulk: from 8 modulo 16", "not aligned", kShared, bulk_copy("256", "1", "%rd3")},
  };
}

// Each thread writes its word, at %r6.
constexpr const char* kStore = R"(
  mov.u32 %r5, shared;
  shl.b32 %r6, %r1, 2;
  add.s32 %r6, %r5, %r6;
  st.shared.u32 [%r6], %r1;
)";

// The first thread of each block writes a word; the last block to arrive reads them all.
std::string last_block(const char* release, const char* acquire) {
  constexpr const char* kCode = R"(
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r2, 4;
    add.s64 %rd3, %rd3, %rd1;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra END;
    st.global.u32 [%rd3+16], 7;
    RELEASE
    atom.global.add.u32 %r3, [%rd1], 1;
    setp.ne.u32 %p2, %r3, 3;
    @%p2 bra END;
    ACQUIRE
    ld.global.v4.u32 {%r10, %r11, %r12, %r13}, [%rd1+16];
  END:
  )";
  return with(with(kCode, "RELEASE", release), "ACQUIRE", acquire);
}

std::vector<Case> races() {
  const std::string store = kStore, matrices = R"(
    mov.u32 %r5, shared;
    shl.b32 %r6, %r1, 4;
    add.s32 %r6, %r5, %r6;
    st.shared.v4.u32 [%r6], {%r1, %r1, %r1, %r1};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r6];
  )";
  const std::string of_the_neighbor = "xor.b32 %r7, %r6, 4; ld.shared.u32 %r10, [%r7];";
  const std::string of_the_other_warp = R"(
    xor.b32 %r7, %r1, 32;
    shl.b32 %r7, %r7, 2;
    add.s32 %r7, %r5, %r7;
    ld.shared.u32 %r10, [%r7];
  )";
  return {
      {"shared memory that nobody has written", "nobody has written", kShared, "ld.shared.u32 %r10, [shared+8];"},
      {"the bytes of a load that are not used", "", kShared, R"(
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra END;
        st.shared.v2.u32 [shared], {%r1, %r1};
        st.shared.u32 [shared+8], %r1;
        .pragma "used_bytes_mask 4095";
        ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [shared];
      END:)"},
      {"shared memory: read without a barrier", "no barrier", kShared, store + of_the_neighbor},
      {"shared memory: read after bar.warp.sync", "", kShared, store + "bar.warp.sync -1;" + of_the_neighbor, 20},
      {"shared memory: bar.warp.sync does not order warps", "no barrier", kTwoWarps,
       store + "bar.sync 0; st.shared.u32 [%r6], 5; bar.warp.sync -1;" + of_the_other_warp},
      {"shared memory: overwritten while it is read", "no barrier", kTwoWarps,
       store + "bar.sync 0;" + of_the_other_warp + "st.shared.u32 [%r6], 5;"},
      {"shared memory: two write other values", "no barrier", kShared, "st.shared.u32 [shared], %r1;"},
      {"shared memory: two write the same value", "", kShared, "mov.u32 %r2, 5; st.shared.u32 [shared], %r2;", 8},
      {"shared memory: named barriers", "", kFourWarps, store + R"(
        setp.ge.u32 %p1, %r1, 64;
        @%p1 bra OTHER;
        bar.sync 1, 64;)" + of_the_other_warp + R"(
        bra.uni END;
      OTHER:
        bar.sync 2, 64;
      END:)",
       20},
      {"shared memory: another named barrier", "no barrier", kFourWarps, store + R"(
        setp.ge.u32 %p1, %r1, 64;
        @%p1 bra OTHER;
        bar.sync 1, 64;
        bra.uni END;
      OTHER:
        bar.sync 2, 64;
        sub.s32 %r7, %r6, 256;
        st.shared.u32 [%r7], 5;
      END:)"},
      {"ldmatrix of what other lanes write, without bar.warp.sync", "no barrier", kShared, R"(
        mov.u32 %r5, shared;
        shl.b32 %r6, %r1, 4;
        add.s32 %r6, %r5, %r6;
        st.shared.v4.u32 [%r6], {%r1, %r1, %r1, %r1};
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r6];)"},
      {"ldmatrix of what is overwritten then, without bar.warp.sync", "no barrier", kShared,
       matrices + "st.shared.u32 [%r6], 5;"},
      {"ldmatrix of what is overwritten after bar.warp.sync", "", kShared,
       matrices + "bar.warp.sync -1; st.shared.u32 [%r6], 5;", 8},
      {"global memory: another thread's, without a barrier", "no barrier", kPlain, R"(
        st.global.u32 [%rd2], %r1;
        xor.b32 %r3, %r1, 1;
        mul.wide.u32 %rd3, %r3, 4;
        add.s64 %rd3, %rd3, %rd1;
        ld.global.u32 %r10, [%rd3];)"},
      {"the last block reads: fences", "", kFourBlocks, last_block("membar.gl;", "membar.gl;"), 8},
      {"the last block reads: no fence after the write", "with no fence and atomic", kFourBlocks,
       last_block("", "membar.gl;")},
      {"the last block reads: no fence before the read", "without an atomic operation and a fence", kFourBlocks,
       last_block("membar.gl;", "")},
      {"the last block reads: a fence that is too late", "with no fence and atomic", kFourBlocks,
       with(last_block("", "membar.gl;"), "setp.ne.u32 %p2", "membar.gl; setp.ne.u32 %p2")},
      {"the last block reads: another thread's fence", "without an atomic operation and a fence", kFourBlocks, R"(
        mov.u32 %r2, %ctaid.x;
        mul.wide.u32 %rd3, %r2, 4;
        add.s64 %rd3, %rd3, %rd1;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra ALL;
        st.global.u32 [%rd3+16], 7;
        membar.gl;
        atom.global.add.u32 %r3, [%rd1], 1;
        st.shared.u32 [shared], %r3;
      ALL:
        bar.sync 0;
        ld.shared.u32 %r3, [shared];
        setp.ne.u32 %p2, %r3, 3;
        @%p2 bra END;
        membar.gl;
        ld.global.u32 %r10, [%rd1+16];
      END:)"},
      {"the last block reads: fences of a block only", "with no fence and atomic", kFourBlocks,
       last_block("membar.cta;", "membar.cta;")},
      {"ld.global.nc of what the kernel has written", "has written", kPlain,
       "st.global.u32 [%rd2], %r1; ld.global.nc.u32 %r10, [%rd2];"},
      {"a write to what ld.global.nc has read", "has read", kPlain,
       "ld.global.nc.u32 %r10, [%rd2]; st.global.u32 [%rd2], %r1;"},
  };
}

std::vector<Case> threads_that_miss() {
  return {
      {"bar.sync that a warp does not reach", "not all threads arrive", kTwoWarps, R"(
        setp.ge.u32 %p1, %r1, 32;
        @%p1 bra END;
        bar.sync 0;
      END:)"},
      {"bar.sync that half a warp does not reach", "not all threads arrive", kPlain, R"(
        setp.ge.u32 %p1, %r1, 16;
        @%p1 bra END;
        bar.sync 0;
      END:)"},
      {"lanes at different barriers", "different barriers", kPlain, R"(
        setp.ge.u32 %p1, %r1, 16;
        @%p1 bra OTHER;
        bar.sync 0;
        bra.uni END;
      OTHER:
        bar.sync 0;
      END:)"},
      {"a shuffle that a lane misses", "not all threads arrive", kPlain, R"(
        setp.eq.u32 %p1, %r1, 5;
        @%p1 bra WAIT;
        shfl.sync.bfly.b32 %r10|%p2, %r1, 1, 31, -1;
        bra.uni END;
      WAIT:
        bar.sync 0;
      END:)",
       8},
      {"lanes at different shuffles", "different operations", kPlain, R"(
        setp.ge.u32 %p1, %r1, 16;
        @%p1 bra OTHER;
        shfl.sync.bfly.b32 %r10|%p2, %r1, 1, 31, -1;
        bra.uni END;
      OTHER:
        shfl.sync.bfly.b32 %r10|%p2, %r1, 2, 31, -1;
      END:)",
       8},
      {"a shuffle from a lane that is not in the mask", "not in the mask", kPlain, R"(
        setp.ge.u32 %p1, %r1, 16;
        @%p1 bra END;
        shfl.sync.bfly.b32 %r10|%p2, %r1, 16, 31, 65535;
      END:)"},
      {"a loop without end", "does not end", kPlain, "AGAIN: bra.uni AGAIN;"},
  };
}

std::vector<Case> dependent_launches() {
  return {
      {"a load before griddepcontrol.wait", "reads global memory before", kPlain,
       "ld.global.u32 %r10, [%rd2]; griddepcontrol.wait;"},
      {"a store before griddepcontrol.wait", "writes global memory before", kPlain,
       "st.global.u32 [%rd2], %r1; griddepcontrol.wait;"},
      {"an atomic operation before griddepcontrol.wait", "writes global memory before", kPlain,
       "atom.global.add.u32 %r10, [%rd2], 1; griddepcontrol.wait;"},
      {"the next kernel begins before griddepcontrol.wait", "lets the next kernel begin before", kPlain,
       "griddepcontrol.launch_dependents; griddepcontrol.wait;"},
      {"lanes that end without griddepcontrol.wait", "ends before", kPlain, R"(
        setp.ge.u32 %p1, %r1, 16;
        @%p1 bra END;
        griddepcontrol.wait;
      END:)"},
      {"read-only loads and copies before griddepcontrol.wait, all else after it", "", kShared, R"(
        ld.global.nc.u32 %r10, [%rd1+512];
        griddepcontrol.wait;
        griddepcontrol.launch_dependents;
        ld.global.u32 %r10, [%rd2];
        st.global.u32 [%rd2], %r10;)"},
  };
}

std::vector<Case> unknown() {
  return {
      {"an instruction that is not known", "not known: add.sat.s32", kPlain, "add.sat.s32 %r10, %r1, %r1;"},
      {"a modifier that is not known", "not known: ld.global.lu.u32", kPlain, "ld.global.lu.u32 %r10, [%rd2];"},
      {"a directive that is not known", "not known: .shared", kPlain, ".shared .b32 x;"},
      {"a pragma that is not known", "not known: \"frequency", kPlain, ".pragma \"frequency 3\";"},
      {"a source of the wrong type", "wrong type", kPlain, "add.s32 %r10, %r1, %rd1;"},
      {"a register too small", "too small", kPlain, "ld.global.u32 %rs1, [%rd2];"},
      {"a register that is not declared", "not known: %r99", kPlain, "add.s32 %r10, %r99, 1;"},
      {"another number of operands", "number of operands", kPlain, "add.s32 %r10, %r1;"},
      {"a branch to nowhere", "which is not there", kPlain, "bra.uni NOWHERE;"},
      {"cp.async.cg of 8 bytes", "cannot copy", kShared,
       "mov.u32 %r5, shared; cp.async.cg.shared.global [%r5], [%rd1], 8;"},
  };
}

}  // namespace

std::vector<Check> fault_checks() {
  std::vector<Check> checks;
  for (const auto& cases :
       {addresses(), copies(), bulk_copies(), races(), threads_that_miss(), dependent_launches(), unknown()})
    for (const Case& c : cases) checks.push_back({c.name, [c] { return check_case(c); }});
  return checks;
}

}  // namespace diffqkv::ptx
