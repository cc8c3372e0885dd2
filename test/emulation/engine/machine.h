// One block of a grid at work: its fibers, its shared memory, and who runs next.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "engine/bulk_copies.h"
#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/fiber.h"
#include "engine/global_memory.h"
#include "engine/shared_memory.h"
#include "engine/sites.h"
#include "engine/traffic.h"

namespace diffqkv::emulated {

// xorshift64*: which fiber goes next needs no better.
class Dice {
 public:
  void seed(uint64_t seed) { state_ = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du; }
  uint32_t below(uint32_t limit) {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du >> 33) % limit);
  }

 private:
  uint64_t state_ = 1;
};

// A cp.async that has not ended.
struct Copy {
  size_t offset;  // in shared memory
  const void* global;
  Shadow* shadow;  // of the memory that is read
  int valid_bytes;
  uint16_t site;
  Time issued;
};

struct Fiber {
  Thread thread;
  StackContext context;
  bool done = false;
  bool has_waited = true;      // for the launch before, if this one is dependent
  const char* waits_for = "";  // what it stands at, for messages
  Site site = {"", 0};
  std::vector<Copy> copies;         // oldest first; those before `ended` have ended
  std::vector<size_t> group_sizes;  // of the closed groups, oldest first
  size_t ended = 0, closed = 0;     // copies that have, and that are in a closed group
  size_t num_ended_groups = 0;
};

struct Warp {
  uint32_t ready = 0;    // lanes that can run
  uint32_t arrived = 0;  // lanes that wait at the collective
  uint32_t done = 0;
  const char* name = nullptr;
  Site site = {"", 0};
  std::array<void*, 32> lanes{};
};

struct Barrier {
  int expected = 0;
  Site site = {"", 0};
  std::vector<int> waiting;
};

class Machine {
 public:
  // `block`: its number in the grid.
  std::string run_block(Launch* launch, const std::function<void()>& body, int64_t block, uint64_t seed,
                        Traffic* traffic);

  void collective(const char* name, void* lane, void (*perform)(void* const*), Site site);
  void warp_barrier(Site site);
  void barrier(int index, int threads, Site site);
  void access(const void* p, size_t bytes, Access access, Site site);
  void streaming_load(const void* p, Site site);
  void warp_load(const void* p, Site site);
  void warp_row(const void* p, Site site);
  uint32_t atomic(uint32_t* p, const AtomicUpdate& update, Site site);
  void fence() { global_.fence(running_); }
  void wait_for_previous() { current().has_waited = true; }
  void start_next(Site site);
  void copy(void* shared, const void* global, int valid_bytes, Site site);
  void commit();
  void wait(int newest);
  void init_mbarrier(uint64_t* barrier, int arrivals, Site site);
  void arrive_expecting(uint64_t* barrier, int bytes, Site site);
  bool try_wait(uint64_t* barrier, int parity, Site site);
  void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier, Site site);
  void proxy_fence() { ++bulk_.fences[static_cast<size_t>(running_)]; }
  [[noreturn]] void stop(const std::string& message, Site site);
  unsigned char* shared() { return shared_.data(); }
  Traffic* traffic() { return traffic_; }

 private:
  static void entry();
  Fiber& current() { return fibers_[running_]; }
  Warp& warp_of(int fiber) { return warps_[fiber / 32]; }
  void next(bool ended);
  int pick();
  int pick_warp();
  SharedAccess shared_access(uint16_t site) { return {clock_.time(running_ / 32), site, running_ / 32, running_ & 31}; }
  size_t shared_offset(const void* p, size_t bytes, const char* what, Site site);
  const Range& global_range(const void* p, size_t bytes, const char* what, Site site);
  // Of a thread that has not waited for the launch before.
  void check_early(const Range& range, uintptr_t p, size_t bytes, Access access, const char* what, Site site);
  void log(const void* p, size_t bytes, Access access, Site site);
  [[noreturn]] void stop_access(const char* what, size_t bytes, const std::string& conflict, const void* p, Site site);
  std::string deadlock();
  Mbarrier& mbarrier_at(uint64_t* barrier, const char* what, Site site);
  void complete_if_due(Mbarrier* barrier);
  void land(size_t index, Site site);

  const std::function<void()>* body_ = nullptr;
  Stacks stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<int> order_;  // warps, the one that runs ahead first
  std::array<Barrier, 16> barriers_;
  StackContext main_;
  bool polling_ = false;  // the fiber that gives way to others has nothing to do before they go on
  int running_ = 0, num_done_ = 0, num_fibers_ = 0, num_warps_ = 0;
  uint64_t seed_ = 0;
  Dice dice_;
  BlockClock clock_;
  BulkCopies bulk_;
  SharedMemory shared_{clock_, bulk_};
  GlobalMemory global_{clock_};
  RecentMemory recent_;
  SiteIds sites_;
  std::string fault_;
  Traffic* traffic_ = nullptr;
};

// That of the block which this thread of the system runs.
extern constinit thread_local Machine* machine;

}  // namespace diffqkv::emulated
