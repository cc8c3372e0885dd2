// Runs kernels that were compiled as C++: each thread of a block is a fiber, one block at a time per thread of the
// system. A fiber runs until it must wait for others, at a warp-wide operation or a barrier. What hardware leaves open is
// decided against the kernel:
//
// - The order of fibers and blocks is drawn from a seed. One warp runs as far ahead as it can, another lags behind, and
//   each block is the last to come in some seed.
// - Reading a byte of shared memory that nobody wrote is a fault.
// - A race is a fault, whatever the values are: two accesses of the same bytes, one of them a write, that nothing orders.
//   Atomics do not race with each other. What orders accesses:
//   - in a block: the program order of a thread, __syncwarp, bar_sync and __syncthreads. Shuffles, votes, mma and ldmatrix
//     order nothing. ldmatrix reads each row on behalf of all lanes (clock.h, shared_memory.h);
//   - between blocks: a fence of a thread, then an atomic of the same thread; an atomic of another thread on that
//     address, later; then a fence of that other thread. The first fence covers what happened before it in its block, and
//     what follows the second by a barrier sees it (launch.h, global_memory.h).
// - The bytes that a cp.async writes belong to it from its issue to the wait of its thread.
// - Bulk copies land late and in any order, while threads wait for a phase of an mbarrier. Their bytes may be read by
//   threads that saw the phase of the copy complete, and by those that a barrier orders after one of them. What threads
//   have written and a bulk copy writes over takes a fence_proxy_async of the writer in between. A phase that never
//   completes, a copy that ends outside of its phase, and one that nobody waits for are faults (bulk_copies.h).
// - A launch that writes what it reads by ld_global_nc, in whatever order, is a fault.
// - A launch that need not wait for the launch before it (programmatic dependent launch) sees what that has written only
//   after wait_for_previous. Until then a thread may read other memory and write none; and no thread ends without it.
// - A warp-wide operation that not all lanes reach, a barrier that not all threads reach, and an access outside of what
//   was allocated, or not aligned, are faults.
//
// A fault names kernel, block, thread and line, and a race also the other thread and line. A write to global memory that
// should have waited for a read is found only in the seeds in which the write comes first: reads are not on record there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace diffqkv::emulated {

struct Site {
  const char* file;
  int line;
};

// ---- What device code asks for.

struct Thread {
  int thread = 0, num_threads = 0;
  int block[3] = {}, grid[3] = {};
};
extern constinit thread_local Thread* current_thread;
inline Thread& self() { return *current_thread; }

unsigned char* shared_base();

// All 32 lanes of the warp call it with the same `name` from the same line; `perform` is called once, with the lanes'
// pointers, when the last has come.
void warp_collective(const char* name, void* lane, void (*perform)(void* const* lanes), Site site);

// The warp's barrier. Other warp-wide operations order no accesses to memory.
void warp_barrier(Site site);
// `threads` threads, whole warps, wait for each other; barrier 0 with 0 threads is that of the whole block.
void block_barrier(int barrier, int threads, Site site);

enum class Access { global_load, global_store, global_atomic, shared_load, shared_store, shared_atomic };
// A plain load or store of a power of two of bytes, at most 16.
void check_access(const void* p, size_t bytes, Access access, Site site);
// 16 bytes of global memory that nobody may write in this launch.
void check_streaming_load(const void* p, Site site);
// 16 bytes of shared memory that one lane names and all lanes of the warp read.
void check_warp_load(const void* p, Site site);
// The same row, once all lanes have come.
void check_warp_row(const void* p, Site site);

struct AtomicUpdate {
  enum class Op { add, maximum, compare_exchange } op;
  uint32_t value;
  uint32_t expected = 0;  // of compare_exchange, which changes nothing else
};
// On shared memory if `p` is in that of the block, else on global memory. Returns what was there before.
uint32_t atomic(uint32_t* p, const AtomicUpdate& update, Site site);
// Of device scope.
void fence();
// Until all that the launch before has written is there. Nothing where the launch has waited for that anyway.
void wait_for_previous();
// The next launch may begin. A thread that has not waited for the launch before would let it begin too early.
void start_next(Site site);

void async_copy(void* shared, const void* global, int valid_bytes, Site site);
void async_commit();
void async_wait(int newest);

// Barriers of bulk copies (mbarrier) and their copies, cuda/device/bulk.h.
bool gpu_has_bulk_copies();
void init_mbarrier(uint64_t* barrier, int arrivals, Site site);
void arrive_expecting(uint64_t* barrier, int bytes, Site site);
bool try_wait(uint64_t* barrier, int parity, Site site);
void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier, Site site);
void proxy_fence();

// Ends the kernel: a launch that fails, with this message, the kernel's name, block and thread.
[[noreturn]] void fault(const std::string& message, Site site);

// ---- What the host side asks for.

// Device memory: what global accesses must lie in. From any thread.
void add_memory(const void* p, size_t bytes);
void remove_memory(const void* p);

// Of one kernel or several. Sectors are 32 bytes of global memory, per warp-wide access. A shared access of a warp that
// takes n passes over the banks where its bytes alone would take m counts n - m conflicts.
struct Counters {
  uint64_t launches = 0, mma = 0;
  uint64_t read_bytes = 0, written_bytes = 0, atomics = 0;  // global memory
  uint64_t read_sectors = 0, written_sectors = 0;
  uint64_t distinct_read_bytes = 0;  // of the sectors that a launch reads, each once: what memory sends
  uint64_t shared_accesses = 0, bank_conflicts = 0;
  std::map<std::string, uint64_t> conflicts_by_line;         // "file:line"
  std::map<const void*, uint64_t> read_bytes_by_allocation;  // by its first byte
};

struct Settings {
  uint64_t seed = 0;             // of the order of fibers; 0: in order, one warp after the other
  Counters* counters = nullptr;  // per kernel's name in `counters_by_kernel`, if that is what is wanted
  std::map<std::string, Counters>* counters_by_kernel = nullptr;
};
// Read at each launch. Counting, and a seed, run blocks one after the other on one thread.
Settings& settings();

struct Grid {
  const char* name;
  unsigned grid[3];
  unsigned threads;
  size_t shared_bytes;
  bool dependent = false;  // it begins while the launch before it may still run
};
// Empty, or what went wrong.
std::string run_grid(const Grid& grid, const std::function<void()>& body);

struct KernelParameter {
  const void* data;
  size_t size, alignment;
};
// A launch as the emulated runtime hands it to what runs kernels.
struct KernelLaunch {
  const char* name;      // a string literal
  const void* function;  // the kernel's address
  std::array<unsigned, 3> grid;
  unsigned threads;
  size_t shared_bytes;
  bool dependent = false;                   // as Grid::dependent
  std::vector<KernelParameter> parameters;  // in order; `body` owns the values
  std::function<void()> body;               // calls the kernel, as one thread of it
};
// Runs the kernels that streams come to. Returns nothing, or what went wrong. If empty, run_grid runs them. To be replaced
// only while no stream runs.
using Executor = std::function<std::string(const KernelLaunch&)>;
Executor& executor();

}  // namespace diffqkv::emulated
