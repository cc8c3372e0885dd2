#include "engine/engine.h"

#include <atomic>
#include <mutex>

#include "engine/machine.h"
#include "engine/runtime.h"

namespace diffqkv::emulated {

constinit thread_local Thread* current_thread = nullptr;

unsigned char* shared_base() { return machine->shared(); }
void warp_collective(const char* name, void* lane, void (*perform)(void* const*), Site site) {
  machine->collective(name, lane, perform, site);
}
void block_barrier(int barrier, int threads, Site site) { machine->barrier(barrier, threads, site); }
void warp_barrier(Site site) { machine->warp_barrier(site); }
void check_access(const void* p, size_t bytes, Access access, Site site) { machine->access(p, bytes, access, site); }
void check_streaming_load(const void* p, Site site) { machine->streaming_load(p, site); }
void check_warp_load(const void* p, Site site) { machine->warp_load(p, site); }
void check_warp_row(const void* p, Site site) { machine->warp_row(p, site); }
uint32_t atomic(uint32_t* p, const AtomicUpdate& update, Site site) { return machine->atomic(p, update, site); }
void fence() { machine->fence(); }
void wait_for_previous() { machine->wait_for_previous(); }
void start_next(Site site) { machine->start_next(site); }
void async_copy(void* shared, const void* global, int valid_bytes, Site site) {
  machine->copy(shared, global, valid_bytes, site);
}
void async_commit() { machine->commit(); }
void async_wait(int newest) { machine->wait(newest); }
bool gpu_has_bulk_copies() { return gpu_shape().major >= 9; }
void init_mbarrier(uint64_t* barrier, int arrivals, Site site) { machine->init_mbarrier(barrier, arrivals, site); }
void arrive_expecting(uint64_t* barrier, int bytes, Site site) { machine->arrive_expecting(barrier, bytes, site); }
bool try_wait(uint64_t* barrier, int parity, Site site) { return machine->try_wait(barrier, parity, site); }
void bulk_copy(void* shared, const void* global, int bytes, uint64_t* barrier, Site site) {
  machine->bulk_copy(shared, global, bytes, barrier, site);
}
void proxy_fence() { machine->proxy_fence(); }
void fault(const std::string& message, Site site) { machine->stop(message, site); }
void count_mma() {
  if (machine->traffic()) machine->traffic()->add_mma();
}

Settings& settings() {
  static Settings settings;
  return settings;
}

Executor& executor() {
  static Executor executor;
  return executor;
}

std::string run_grid(const Grid& grid, const std::function<void()>& body) {
  const Settings& s = settings();
  const int64_t blocks = int64_t{1} * grid.grid[0] * grid.grid[1] * grid.grid[2];
  const bool counting = s.counters || s.counters_by_kernel;
  Launch launch(grid);
  static thread_local std::unique_ptr<Machine> own;
  if (counting || s.seed != 0 || blocks == 1) {
    if (!own) own = std::make_unique<Machine>();
    std::unique_ptr<Traffic> traffic;
    if (counting) traffic = std::make_unique<Traffic>(static_cast<int>(grid.threads));
    // With a seed, blocks come in an order of chance too.
    std::vector<int64_t> order(static_cast<size_t>(blocks));
    for (int64_t i = 0; i < blocks; ++i) order[static_cast<size_t>(i)] = i;
    if (s.seed != 0) {
      Dice dice;
      dice.seed(s.seed);
      for (int64_t i = blocks - 1; i > 0; --i)
        std::swap(order[static_cast<size_t>(i)], order[dice.below(static_cast<uint32_t>(i + 1))]);
    }
    for (const int64_t block : order) {
      std::string fault = own->run_block(&launch, body, block, s.seed, traffic.get());
      if (!fault.empty()) return fault;
    }
    if (traffic) {
      traffic->counters().launches = 1;
      if (s.counters) add_counters(s.counters, traffic->counters());
      if (s.counters_by_kernel) add_counters(&(*s.counters_by_kernel)[grid.name], traffic->counters());
    }
    return "";
  }
  std::string fault;
  std::atomic<bool> failed{false};
  std::mutex mutex;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t block = 0; block < blocks; ++block) {
    if (failed.load(std::memory_order_relaxed)) continue;
    if (!own) own = std::make_unique<Machine>();
    std::string found = own->run_block(&launch, body, block, 0, nullptr);
    if (found.empty()) continue;
    std::lock_guard lock(mutex);
    if (!failed.exchange(true)) fault = found;
  }
  return fault;
}

}  // namespace diffqkv::emulated
