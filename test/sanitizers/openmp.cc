// Stands in for libgomp in builds under ThreadSanitizer: what this project's parallel regions compile to, on threads, mutexes
// and condition variables that it understands. It does not see how libgomp's threads wait for each other, and so would report
// everything that one writes and another reads, or, told to pass over it, nothing at all.
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Loop {
  long next, end, step;
};

struct Team {
  void (*body)(void*);
  void* data;
  int num_threads;
  std::mutex mutex;
  std::condition_variable changed;
  int arrived = 0, barriers = 0;
  std::map<int, Loop> loops;  // by their number in the region

  void barrier() {
    // What test/tools/test-sanitized.mjs proves its sight by: without barriers there are races.
    static const bool none = std::getenv("OPENMP_WITHOUT_BARRIERS") != nullptr;
    if (none) return;
    std::unique_lock lock(mutex);
    const int barrier = barriers;
    if (++arrived == num_threads) {
      arrived = 0, ++barriers;
      changed.notify_all();
    } else {
      changed.wait(lock, [&] { return barriers != barrier; });
    }
  }
};

struct Place {
  Team* team = nullptr;
  int thread = 0, num_loops = 0;
};
thread_local Place place;
thread_local int wanted = 0;

void run(Team& team, int thread) {
  const Place before = place;
  place = {&team, thread, 0};
  team.body(team.data);
  place = before;
}

// Of one thread that begins regions: the others, which wait from region to region.
class Pool {
 public:
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      team_ = nullptr, ends_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void work(Team& team) {
    while (static_cast<int>(threads_.size()) < team.num_threads - 1)
      threads_.emplace_back(&Pool::loop, this, static_cast<int>(threads_.size()) + 1, regions_);
    {
      std::lock_guard lock(mutex_);
      team_ = &team, running_ = static_cast<int>(threads_.size()), ++regions_;
    }
    changed_.notify_all();
    run(team, 0);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void loop(int thread, int region) {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return ends_ || regions_ != region; });
      if (ends_) return;
      region = regions_;
      Team& team = *team_;
      lock.unlock();
      if (thread < team.num_threads) run(team, thread);
      lock.lock();
      if (--running_ == 0) changed_.notify_all();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Team* team_ = nullptr;
  int running_ = 0, regions_ = 0;
  bool ends_ = false;
};

bool take(long chunk, long* begin, long* end) {
  Team& team = *place.team;
  std::lock_guard lock(team.mutex);
  Loop& loop = team.loops.at(place.num_loops);
  if (loop.step > 0 ? loop.next >= loop.end : loop.next <= loop.end) return false;
  const long past = loop.next + chunk * loop.step;
  *begin = loop.next;
  *end = loop.step > 0 ? std::min(past, loop.end) : std::max(past, loop.end);
  loop.next = *end;
  return true;
}
thread_local long chunk_of_loop = 1;

}  // namespace

extern "C" {
int omp_get_max_threads() {
  static const int by_environment = std::getenv("OMP_NUM_THREADS") ? std::atoi(std::getenv("OMP_NUM_THREADS")) : 0;
  if (wanted > 0) return wanted;
  return by_environment > 0 ? by_environment : static_cast<int>(std::thread::hardware_concurrency());
}
void omp_set_num_threads(int threads) { wanted = threads; }
int omp_get_num_threads() { return place.team ? place.team->num_threads : 1; }
int omp_get_thread_num() { return place.thread; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads, unsigned) {
  thread_local Pool pool;
  Team team;
  team.body = body, team.data = data;
  team.num_threads = num_threads > 0 ? static_cast<int>(num_threads) : omp_get_max_threads();
  if (place.team != nullptr) team.num_threads = 1;  // a region within a region
  if (team.num_threads == 1) return run(team, 0);
  pool.work(team);
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* begin, long* past) {
  ++place.num_loops;
  chunk_of_loop = chunk;
  {
    std::lock_guard lock(place.team->mutex);
    place.team->loops.try_emplace(place.num_loops, Loop{start, end, step});
  }
  return take(chunk, begin, past);
}
bool GOMP_loop_nonmonotonic_dynamic_next(long* begin, long* past) { return take(chunk_of_loop, begin, past); }
void GOMP_loop_end() { place.team->barrier(); }
void GOMP_loop_end_nowait() {}
}
