#include "engine/machine.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace diffqkv::emulated {

constinit thread_local Machine* machine = nullptr;

namespace {

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
  if (ended && !from.has_waited) stop("a thread ends without waiting for the launch before", from.site);
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
  const int own = (running_ / 32 + (polling_ ? 1 : 0)) % num_warps_;
  if (polling_ && seed_ != 0) {  // whoever is first may wait for any other
    for (int i = static_cast<int>(dice_.below(static_cast<uint32_t>(num_warps_)));; i = (i + 1) % num_warps_)
      if (warps_[i].ready) return i;
  }
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
  const uint32_t first = polling_ ? static_cast<uint32_t>(running_ + 1) & 31 : 0;
  polling_ = false;
  const uint32_t turn = seed_ == 0 ? first : dice_.below(32),
                 turned = ready >> turn | (turn ? ready << (32 - turn) : 0);
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
  bulk_.idle_waits = 0;
  warp.lanes[index] = lane;
  warp.arrived |= 1u << index;
  if (warp.arrived != ~0u) return next(false);
  perform(warp.lanes.data());
  if (traffic_) traffic_->flush(running_ / 32);
  warp.arrived = 0;
  warp.ready |= ~(1u << index);
}

void Machine::warp_barrier(Site site) {
  collective(
      "__syncwarp", nullptr, [](void* const*) { machine->clock_.synchronize_warp(machine->running_ / 32); }, site);
}

void Machine::barrier(int index, int threads, Site site) {
  if (index < 0 || index > 15) stop("there is no barrier " + std::to_string(index), site);
  const bool whole = threads == 0;
  const int expected = whole ? num_fibers_ : threads;
  Barrier& barrier = barriers_[static_cast<size_t>(index)];
  current().waits_for = "a barrier", current().site = site;
  bulk_.idle_waits = 0;
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
  uint32_t warps = 1u << running_ / 32;
  for (const int fiber : barrier.waiting) warps |= 1u << fiber / 32;
  if (std::popcount(warps) * 32 != expected) stop("a barrier that not all threads of each warp reach", site);
  for (const int fiber : barrier.waiting) warp_of(fiber).ready |= 1u << (fiber & 31);
  barrier.waiting.clear();
  clock_.synchronize(warps);
  if (traffic_) {
    for (int warp = 0; warp < num_warps_; ++warp) traffic_->flush(warp);
  }
  // Whoever came last need not be the first to go on.
  if (seed_ != 0) {
    warp_of(running_).ready |= 1u << (running_ & 31);
    next(false);
  }
}

size_t Machine::shared_offset(const void* p, size_t bytes, const char* what, Site site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p), base = reinterpret_cast<uintptr_t>(shared_.data());
  if (at < base || at + bytes > base + shared_.bytes()) {
    stop(std::string(what) + " shared memory of " + std::to_string(bytes) + " bytes at byte " +
             std::to_string(static_cast<int64_t>(at - base)) + " of " + std::to_string(shared_.bytes()),
         site);
  }
  return at - base;
}

const Range& Machine::global_range(const void* p, size_t bytes, const char* what, Site site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  const Range* const range = recent_.find(at, at + bytes);
  if (!range) {
    stop(std::string(what) + " global memory of " + std::to_string(bytes) + " bytes " + describe_address(at), site);
  }
  return *range;
}

void Machine::start_next(Site site) {
  if (!current().has_waited) stop("lets the next launch begin without waiting for the launch before", site);
}

void Machine::check_early(const Range& range, uintptr_t p, size_t bytes, Access access, const char* what, Site site) {
  if (current().has_waited) return;
  if (access == Access::global_load && !global_.is_of_previous(range, p, bytes)) return;
  stop_access(what, bytes,
              access == Access::global_load ? "that the launch before has written, without waiting for it"
                                            : "without waiting for the launch before",
              reinterpret_cast<const void*>(p), site);
}

void Machine::log(const void* p, size_t bytes, Access access, Site site) {
  if (traffic_) traffic_->add(running_, {reinterpret_cast<uintptr_t>(p), static_cast<uint32_t>(bytes), access, site});
}

void Machine::stop_access(const char* what, size_t bytes, const std::string& conflict, const void* p, Site site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p), offset = at - reinterpret_cast<uintptr_t>(shared_.data());
  const bool shared = offset < shared_.bytes();
  stop(std::string(what) + (shared ? " shared memory " : " global memory ") + conflict + ", " + std::to_string(bytes) +
           " bytes " + (shared ? "at byte " + std::to_string(offset) : describe_address(at)),
       site);
}

void Machine::access(const void* p, size_t bytes, Access access, Site site) {
  static constexpr const char* kWhat[] = {"read of", "write to", "atomic on", "read of", "write to", "atomic on"};
  const char* what = kWhat[static_cast<int>(access)];
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  if ((at & (bytes - 1)) != 0) {
    stop(std::string(what) + (access < Access::shared_load ? " global" : " shared") + " memory of " +
             std::to_string(bytes) + " bytes, not aligned to its size",
         site);
  }
  if (access >= Access::shared_load) {
    const size_t offset = shared_offset(p, bytes, what, site);
    const SharedAccess by = shared_access(sites_.id(site));
    const bool fine = access == Access::shared_load    ? shared_.load(offset, bytes, by)
                      : access == Access::shared_store ? shared_.store(offset, bytes, by)
                                                       : shared_.atomic(offset, bytes, by);
    if (!fine) stop_access(what, bytes, shared_.conflict(), p, site);
  } else {
    const Range& range = global_range(p, bytes, what, site);
    check_early(range, at, bytes, access, what, site);
    if (access == Access::global_load) {
      if (!global_.load(range, at, bytes, running_)) stop_access(what, bytes, global_.conflict(), p, site);
      if (traffic_) traffic_->read_from(range.begin, bytes);
    } else if (access == Access::global_store && !global_.store(range, at, bytes, running_, sites_.id(site))) {
      stop_access(what, bytes, global_.conflict(), p, site);
    }
  }
  log(p, bytes, access, site);
}

void Machine::streaming_load(const void* p, Site site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  if (at % 16 == 0 && !global_.load_streaming(global_range(p, 16, "read of", site), at, running_, sites_.id(site)))
    stop_access("read of", 16, global_.conflict(), p, site);
  access(p, 16, Access::global_load, site);
}

void Machine::warp_load(const void* p, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) stop("ldmatrix of a row that is not aligned to 16 bytes", site);
  const size_t offset = shared_offset(p, 16, "read of", site);
  const int warp = running_ / 32;
  if (!shared_.load(offset, 16, {clock_.time(warp), sites_.id(site), warp, SharedAccess::kSeveralLanes}))
    stop_access("read of", 16, shared_.conflict(), p, site);
  log(p, 16, Access::shared_load, site);
}

void Machine::warp_row(const void* p, Site site) {
  const size_t offset = shared_offset(p, 16, "read of", site);
  const int warp = running_ / 32;
  if (!shared_.is_seen_by_warp(offset, {clock_.time(warp), sites_.id(site), warp, SharedAccess::kSeveralLanes}))
    stop_access("read of", 16, shared_.conflict(), p, site);
}

uint32_t Machine::atomic(uint32_t* p, const AtomicUpdate& update, Site site) {
  const unsigned char* const at = reinterpret_cast<const unsigned char*>(p);
  if (std::less_equal<>()(shared_.data(), at) && std::less<>()(at, shared_.data() + shared_.bytes())) {
    access(p, 4, Access::shared_atomic, site);
    const uint32_t before = *p;
    *p = updated(before, update);
    return before;
  }
  access(p, 4, Access::global_atomic, site);
  const Range& range = global_range(p, 4, "atomic on", site);
  const std::optional<uint32_t> before = global_.atomic(range, p, update, running_, sites_.id(site));
  if (!before) stop_access("atomic on", 4, global_.conflict(), p, site);
  return *before;
}

void Machine::copy(void* shared, const void* global, int valid_bytes, Site site) {
  if (valid_bytes < 0 || valid_bytes > 16) stop("cp.async of " + std::to_string(valid_bytes) + " bytes", site);
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    stop("cp.async of 16 bytes, not aligned to 16", site);
  const size_t offset = shared_offset(shared, 16, "write by cp.async to", site),
               bytes = static_cast<size_t>(valid_bytes);
  const uint16_t site_id = sites_.id(site);
  Shadow* shadow = nullptr;
  if (bytes > 0) {
    const Range& range = global_range(global, bytes, "read by cp.async of", site);
    check_early(range, reinterpret_cast<uintptr_t>(global), bytes, Access::global_load, "read by cp.async of", site);
    if (!global_.load(range, reinterpret_cast<uintptr_t>(global), bytes, running_))
      stop_access("read by cp.async of", bytes, global_.conflict(), global, site);
    shadow = range.shadow.get();
    if (traffic_) traffic_->read_from(range.begin, bytes);
    log(global, bytes, Access::global_load, site);
  }
  if (!shared_.begin_copy(offset, shared_access(site_id)))
    stop_access("write by cp.async to", 16, shared_.conflict(), shared, site);
  log(shared, 16, Access::shared_store, site);
  current().copies.push_back({offset, global, shadow, valid_bytes, site_id, clock_.now()});
}

void Machine::commit() {
  Fiber& fiber = current();
  fiber.group_sizes.push_back(fiber.copies.size() - fiber.closed);
  fiber.closed = fiber.copies.size();
}

void Machine::wait(int newest) {
  Fiber& fiber = current();
  while (fiber.group_sizes.size() - fiber.num_ended_groups > static_cast<size_t>(newest)) {
    for (size_t left = fiber.group_sizes[fiber.num_ended_groups++]; left > 0; --left) {
      const Copy& copy = fiber.copies[fiber.ended++];
      const size_t bytes = static_cast<size_t>(copy.valid_bytes);
      unsigned char* const to = shared_.data() + copy.offset;
      if (bytes > 0) {
        const uintptr_t from = reinterpret_cast<uintptr_t>(copy.global);
        if (!global_.end_copy(*copy.shadow, from, bytes, running_, copy.issued))
          stop_access("read by cp.async of", bytes, global_.conflict(), copy.global, site_of(copy.site));
        std::memcpy(to, copy.global, bytes);
      }
      std::memset(to + bytes, 0, 16 - bytes);
      shared_.end_copy(copy.offset, shared_access(copy.site));
    }
  }
  // What has ended is dropped now and then.
  if (fiber.ended == fiber.copies.size() || fiber.ended >= 1024) {
    const auto drop = [](auto& list, size_t count) {
      list.erase(list.begin(), list.begin() + static_cast<int64_t>(count));
    };
    drop(fiber.copies, fiber.ended);
    drop(fiber.group_sizes, fiber.num_ended_groups);
    fiber.closed -= fiber.ended;
    fiber.ended = fiber.num_ended_groups = 0;
  }
}

// ---- Bulk copies.

Mbarrier& Machine::mbarrier_at(uint64_t* barrier, const char* what, Site site) {
  const size_t offset = shared_offset(barrier, 8, what, site);
  for (Mbarrier& found : bulk_.barriers) {
    if (found.offset != offset) continue;
    // The barriers are words that atomics change.
    if (!shared_.atomic(offset, 8, shared_access(sites_.id(site))))
      stop_access(what, 8, shared_.conflict(), barrier, site);
    return found;
  }
  stop(std::string(what) + " an mbarrier that nobody began, at byte " + std::to_string(offset), site);
}

void Machine::init_mbarrier(uint64_t* barrier, int arrivals, Site site) {
  if (arrivals < 1 || arrivals >= 1 << 20) stop("an mbarrier of " + std::to_string(arrivals) + " arrivals", site);
  access(barrier, 8, Access::shared_store, site);
  const size_t offset = shared_offset(barrier, 8, "", site), phase = bulk_.phases.size();
  for (const Mbarrier& other : bulk_.barriers)
    if (other.offset == offset) stop("an mbarrier that is begun twice", site);
  bulk_.phases.emplace_back();
  bulk_.barriers.push_back({.offset = offset,
                            .arrivals = arrivals,
                            .pending = arrivals,
                            .phase = phase,
                            .last_phase = 0,
                            .fiber = running_,
                            .fences = bulk_.fences[static_cast<size_t>(running_)]});
}

void Machine::complete_if_due(Mbarrier* barrier) {
  if (barrier->pending > 0 || barrier->bytes != 0) return;
  barrier->last_phase = barrier->phase;
  barrier->phase = bulk_.phases.size();
  bulk_.phases.emplace_back();
  barrier->pending = barrier->arrivals;
  ++barrier->number;
}

void Machine::arrive_expecting(uint64_t* at, int bytes, Site site) {
  Mbarrier& barrier = mbarrier_at(at, "arrival at", site);
  if (bytes < 0 || bytes >= 1 << 20) stop("an arrival that expects " + std::to_string(bytes) + " bytes", site);
  bulk_.idle_waits = 0;
  --barrier.pending;
  barrier.bytes += bytes;
  if (barrier.pending == 0 && barrier.bytes < 0)
    stop("bulk copies of more bytes than the phase of their mbarrier expects", site);
  complete_if_due(&barrier);
}

void Machine::bulk_copy(void* shared, const void* global, int size, uint64_t* at, Site site) {
  if (size <= 0 || size % 16 != 0) stop("a bulk copy of " + std::to_string(size) + " bytes, no multiple of 16", site);
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    stop("a bulk copy that is not aligned to 16 bytes", site);
  const size_t bytes = static_cast<size_t>(size);
  const size_t offset = shared_offset(shared, bytes, "write by a bulk copy to", site);
  const Range& range = global_range(global, bytes, "read by a bulk copy of", site);
  check_early(range, reinterpret_cast<uintptr_t>(global), bytes, Access::global_load, "read by a bulk copy of", site);
  Mbarrier& barrier = mbarrier_at(at, "bulk copy on", site);
  if (bulk_.fences[static_cast<size_t>(barrier.fiber)] == barrier.fences)
    stop("a bulk copy on an mbarrier, with no fence_proxy_async since it was begun", site);
  // Nobody may write the source in this launch: the copy engine would need a fence of the writer.
  const uint16_t site_id = sites_.id(site);
  for (size_t i = 0; i < bytes; i += 16) {
    if (!global_.load_streaming(range, reinterpret_cast<uintptr_t>(global) + i, running_, site_id))
      stop_access("read by a bulk copy of", bytes, global_.conflict(), global, site);
  }
  if (!shared_.begin_bulk_copy(offset, bytes, barrier.phase, shared_access(site_id)))
    stop_access("write by a bulk copy to", bytes, shared_.conflict(), shared, site);
  bulk_.phases[barrier.phase].has_copies = true;
  bulk_.phases[barrier.phase].site = site_id;
  bulk_.idle_waits = 0;
  if (traffic_) traffic_->read_from(range.begin, bytes);
  log(global, bytes, Access::global_load, site);
  const size_t index = static_cast<size_t>(&barrier - bulk_.barriers.data());
  bulk_.pending.push_back({offset, bytes, global, index, barrier.phase, site_id});
}

void Machine::land(size_t index, Site site) {
  const BulkCopy copy = bulk_.pending[index];
  bulk_.pending.erase(bulk_.pending.begin() + static_cast<std::ptrdiff_t>(index));
  std::memcpy(shared_.data() + copy.offset, copy.global, copy.bytes);
  Mbarrier& barrier = bulk_.barriers[copy.barrier];
  if (barrier.phase != copy.phase)
    stop("a bulk copy (" + text_of(site_of(copy.site)) + ") that ends after the phase of its mbarrier", site);
  barrier.bytes -= static_cast<int64_t>(copy.bytes);
  if (barrier.pending == 0 && barrier.bytes < 0)
    stop("bulk copies (" + text_of(site_of(copy.site)) + ") of more bytes than the phase of their mbarrier expects",
         site);
  complete_if_due(&barrier);
}

// Each failed wait lets one copy land: without a seed the newest, else any.
bool Machine::try_wait(uint64_t* at, int parity, Site site) {
  const Mbarrier& barrier = mbarrier_at(at, "wait for", site);
  const auto is_complete = [&] { return (barrier.number & 1) != static_cast<uint32_t>(parity); };
  if (!is_complete() && !bulk_.pending.empty()) {
    bulk_.idle_waits = 0;
    const size_t count = bulk_.pending.size();
    land(seed_ == 0 ? count - 1 : dice_.below(static_cast<uint32_t>(count)), site);
  }
  if (is_complete()) {
    bulk_.idle_waits = 0;
    BulkPhase& phase = bulk_.phases[barrier.last_phase];
    const size_t warp = static_cast<size_t>(running_ / 32);
    if (phase.lanes[warp] == 0) phase.since[warp] = clock_.time(running_ / 32);
    phase.lanes[warp] |= 1u << (running_ & 31);
    return true;
  }
  if (++bulk_.idle_waits > 64 * num_fibers_) {
    stop("a phase of an mbarrier that never completes: " + std::to_string(barrier.pending) + " arrivals and " +
             std::to_string(barrier.bytes) + " bytes are missing",
         site);
  }
  current().waits_for = "an mbarrier", current().site = site;
  warp_of(running_).ready |= 1u << (running_ & 31);
  polling_ = true;
  next(false);
  return false;
}

std::string Machine::run_block(Launch* launch, const std::function<void()>& body, int64_t number, uint64_t seed,
                               Traffic* traffic) {
  const Grid& grid = launch->grid();
  const int64_t x = grid.grid[0], y = grid.grid[1];
  const std::array<int, 3> block = {static_cast<int>(number % x), static_cast<int>(number / x % y),
                                    static_cast<int>(number / x / y)};
  body_ = &body;
  traffic_ = traffic;
  seed_ = seed;
  num_fibers_ = static_cast<int>(grid.threads), num_warps_ = num_fibers_ / 32, num_done_ = 0;
  stacks_.reserve(grid.threads);
  if (fibers_.size() < grid.threads) fibers_.resize(grid.threads);
  if (warps_.size() < static_cast<size_t>(num_warps_)) warps_.resize(static_cast<size_t>(num_warps_));
  for (int i = 0; i < num_warps_; ++i) warps_[i] = Warp{}, warps_[i].ready = ~0u;
  for (Barrier& barrier : barriers_) barrier.waiting.clear();
  if (clock_.is_nearly_over()) {
    clock_.reset();
    shared_.forget();
  }
  clock_.start_block(num_warps_);
  bulk_.start_block(num_fibers_);
  shared_.start_block(grid.shared_bytes, num_warps_);
  global_.start_block(launch, static_cast<int32_t>(number), num_fibers_);
  fault_.clear();
  for (int i = 0; i < num_fibers_; ++i) {
    Fiber& fiber = fibers_[i];
    fiber.thread.thread = i, fiber.thread.num_threads = num_fibers_;
    for (int axis = 0; axis < 3; ++axis) {
      fiber.thread.block[axis] = block[static_cast<size_t>(axis)];
      fiber.thread.grid[axis] = static_cast<int>(grid.grid[axis]);
    }
    fiber.done = false, fiber.waits_for = "", fiber.site = {"", 0};
    fiber.has_waited = !grid.dependent;
    fiber.copies.clear();
    fiber.group_sizes.clear();
    fiber.ended = fiber.closed = fiber.num_ended_groups = 0;
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
  for (int i = 0; i < num_fibers_; ++i) {
    const Fiber& fiber = fibers_[i];
    for (size_t copy = fiber.ended; copy < fiber.copies.size(); ++copy) shared_.abandon_copy(fiber.copies[copy].offset);
  }
  for (size_t i = 1; i < bulk_.phases.size() && fault_.empty(); ++i) {
    const BulkPhase& phase = bulk_.phases[i];
    if (phase.has_copies && !phase.is_seen())
      fault_ = "a bulk copy (" + text_of(site_of(phase.site)) + ") that no thread waits for";
  }
  if (fault_.empty() && !bulk_.pending.empty())
    fault_ = "a bulk copy (" + text_of(site_of(bulk_.pending[0].site)) + ") that ends after the phase of its mbarrier";
  if (fault_.empty()) return "";
  return std::string(grid.name) + ": " + fault_ + " in block (" + std::to_string(block[0]) + ", " +
         std::to_string(block[1]) + ", " + std::to_string(block[2]) + ")";
}

}  // namespace diffqkv::emulated
