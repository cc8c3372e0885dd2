// A block at work: its warps, its memory, and which thread runs next.
//
// The lanes of a warp that stand at the same instruction run it together, as one loop over rows. Divergence splits them;
// the lanes that are furthest behind in the program run first, until they meet the others. With a seed a warp is also
// cut into groups of lanes that only meet at warp-wide operations, warps are chosen by chance, and a thread may lose its
// turn at any access to memory.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "clocks.h"
#include "program.h"

namespace diffqkv::ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

// xorshift64*.
class Dice {
 public:
  void seed(uint64_t seed) { state_ = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du; }
  uint32_t below(uint32_t limit) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du >> 33) % limit);
  }

 private:
  uint64_t state_ = 1;
};

class Block;
class GlobalMemory;

struct Warp {
  uint32_t* rows = nullptr;
  uint32_t* predicates = nullptr;
  Block* block = nullptr;
  int index = 0;
  std::array<uint32_t, kLanes> pc{};
  std::array<uint32_t, 8> groups{};  // the lanes of each group
  int num_groups = 1;
  uint32_t ready = 0, done = 0;
  uint32_t waiting = 0;     // lanes that have arrived at a collective operation
  uint32_t at_barrier = 0;  // and at a barrier
  uint32_t waited = 0;      // lanes that have waited for the kernel before

  int first_thread() const { return index * kLanes; }
};

// A grid that runs.
struct Grid {
  Entry* entry = nullptr;
  std::array<unsigned, 3> size = {1, 1, 1};
  unsigned threads = kLanes;
  size_t shared_bytes = 0;
  std::vector<unsigned char> parameters;  // as the entry's .param space
  uint64_t seed = 0;                      // 0: lanes together, warps in order
};

// A copy of cp.async that has not landed.
struct AsyncCopy {
  uint32_t shared_offset;
  const unsigned char* from;
  uint8_t bytes, valid_bytes;
};
// A thread's copies, oldest first; a group ends before each of `group_ends`.
struct AsyncCopies {
  std::vector<AsyncCopy> copies;
  std::vector<size_t> group_ends;
};

struct Mbarrier {
  uint32_t offset;
  uint32_t arrivals, pending;  // of a phase; of this one
  int64_t bytes;               // that are still to come
  uint32_t phase;
};
// A bulk copy that has not landed.
struct BulkCopy {
  uint32_t offset, bytes;
  const unsigned char* from;
  size_t barrier;  // index
  uint32_t phase;
};

class Block {
 public:
  // Runs a block. Throws Fault, with the place.
  void run(const Grid& grid, GlobalMemory& global, const std::array<unsigned, 3>& index, uint32_t linear_index);
  // Of all blocks so far, for each lane.
  uint64_t instructions() const { return instructions_; }

  // ---- What instructions need.
  [[noreturn]] void fail(const Warp& warp, int lane, const std::string& message);
  // The bytes at an address, checked: state space, alignment to `alignment`, bounds, that they were written.
  const unsigned char* read(Warp& warp, int lane, Space space, uint64_t address, uint32_t bytes, bool read_only,
                            uint32_t used);
  void write(Warp& warp, int lane, Space space, uint64_t address, uint32_t bytes, const unsigned char* value);
  unsigned char* update(Warp& warp, int lane, Space space, uint64_t address, uint32_t bytes);
  // Shared memory that a whole warp reads, the row's address being given by a lane.
  const unsigned char* read_row(Warp& warp, int lane, uint64_t address, uint32_t bytes);
  void begin_copy(Warp& warp, int lane, uint64_t shared, uint64_t global, uint32_t bytes, uint32_t valid_bytes);
  void commit_copies(Warp& warp, int lane);
  // All but the `newest` groups land; with -1 also what is in no group yet.
  void land_copies(Warp& warp, int lane, int newest);
  // bulk_copies.cc
  void begin_mbarrier(Warp& warp, int lane, uint64_t address, uint32_t arrivals);
  void arrive_expecting(Warp& warp, int lane, uint64_t address, uint32_t bytes);
  bool try_wait(Warp& warp, int lane, uint64_t address, uint32_t parity);
  void begin_bulk_copy(Warp& warp, int lane, uint64_t shared, uint64_t global, uint32_t bytes, uint64_t barrier);
  void fence(Warp& warp, uint32_t lanes);
  void check_has_waited(Warp& warp, uint32_t lanes, const char* what);
  void synchronize_warp(Warp& warp, uint32_t lanes);

  const Program& program() const { return *program_; }
  const MemoryForm& form(const Instruction& in) const { return program_->forms[in.form]; }
  bool descending() { return grid_->seed != 0 && dice_.below(2) == 0; }

 private:
  struct Barrier {
    uint32_t expected = 0, arrived = 0;
    int line = 0;
    std::vector<int> warps;
  };

  void reset(const std::array<unsigned, 3>& index);
  bool choose(int* warp, uint32_t* lanes);
  void run_lanes(Warp& warp, uint32_t lanes);
  // Returns whether the lanes go on at once.
  bool collect(Warp& warp, const Instruction& in, uint32_t lanes, uint32_t pc);
  bool arrive(Warp& warp, const Instruction& in, uint32_t lanes, uint32_t pc);
  std::string deadlock() const;
  uint32_t shared_offset(Warp& warp, int lane, uint64_t address, uint32_t bytes, const char* what);
  unsigned char* local(Warp& warp, int lane, uint64_t address, uint32_t bytes, bool writes);
  Space resolve(Space space, uint64_t* address) const;
  Mbarrier& mbarrier_at(Warp& warp, int lane, uint64_t address);
  void complete_if_due(Mbarrier* barrier);

  const Grid* grid_ = nullptr;
  const Program* program_ = nullptr;
  GlobalMemory* global_ = nullptr;
  uint32_t linear_index_ = 0;
  std::array<unsigned, 3> index_{};
  std::vector<Warp> warps_;
  std::vector<int> order_;  // of warps, for strict priorities
  std::vector<uint32_t> rows_, predicates_;
  const Program* rows_program_ = nullptr;  // whose constants the rows hold
  std::array<Barrier, 16> barriers_;
  SharedMemory shared_;
  std::vector<unsigned char> local_, local_written_;
  std::vector<AsyncCopies> copies_;
  std::vector<Mbarrier> mbarriers_;
  std::vector<BulkCopy> bulk_copies_;
  uint32_t idle_waits_ = 0;  // for phases, one after the other
  Clocks clocks_;
  Dice dice_;
  int running_ = 0;  // warp
  uint32_t running_pc_ = 0;
  uint64_t instructions_ = 0;
  uint64_t steps_ = 0;  // of this block
};

}  // namespace diffqkv::ptx
