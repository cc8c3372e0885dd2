// Which accesses of a block's threads are ordered: FastTrack's epochs, with one vector clock per warp. That is exact here,
// because whatever orders threads of a block (__syncwarp, bar_sync, __syncthreads) is reached by whole warps. Shuffles,
// votes, ldmatrix and mma order nothing.
//
// One count of all barriers serves as time. The time of an access is that of its warp's last barrier. It happened before
// an access of another thread if it is older than what the other's warp has seen of its warp.
#pragma once

#include <array>
#include <cstdint>

namespace diffqkv::emulated {

using Time = uint32_t;

constexpr int kMaxWarps = 32;

class BlockClock {
 public:
  // Time goes on from block to block: what an earlier block left in a table is older than start().
  void start_block(int num_warps) {
    all_ = num_warps == kMaxWarps ? ~0u : (1u << num_warps) - 1;
    start_ = now_ + 1;
    synchronize(all_);
  }
  bool is_nearly_over() const { return now_ > 0x7fffffffu; }
  void reset() { now_ = 0; }

  // A barrier that these warps have reached, and all their threads.
  void synchronize(uint32_t warps) {
    ++now_;
    if (warps == all_) {
      all_synchronized_ = now_;
      for_each(all_, [&](int warp) {
        warps_[warp].time = now_;
        warps_[warp].seen.fill(now_);
      });
      return;
    }
    std::array<Time, kMaxWarps> joined{};
    for_each(warps, [&](int warp) {
      for_each(all_, [&](int other) {
        if (warps_[warp].seen[other] > joined[other]) joined[other] = warps_[warp].seen[other];
      });
    });
    for_each(warps, [&](int warp) { joined[warp] = now_; });
    for_each(warps, [&](int warp) { warps_[warp] = {now_, joined}; });
  }
  void synchronize_warp(int warp) {
    if (all_ == 1) return synchronize(1);
    warps_[warp].time = warps_[warp].seen[warp] = ++now_;
  }

  Time start() const { return start_; }
  Time now() const { return now_; }
  // Accesses that are older happened before everything from now on.
  Time all_synchronized() const { return all_synchronized_; }
  Time time(int warp) const { return warps_[warp].time; }
  // Accesses of a warp that are older than its entry happened before what `warp` does now.
  const std::array<Time, kMaxWarps>& seen(int warp) const { return warps_[warp].seen; }

 private:
  struct Warp {
    Time time;
    std::array<Time, kMaxWarps> seen;
  };
  template <typename Use>
  static void for_each(uint32_t warps, const Use& use) {
    for (; warps != 0; warps &= warps - 1) use(__builtin_ctz(warps));
  }

  uint32_t all_ = 0;
  Time now_ = 0, start_ = 0, all_synchronized_ = 0;
  std::array<Warp, kMaxWarps> warps_{};
};

}  // namespace diffqkv::emulated
