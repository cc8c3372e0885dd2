#include "emulation/machine.h"

#include <algorithm>
#include <cstring>

#include "emulation/memory.h"

namespace diffqkv::emulated {

constinit thread_local Machine* machine = nullptr;

namespace {

std::string text_of(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

// Texts that stand in one object file are mostly one and the same.
bool differ(const char* a, const char* b) { return a != b && std::strcmp(a, b) != 0; }

}  // namespace

void Machine::entry() {
  enter_context();
  (*machine->body_)();
  machine->next(true);
}

// Gives the processor to another fiber. `ended`: this one never runs again.
void Machine::next(bool ended) {
  Fiber& from = current();
  if (ended) {
    from.done = true;
    Warp& warp = warp_of(running_);
    warp.done |= 1u << (running_ & 31);
    ++num_done_;
    if (traffic_ && warp.done == ~0u) traffic_->flush(running_ / 32);
  }
  const int to = num_done_ == num_fibers_ ? -1 : pick();
  if (to < 0) {
    if (num_done_ < num_fibers_ && fault_.empty()) fault_ = deadlock();
    switch_context(&from.context, &main_);
    return;
  }
  running_ = to;
  warp_of(to).ready &= ~(1u << (to & 31));
  current_thread = &fibers_[to].thread;
  if (&fibers_[to] != &from) switch_context(&from.context, &fibers_[to].context);
}

int Machine::pick_warp() {
  const int own = running_ / 32;
  if (seed_ == 0) {
    for (int i = 0; i < num_warps_; ++i) {
      const int warp = own + i < num_warps_ ? own + i : own + i - num_warps_;
      if (warps_[warp].ready) return warp;
    }
    return -1;
  }
  // Four ways to be unfair: strict priorities, chance, priorities that change now and then, staying with one.
  const uint64_t manner = seed_ % 4;
  if (manner == 3 && warps_[own].ready && dice_.below(64)) return own;
  if (manner == 2 && dice_.below(256) == 0) {
    for (int i = num_warps_ - 1; i > 0; --i) std::swap(order_[i], order_[dice_.below(i + 1)]);
  }
  if (manner == 1 || manner == 3) {
    const int first = static_cast<int>(dice_.below(num_warps_));
    for (int i = 0; i < num_warps_; ++i) {
      const int warp = order_[(first + i) % num_warps_];
      if (warps_[warp].ready) return warp;
    }
    return -1;
  }
  for (const int warp : order_)
    if (warps_[warp].ready) return warp;
  return -1;
}

int Machine::pick() {
  const int warp = pick_warp();
  if (warp < 0) return -1;
  const uint32_t ready = warps_[warp].ready;
  if (seed_ == 0) return warp * 32 + __builtin_ctz(ready);
  const uint32_t turn = dice_.below(32), turned = ready >> turn | (turn ? ready << (32 - turn) : 0);
  return warp * 32 + static_cast<int>((__builtin_ctz(turned) + turn) & 31);
}

std::string Machine::deadlock() {
  std::string text = "not all threads arrive:";
  int shown = 0;
  for (int i = 0; i < num_fibers_; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.done) continue;
    // One thread for each place that threads stand at.
    bool seen = false;
    for (int j = 0; j < i && !seen; ++j)
      seen = !fibers_[j].done && fibers_[j].site.line == fiber.site.line && fibers_[j].site.file == fiber.site.file;
    if (seen || shown++ >= 4) continue;
    text += " thread " + std::to_string(i) + " waits at " + fiber.waits_for + " (" + text_of(fiber.site) + ");";
  }
  return text + " " + std::to_string(num_done_) + " of " + std::to_string(num_fibers_) + " threads have ended";
}

void Machine::stop(const std::string& message, Site site) {
  if (fault_.empty())
    fault_ = message + " (" + text_of(site) + ", thread " + std::to_string(current().thread.thread) + ")";
  switch_context(&current().context, &main_);
  __builtin_unreachable();
}

void Machine::collective(const char* name, void* lane, void (*perform)(void* const*), Site site) {
  Warp& warp = warp_of(running_);
  const int index = running_ & 31;
  Fiber& fiber = current();
  fiber.waits_for = name, fiber.site = site;
  if (warp.arrived == 0) {
    warp.name = name, warp.site = site;
  } else if (warp.site.line != site.line || differ(warp.name, name) || differ(warp.site.file, site.file)) {
    stop(std::string("lanes of one warp stand at different operations: ") + name + " here, " + warp.name + " at " +
             text_of(warp.site),
         site);
  }
  warp.lanes[index] = lane;
  warp.arrived |= 1u << index;
  if (warp.arrived != ~0u) return next(false);
  perform(warp.lanes.data());
  if (traffic_) traffic_->flush(running_ / 32);
  warp.arrived = 0;
  warp.ready |= ~(1u << index);
}

void Machine::barrier(int index, int threads, Site site) {
  if (index < 0 || index > 15) stop("there is no barrier " + std::to_string(index), site);
  const bool whole = threads == 0;
  const int expected = whole ? num_fibers_ : threads;
  Barrier& barrier = barriers_[static_cast<size_t>(index)];
  current().waits_for = "a barrier", current().site = site;
  if (expected % 32 != 0 || expected > num_fibers_)
    stop("a barrier of " + std::to_string(expected) + " threads in a block of " + std::to_string(num_fibers_), site);
  if (barrier.waiting.empty()) {
    barrier.expected = expected, barrier.site = site;
  } else if (barrier.expected != expected ||
             (whole && (barrier.site.line != site.line || differ(barrier.site.file, site.file)))) {
    stop("threads of one block stand at different barriers: here and at " + text_of(barrier.site), site);
  }
  if (static_cast<int>(barrier.waiting.size()) + 1 < expected) {
    barrier.waiting.push_back(running_);
    return next(false);
  }
  for (const int fiber : barrier.waiting) warp_of(fiber).ready |= 1u << (fiber & 31);
  barrier.waiting.clear();
  if (traffic_) {
    for (int warp = 0; warp < num_warps_; ++warp) traffic_->flush(warp);
  }
  // Whoever came last need not be the first to go on.
  if (seed_ != 0) {
    warp_of(running_).ready |= 1u << (running_ & 31);
    next(false);
  }
}

void Machine::shared_range(const void* p, size_t bytes, const char* what, Site site, size_t* offset) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p), base = reinterpret_cast<uintptr_t>(shared_.get());
  if (at < base || at + bytes > base + shared_bytes_) {
    stop(std::string(what) + " of " + std::to_string(bytes) + " bytes at byte " +
             std::to_string(static_cast<int64_t>(at - base)) + " of " + std::to_string(shared_bytes_) +
             " bytes of shared memory",
         site);
  }
  *offset = at - base;
}

void Machine::global_range(const void* p, size_t bytes, const char* what, Site site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  const Range range = find_memory(at, at + bytes);
  if (range.end == 0) {
    const std::string where = describe_address(at);
    stop(std::string(what) + " of " + std::to_string(bytes) + " bytes " + where, site);
  }
  if (traffic_ && (what[0] == 'r')) traffic_->read_from(range.begin, bytes);
}

void Machine::log(const void* p, size_t bytes, Access access, Site site) {
  if (traffic_) traffic_->add(running_, {reinterpret_cast<uintptr_t>(p), static_cast<uint32_t>(bytes), access, site});
}

void Machine::access(const void* p, size_t bytes, Access access, Site site) {
  static constexpr const char* kWhat[] = {"read of global memory", "write to global memory", "atomic on global memory",
                                          "read of shared memory", "write to shared memory", "atomic on shared memory"};
  const char* what = kWhat[static_cast<int>(access)];
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    stop(std::string(what) + " of " + std::to_string(bytes) + " bytes, not aligned to its size", site);
  if (access >= Access::shared_load) {
    size_t offset;
    shared_range(p, bytes, what, site, &offset);
    if (access == Access::shared_store) {
      std::memset(written_.data() + offset, 1, bytes);
    } else if (std::memchr(written_.data() + offset, 0, bytes)) {
      stop("read of shared memory that nobody wrote, at byte " + std::to_string(offset), site);
    }
  } else {
    global_range(p, bytes, what, site);
  }
  log(p, bytes, access, site);
}

void Machine::copy(void* shared, const void* global, int valid_bytes, Site site) {
  if (valid_bytes < 0 || valid_bytes > 16) stop("cp.async of " + std::to_string(valid_bytes) + " bytes", site);
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    stop("cp.async of 16 bytes, not aligned to 16", site);
  size_t offset;
  shared_range(shared, 16, "cp.async into shared memory", site, &offset);
  if (valid_bytes > 0) {
    global_range(global, static_cast<size_t>(valid_bytes), "read by cp.async", site);
    log(global, static_cast<size_t>(valid_bytes), Access::global_load, site);
  }
  log(shared, 16, Access::shared_store, site);
  // What was there is gone from now on, and what will be there is not there yet.
  std::memset(written_.data() + offset, 0, 16);
  std::memset(shared, 0xff, 16);
  current().open.push_back({shared, global, valid_bytes, site});
}

void Machine::wait(int newest) {
  Fiber& fiber = current();
  const size_t keep = static_cast<size_t>(newest);
  while (fiber.groups.size() > keep) {
    for (const Copy& copy : fiber.groups.front()) {
      unsigned char bytes[16] = {};
      if (copy.valid_bytes > 0) std::memcpy(bytes, copy.global, static_cast<size_t>(copy.valid_bytes));
      std::memcpy(copy.shared, bytes, 16);
      std::memset(written_.data() + (static_cast<unsigned char*>(copy.shared) - shared_.get()), 1, 16);
    }
    fiber.groups.erase(fiber.groups.begin());
  }
}

std::string Machine::run_block(const Grid& grid, const std::function<void()>& body, const std::array<int, 3>& block,
                               uint64_t seed, Traffic* traffic) {
  grid_ = &grid, body_ = &body, traffic_ = traffic, seed_ = seed;
  num_fibers_ = static_cast<int>(grid.threads), num_warps_ = num_fibers_ / 32, num_done_ = 0;
  stacks_.reserve(grid.threads);
  if (fibers_.size() < grid.threads) fibers_.resize(grid.threads);
  if (warps_.size() < static_cast<size_t>(num_warps_)) warps_.resize(static_cast<size_t>(num_warps_));
  for (int i = 0; i < num_warps_; ++i) warps_[i] = Warp{}, warps_[i].ready = ~0u;
  for (Barrier& barrier : barriers_) barrier.waiting.clear();
  if (grid.shared_bytes > shared_capacity_) {
    shared_storage_ = std::make_unique<unsigned char[]>(grid.shared_bytes + 128);
    shared_capacity_ = grid.shared_bytes;
    const uintptr_t at = reinterpret_cast<uintptr_t>(shared_storage_.get());
    shared_.p = shared_storage_.get() + ((at + 127) / 128 * 128 - at);
  }
  shared_bytes_ = grid.shared_bytes;
  written_.assign(shared_bytes_, 0);
  if (shared_bytes_) std::memset(shared_.get(), 0xff, shared_bytes_);
  fault_.clear();
  for (int i = 0; i < num_fibers_; ++i) {
    Fiber& fiber = fibers_[i];
    fiber.thread.thread = i, fiber.thread.num_threads = num_fibers_;
    for (int axis = 0; axis < 3; ++axis) {
      fiber.thread.block[axis] = block[static_cast<size_t>(axis)];
      fiber.thread.grid[axis] = static_cast<int>(grid.grid[axis]);
    }
    fiber.done = false, fiber.waits_for = "", fiber.site = {"", 0};
    fiber.groups.clear(), fiber.open.clear();
    make_context(&fiber.context, stacks_.bottom(static_cast<size_t>(i)), entry);
  }
  dice_.seed(seed * 1000003 + static_cast<uint64_t>(block[0]) * 8191 + static_cast<uint64_t>(block[1]) * 131 +
             static_cast<uint64_t>(block[2]));
  order_.resize(static_cast<size_t>(num_warps_));
  for (int i = 0; i < num_warps_; ++i) order_[i] = i;
  if (seed != 0) {
    for (int i = num_warps_ - 1; i > 0; --i) std::swap(order_[i], order_[dice_.below(i + 1)]);
  }
  machine = this;
  running_ = 0;
  running_ = pick();
  warp_of(running_).ready &= ~(1u << (running_ & 31));
  current_thread = &fibers_[running_].thread;
  switch_context(&main_, &fibers_[running_].context);
  machine = nullptr;
  current_thread = nullptr;
  if (fault_.empty()) return "";
  return std::string(grid.name) + ": " + fault_ + " in block (" + std::to_string(block[0]) + ", " +
         std::to_string(block[1]) + ", " + std::to_string(block[2]) + ")";
}

}  // namespace diffqkv::emulated
