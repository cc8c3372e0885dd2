// Instructions that the lanes of a warp execute together, barriers and fences. The first operand of a collective is the
// row of its mask of lanes.
#include <bit>
#include <cstring>
#include <string>
#include <unordered_map>

#include "forms.h"
#include "machine.h"
#include "numbers.h"

namespace diffqkv::ptx {
namespace {

// ---- shfl, vote, bar.warp.sync.

enum class Shuffle { up, down, butterfly, index };

// d|p, a, b, c: p says whether the source lane is in range; else a lane keeps its own a.
template <Shuffle kMode>
void shuffle(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  uint32_t* const d = warp.rows + o[1];
  const uint32_t *const a = warp.rows + o[3], *const b = warp.rows + o[4], *const c = warp.rows + o[5];
  uint32_t results[kLanes] = {}, in_range = 0;
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const int distance = static_cast<int>(b[lane] & 31), clamp = static_cast<int>(c[lane] & 31);
    const int segment = static_cast<int>(c[lane] >> 8 & 31);
    const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    int from = 0;
    bool inside = false;
    switch (kMode) {
      case Shuffle::up:
        from = lane - distance;
        inside = from >= most;
        break;
      case Shuffle::down:
        from = lane + distance;
        inside = from <= most;
        break;
      case Shuffle::butterfly:
        from = lane ^ distance;
        inside = from <= most;
        break;
      case Shuffle::index:
        from = least | (distance & ~segment);
        inside = from <= most;
        break;
    }
    if (!inside) from = lane;
    if (!(lanes >> from & 1)) warp.block->fail(warp, lane, "shfl reads a lane that is not in the mask");
    results[lane] = a[from];
    in_range |= static_cast<uint32_t>(inside) << lane;
  }
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    d[lane] = results[lane];
  }
  warp.predicates[o[2]] = (warp.predicates[o[2]] & ~lanes) | in_range;
}

void ballot(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  const uint32_t bits = warp.predicates[o[2]] & lanes;
  for (uint32_t left = lanes; left; left &= left - 1)
    warp.rows[o[1] + static_cast<uint32_t>(std::countr_zero(left))] = bits;
}
template <bool kAll>
void vote(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  const uint32_t bits = warp.predicates[o[2]] & lanes;
  const bool holds = kAll ? bits == lanes : bits != 0;
  warp.predicates[o[1]] = (warp.predicates[o[1]] & ~lanes) | (holds ? lanes : 0);
}

void synchronize(Warp& warp, const Instruction&, const uint32_t*, uint32_t lanes) {
  warp.block->synchronize_warp(warp, lanes);
}

// ---- Tensor cores. With g = lane / 4 and t = lane % 4, of 16-bit elements, two a word:
//   A (16 x 16): words 0 to 3 of a lane are A[g][2t], A[g + 8][2t], A[g][2t + 8], A[g + 8][2t + 8], and their neighbors
//   B (16 x 8):  words 0 and 1 are B[2t][g] and B[2t + 8][g], and the rows below them
//   C (16 x 8):  words 0 to 3 are C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1]

// Products are exact, and so is their sum but for f64's rounding; it is rounded to f32 once.
template <float (*kWiden)(uint16_t)>
void mma_m16n8k16(Warp& warp, const Instruction&, const uint32_t* o, uint32_t) {
  const auto row = [&](size_t i) { return warp.rows + o[1 + i]; };
  double a[16][16], b[16][8], sums[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto element = [&](size_t i) {
        return static_cast<double>(kWiden(static_cast<uint16_t>(row(i)[lane] >> (16 * half))));
      };
      for (int word = 0; word < 4; ++word)
        a[g + word % 2 * 8][2 * t + word / 2 * 8 + half] = element(4 + static_cast<size_t>(word));
      for (int word = 0; word < 2; ++word) b[2 * t + word * 8 + half][g] = element(8 + static_cast<size_t>(word));
    }
    for (int word = 0; word < 4; ++word) {
      sums[g + word / 2 * 8][2 * t + word % 2] =
          static_cast<double>(std::bit_cast<float>(row(10 + static_cast<size_t>(word))[lane]));
    }
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) sums[i][j] += a[i][k] * b[k][j];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int word = 0; word < 4; ++word) {
      const float sum = static_cast<float>(sums[g + word / 2 * 8][2 * t + word % 2]);
      row(static_cast<size_t>(word))[lane] = std::bit_cast<uint32_t>(canonical(sum));
    }
  }
}

// The 16-bit element [i][j] of an 8 x 8 matrix whose rows are given.
uint32_t element(const unsigned char* const* rows, int i, int j) {
  uint16_t value;
  std::memcpy(&value, rows[i] + 2 * j, 2);
  return value;
}

// Lane l gets of each matrix M the word M[l / 4][2 (l % 4), + 1], or, transposed, M[2 (l % 4), + 1][l / 4].
template <int kMatrices, bool kTranspose>
void ldmatrix(Warp& warp, const Instruction& in, const uint32_t* o, uint32_t) {
  const uint32_t* const addresses = warp.rows + o[1 + kMatrices];
  const unsigned char* rows[8 * kMatrices];
  for (int lane = 0; lane < 8 * kMatrices; ++lane) {
    const uint64_t address = static_cast<uint64_t>(int64_t{addresses[lane]} + in.immediate);
    rows[lane] = warp.block->read_row(warp, lane, address, 16);
  }
  for (int m = 0; m < kMatrices; ++m) {
    uint32_t* const to = warp.rows + o[1 + m];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      to[lane] = kTranspose ? element(rows + 8 * m, j, i) | element(rows + 8 * m, j + 1, i) << 16
                            : element(rows + 8 * m, i, j) | element(rows + 8 * m, i, j + 1) << 16;
    }
  }
}

void movmatrix(Warp& warp, const Instruction&, const uint32_t* o, uint32_t) {
  uint32_t words[kLanes];  // row i of the matrix is the words of lanes 4 i to 4 i + 3
  std::memcpy(words, warp.rows + o[2], sizeof(words));
  const unsigned char* rows[8];
  for (int i = 0; i < 8; ++i) rows[i] = reinterpret_cast<const unsigned char*>(words + 4 * i);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int i = lane / 4, j = lane % 4 * 2;
    warp.rows[o[1] + static_cast<uint32_t>(lane)] = element(rows, j, i) | element(rows, j + 1, i) << 16;
  }
}

void fence(Warp& warp, const Instruction&, const uint32_t*, uint32_t lanes) { warp.block->fence(warp, lanes); }
void wait_for_previous(Warp& warp, const Instruction&, const uint32_t*, uint32_t lanes) { warp.waited |= lanes; }
void start_next(Warp& warp, const Instruction&, const uint32_t*, uint32_t lanes) {
  warp.block->check_has_waited(warp, lanes, "lets the next kernel begin");
}
void nothing(Warp&, const Instruction&, const uint32_t*, uint32_t) {}

std::unordered_map<std::string, Form> make_forms() {
  constexpr Flow kCollective = Flow::collective, kMemory = Flow::memory;
  const char* const mma = "wwwwwwwwwwwwww";
  return {
      {"shfl.sync.up.b32", {"wpwwwm", shuffle<Shuffle::up>, kCollective, 2}},
      {"shfl.sync.down.b32", {"wpwwwm", shuffle<Shuffle::down>, kCollective, 2}},
      {"shfl.sync.bfly.b32", {"wpwwwm", shuffle<Shuffle::butterfly>, kCollective, 2}},
      {"shfl.sync.idx.b32", {"wpwwwm", shuffle<Shuffle::index>, kCollective, 2}},
      {"vote.sync.ballot.b32", {"wpm", ballot, kCollective}},
      {"vote.sync.any.pred", {"ppm", vote<false>, kCollective}},
      {"vote.sync.all.pred", {"ppm", vote<true>, kCollective}},
      {"bar.warp.sync", {"m", synchronize, kCollective, 0}},
      {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", {mma, mma_m16n8k16<widen_bf16>, kCollective, 4}},
      {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", {mma, mma_m16n8k16<widen_f16>, kCollective, 4}},
      {"ldmatrix.sync.aligned.m8n8.x1.shared.b16", {"wa", ldmatrix<1, false>, kCollective, 1}},
      {"ldmatrix.sync.aligned.m8n8.x2.shared.b16", {"wwa", ldmatrix<2, false>, kCollective, 2}},
      {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", {"wwwwa", ldmatrix<4, false>, kCollective, 4}},
      {"ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16", {"wa", ldmatrix<1, true>, kCollective, 1}},
      {"ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16", {"wwa", ldmatrix<2, true>, kCollective, 2}},
      {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", {"wwwwa", ldmatrix<4, true>, kCollective, 4}},
      {"movmatrix.sync.aligned.m8n8.trans.b16", {"ww", movmatrix, kCollective}},
      {"bar.sync", {"ww", nothing, Flow::barrier, 0}},
      {"barrier.sync", {"ww", nothing, Flow::barrier, 0}},
      {"griddepcontrol.wait", {"", wait_for_previous, kMemory, 0}},
      {"griddepcontrol.launch_dependents", {"", start_next, kMemory, 0}},
      {"membar.gl", {"", fence, kMemory, 0}},
      {"membar.sys", {"", fence, kMemory, 0}},
      {"membar.cta", {"", nothing, kMemory, 0}},
      {"fence.acq_rel.gpu", {"", fence, kMemory, 0}},
      {"fence.sc.gpu", {"", fence, kMemory, 0}},
  };
}

}  // namespace

const Form* warp_form(std::string_view name) {
  static const std::unordered_map<std::string, Form> forms = make_forms();
  const auto found = forms.find(std::string(name));
  return found == forms.end() ? nullptr : &found->second;
}

}  // namespace diffqkv::ptx
