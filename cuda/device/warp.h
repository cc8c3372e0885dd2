// What the 32 lanes of a warp do together. All lanes take part, always.
#pragma once

#include "device/memory.h"

namespace diffqkv::DIFFQKV_DEVICE_NS {

#if !defined(DIFFQKV_EMULATION)

constexpr uint32_t kAllLanes = 0xffffffffu;

// T is a type of 4 bytes.
template <typename T>
DIFFQKV_DEVICE T shuffle(T value, int lane) {
  return bit_cast<T>(__shfl_sync(kAllLanes, bit_cast<uint32_t>(value), lane));
}
template <typename T>
DIFFQKV_DEVICE T shuffle_xor(T value, int mask) {
  return bit_cast<T>(__shfl_xor_sync(kAllLanes, bit_cast<uint32_t>(value), mask));
}
// From the lane `delta` below; lanes under delta keep their own.
template <typename T>
DIFFQKV_DEVICE T shuffle_up(T value, int delta) {
  return bit_cast<T>(__shfl_up_sync(kAllLanes, bit_cast<uint32_t>(value), delta));
}
// From the lane `delta` above; lanes from 32 - delta on keep their own.
template <typename T>
DIFFQKV_DEVICE T shuffle_down(T value, int delta) {
  return bit_cast<T>(__shfl_down_sync(kAllLanes, bit_cast<uint32_t>(value), delta));
}
// Bit i: whether lane i's condition holds.
DIFFQKV_DEVICE uint32_t ballot(bool condition) { return __ballot_sync(kAllLanes, condition); }

#else

template <typename T, typename From>
DIFFQKV_DEVICE T shuffle_from(const char* name, T value, const From& from, Site site) {
  struct Lane {
    T value, result;
    int from;
  } lane = {value, value, from(lane_index())};
  warp_collective(
      name, &lane,
      [](void* const* lanes) {
        for (int i = 0; i < kWarpSize; ++i) {
          Lane& to = *static_cast<Lane*>(lanes[i]);
          if (to.from >= 0) to.result = static_cast<Lane*>(lanes[to.from])->value;
        }
      },
      site);
  return lane.result;
}
template <typename T>
DIFFQKV_DEVICE T shuffle(T value, int lane DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle", value, [&](int) { return lane & 31; }, site);
}
template <typename T>
DIFFQKV_DEVICE T shuffle_xor(T value, int mask DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle_xor", value, [&](int lane) { return (lane ^ mask) & 31; }, site);
}
template <typename T>
DIFFQKV_DEVICE T shuffle_up(T value, int delta DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle_up", value, [&](int lane) { return lane - delta; }, site);
}
template <typename T>
DIFFQKV_DEVICE T shuffle_down(T value, int delta DIFFQKV_SITE) {
  return shuffle_from(
      "shuffle_down", value, [&](int lane) { return lane + delta < 32 ? lane + delta : -1; }, site);
}
DIFFQKV_DEVICE uint32_t ballot(bool condition DIFFQKV_SITE) {
  struct Lane {
    bool condition;
    uint32_t result;
  } lane = {condition, 0};
  warp_collective(
      "ballot", &lane,
      [](void* const* lanes) {
        uint32_t bits = 0;
        for (int i = 0; i < kWarpSize; ++i) bits |= static_cast<uint32_t>(static_cast<Lane*>(lanes[i])->condition) << i;
        for (int i = 0; i < kWarpSize; ++i) static_cast<Lane*>(lanes[i])->result = bits;
      },
      site);
  return lane.result;
}

#endif

// Every lane gets the sum, in the same order of summation in each: all lanes have the same bits.
DIFFQKV_DEVICE float warp_sum(float x) {
  DIFFQKV_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
DIFFQKV_DEVICE double warp_sum(double x) {
  DIFFQKV_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const Words2 words = bit_cast<Words2>(x);
    x += bit_cast<double>(Words2{{shuffle_xor(words.w[0], mask), shuffle_xor(words.w[1], mask)}});
  }
  return x;
}
// NaN is passed over, unless all are.
DIFFQKV_DEVICE float max_number(float a, float b) { return a > b || b != b ? a : b; }
DIFFQKV_DEVICE float warp_max(float x) {
  DIFFQKV_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x = max_number(x, shuffle_xor(x, mask));
  return x;
}

}  // namespace diffqkv::DIFFQKV_DEVICE_NS
