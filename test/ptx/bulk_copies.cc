// mbarrier, cp.async.bulk and fence.proxy.async. A copy lands while a thread waits for a phase; until then nobody may access
// what it writes. Which threads have seen a phase complete is not on record here: the emulation checks that.
#include <bit>
#include <cstring>
#include <unordered_map>

#include "forms.h"
#include "global_memory.h"
#include "machine.h"

namespace diffqkv::ptx {
namespace {

constexpr uint32_t kMostIdleWaits = 1 << 16;

uint32_t word(const Warp& warp, uint32_t row, int lane) { return warp.rows[row + static_cast<uint32_t>(lane)]; }

template <typename F>
void for_lanes(uint32_t lanes, const F& f) {
  for (uint32_t left = lanes; left; left &= left - 1) f(std::countr_zero(left));
}

void begin(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  for_lanes(lanes,
            [&](int lane) { warp.block->begin_mbarrier(warp, lane, word(warp, o[0], lane), word(warp, o[1], lane)); });
}
void arrive(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    warp.block->arrive_expecting(warp, lane, word(warp, o[1], lane), word(warp, o[2], lane));
  });
}
void try_wait(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  uint32_t complete = 0;
  for_lanes(lanes, [&](int lane) {
    if (warp.block->try_wait(warp, lane, word(warp, o[1], lane), word(warp, o[2], lane))) complete |= 1u << lane;
  });
  warp.predicates[o[0]] = (warp.predicates[o[0]] & ~lanes) | complete;
}
void copy(Warp& warp, const Instruction&, const uint32_t* o, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    warp.block->begin_bulk_copy(warp, lane, word(warp, o[0], lane),
                                reinterpret_cast<const uint64_t*>(warp.rows + o[1])[lane], word(warp, o[2], lane),
                                word(warp, o[3], lane));
  });
}
void nothing(Warp&, const Instruction&, const uint32_t*, uint32_t) {}

}  // namespace

const Form* bulk_form(std::string_view name) {
  static const std::unordered_map<std::string, Form> forms = {
      {"mbarrier.init.shared::cta.b64", {"aw", begin, Flow::memory, 0}},
      {"mbarrier.arrive.expect_tx.shared::cta.b64", {"daw", arrive, Flow::memory, 1}},
      {"mbarrier.try_wait.parity.shared::cta.b64", {"paw", try_wait, Flow::memory, 1}},
      {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", {"agwa", copy, Flow::memory, 0}},
      {"fence.proxy.async.shared::cta", {"", nothing, Flow::memory, 0}},
  };
  const auto found = forms.find(std::string(name));
  return found == forms.end() ? nullptr : &found->second;
}

Mbarrier& Block::mbarrier_at(Warp& warp, int lane, uint64_t address) {
  const uint32_t offset = shared_offset(warp, lane, address, 8, "an mbarrier in");
  for (Mbarrier& barrier : mbarriers_)
    if (barrier.offset == offset) return barrier;
  fail(warp, lane, "an mbarrier that nobody began, at byte " + std::to_string(offset));
}

void Block::begin_mbarrier(Warp& warp, int lane, uint64_t address, uint32_t arrivals) {
  if (arrivals == 0 || arrivals >= 1u << 20)
    fail(warp, lane, "an mbarrier of " + std::to_string(arrivals) + " arrivals");
  const uint64_t value = 0;
  write(warp, lane, Space::shared, address, 8, reinterpret_cast<const unsigned char*>(&value));
  mbarriers_.push_back({shared_offset(warp, lane, address, 8, "begins an mbarrier in"), arrivals, arrivals, 0, 0});
}

void Block::complete_if_due(Mbarrier* barrier) {
  if (barrier->pending > 0 || barrier->bytes != 0) return;
  barrier->pending = barrier->arrivals;
  ++barrier->phase;
}

void Block::arrive_expecting(Warp& warp, int lane, uint64_t address, uint32_t bytes) {
  Mbarrier& barrier = mbarrier_at(warp, lane, address);
  idle_waits_ = 0;
  --barrier.pending;
  barrier.bytes += bytes;
  complete_if_due(&barrier);
}

void Block::begin_bulk_copy(Warp& warp, int lane, uint64_t shared, uint64_t global, uint32_t bytes, uint64_t barrier) {
  if (bytes == 0 || bytes % 16 != 0 || shared % 16 != 0 || global % 16 != 0)
    fail(warp, lane, "cp.async.bulk that is not aligned to 16 bytes, or not of a multiple of them");
  const int thread = warp.first_thread() + lane;
  const uint32_t phase = mbarrier_at(warp, lane, barrier).phase;
  const size_t index = static_cast<size_t>(&mbarrier_at(warp, lane, barrier) - mbarriers_.data());
  const uint32_t offset = shared_offset(warp, lane, shared, 16, "copies to");
  shared_offset(warp, lane, shared + bytes - 16, 16, "copies to");
  for (uint32_t at = 0; at < bytes; at += 16) {
    const std::string wrong = global_->read(thread, global + at, 16, false);
    if (!wrong.empty()) fail(warp, lane, "cp.async.bulk reads global memory: " + wrong);
    if (!shared_.idle(offset + at, 16))
      fail(warp, lane, "cp.async.bulk to where a copy is under way, byte " + std::to_string(offset + at));
    const std::string race = shared_.record_write(clocks_, warp.index, thread, offset + at, 16, false);
    if (!race.empty())
      fail(warp, lane, "cp.async.bulk to shared memory at byte " + std::to_string(offset + at) + " " + race);
  }
  std::memset(shared_.data(offset), 0xff, bytes);
  shared_.set_state(offset, bytes, ByteState::in_flight);
  idle_waits_ = 0;
  bulk_copies_.push_back({offset, bytes, reinterpret_cast<const unsigned char*>(global), index, phase});
}

// Each wait that fails lets one copy land: without a seed the newest, else any.
bool Block::try_wait(Warp& warp, int lane, uint64_t address, uint32_t parity) {
  Mbarrier& barrier = mbarrier_at(warp, lane, address);
  const auto is_complete = [&] { return (barrier.phase & 1) != parity; };
  if (!is_complete() && !bulk_copies_.empty()) {
    const size_t count = bulk_copies_.size();
    const size_t chosen = grid_->seed == 0 ? count - 1 : dice_.below(static_cast<uint32_t>(count));
    const BulkCopy copy = bulk_copies_[chosen];
    bulk_copies_.erase(bulk_copies_.begin() + static_cast<int64_t>(chosen));
    std::memcpy(shared_.data(copy.offset), copy.from, copy.bytes);
    shared_.set_state(copy.offset, copy.bytes, ByteState::written);
    shared_.forget_writers(copy.offset, copy.bytes);
    Mbarrier& its = mbarriers_[copy.barrier];
    if (its.phase != copy.phase) fail(warp, lane, "a bulk copy that ends after its phase");
    its.bytes -= copy.bytes;
    if (its.pending == 0 && its.bytes < 0) fail(warp, lane, "bulk copies of more bytes than their phase expects");
    complete_if_due(&its);
    idle_waits_ = 0;
  }
  if (is_complete()) return true;
  if (++idle_waits_ > kMostIdleWaits) fail(warp, lane, "a phase of an mbarrier that never completes");
  return false;
}

}  // namespace diffqkv::ptx
