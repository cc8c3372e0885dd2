// One block of a grid at work: its fibers, its shared memory, and who runs next.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "emulation/engine.h"
#include "emulation/fiber.h"
#include "emulation/traffic.h"

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

struct Copy {
  void* shared;
  const void* global;
  int valid_bytes;
  Site site;
};

struct Fiber {
  Thread thread;
  StackContext context;
  bool done = false;
  const char* waits_for = "";  // what it stands at, for messages
  Site site = {"", 0};
  std::vector<std::vector<Copy>> groups;  // closed, oldest first
  std::vector<Copy> open;
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
  std::string run_block(const Grid& grid, const std::function<void()>& body, const std::array<int, 3>& block,
                        uint64_t seed, Traffic* traffic);

  void collective(const char* name, void* lane, void (*perform)(void* const*), Site site);
  void barrier(int index, int threads, Site site);
  void access(const void* p, size_t bytes, Access access, Site site);
  void copy(void* shared, const void* global, int valid_bytes, Site site);
  void commit() { current().groups.push_back(std::move(current().open)), current().open.clear(); }
  void wait(int newest);
  [[noreturn]] void stop(const std::string& message, Site site);
  unsigned char* shared() { return shared_.get(); }
  Traffic* traffic() { return traffic_; }

 private:
  static void entry();
  Fiber& current() { return fibers_[running_]; }
  Warp& warp_of(int fiber) { return warps_[fiber / 32]; }
  void next(bool ended);
  int pick();
  int pick_warp();
  void shared_range(const void* p, size_t bytes, const char* what, Site site, size_t* offset);
  void global_range(const void* p, size_t bytes, const char* what, Site site);
  void log(const void* p, size_t bytes, Access access, Site site);
  std::string deadlock();

  const Grid* grid_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Stacks stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<int> order_;  // warps, the one that runs ahead first
  std::array<Barrier, 16> barriers_;
  StackContext main_;
  int running_ = 0, num_done_ = 0, num_fibers_ = 0, num_warps_ = 0;
  uint64_t seed_ = 0;
  Dice dice_;
  std::unique_ptr<unsigned char[]> shared_storage_;
  struct Unowned {
    unsigned char* p = nullptr;
    unsigned char* get() const { return p; }
  } shared_;
  std::vector<uint8_t> written_;  // of each byte of shared memory
  size_t shared_capacity_ = 0, shared_bytes_ = 0;
  std::string fault_;
  Traffic* traffic_ = nullptr;
};

// That of the block which this thread of the system runs.
extern constinit thread_local Machine* machine;

}  // namespace diffqkv::emulated
