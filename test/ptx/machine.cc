#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "global_memory.h"

namespace diffqkv::ptx {

namespace {

// Of a block, in instructions of its warps; more than any block here takes.
constexpr uint64_t kMostSteps = uint64_t{1} << 27;

std::string hexadecimal(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// The text of a line of a module, without the blanks around it.
std::string line_of(const Module& module, int line) {
  size_t begin = 0;
  for (int i = 1; i < line && begin != std::string::npos; ++i) begin = module.text.find('\n', begin) + 1;
  const size_t end = module.text.find('\n', begin);
  std::string text = module.text.substr(begin, end - begin);
  text.erase(0, text.find_first_not_of(" \t"));
  text.erase(text.find_last_not_of(" \t") + 1);
  for (char& c : text) c = c == '\t' ? ' ' : c;
  return text;
}

}  // namespace

// ---- Faults.

void Block::fail(const Warp& warp, int lane, const std::string& message) {
  const int line = program_->code[running_pc_].line;
  throw Fault(message + " (PTX line " + std::to_string(line) + ": " + line_of(*grid_->entry->module, line) +
              "; thread " + std::to_string(warp.first_thread() + lane) + " of block (" + std::to_string(index_[0]) +
              ", " + std::to_string(index_[1]) + ", " + std::to_string(index_[2]) + "), seed " +
              std::to_string(grid_->seed) + ")");
}

std::string Block::deadlock() const {
  std::string text = "not all threads arrive:";
  int shown = 0, ended = 0;
  for (const Warp& warp : warps_) {
    ended += std::popcount(warp.done);
    const uint32_t waiting = warp.waiting | warp.at_barrier;
    if (waiting == 0 || shown++ >= 4) continue;
    const int lane = std::countr_zero(waiting);
    const int line = program_->code[warp.pc[static_cast<size_t>(lane)]].line;
    text += std::string(" ") + std::to_string(std::popcount(waiting)) + " threads of warp " +
            std::to_string(warp.index) + " wait at PTX line " + std::to_string(line) + " (" +
            line_of(*grid_->entry->module, line) + ");";
  }
  return text + " " + std::to_string(ended) + " threads have ended";
}

// ---- Memory.

Space Block::resolve(Space space, uint64_t* address) const {
  if (space != Space::generic) return space;
  constexpr std::pair<uint64_t, Space> kWindows[] = {
      {kSharedWindow, Space::shared}, {kLocalWindow, Space::local}, {kParameterWindow, Space::parameter}};
  for (const auto& [window, inside] : kWindows) {
    if ((*address & kWindowMask) != (window & kWindowMask)) continue;
    *address -= window;
    return inside;
  }
  return Space::global;
}

uint32_t Block::shared_offset(Warp& warp, int lane, uint64_t address, uint32_t bytes, const char* what) {
  if (address % bytes != 0)
    fail(warp, lane, std::string(what) + " " + std::to_string(bytes) + " bytes of shared memory that are not aligned");
  if (address < kSharedBase || address + bytes > kSharedBase + shared_.size()) {
    fail(warp, lane,
         std::string(what) + " shared memory at byte " +
             std::to_string(static_cast<int64_t>(address) - int64_t{kSharedBase}) + ", of " +
             std::to_string(shared_.size()));
  }
  return static_cast<uint32_t>(address - kSharedBase);
}

void Block::check_has_waited(Warp& warp, uint32_t lanes, const char* what) {
  const uint32_t early = lanes & ~warp.waited;
  if (early) fail(warp, std::countr_zero(early), std::string(what) + " before griddepcontrol.wait");
}

unsigned char* Block::local(Warp& warp, int lane, uint64_t address, uint32_t bytes, bool writes) {
  const uint32_t size = program_->local_bytes;
  if (address % bytes != 0) fail(warp, lane, "an access to local memory that is not aligned");
  if (address < kLocalBase || address + bytes > kLocalBase + size) {
    fail(warp, lane,
         "an access to local memory at byte " + std::to_string(static_cast<int64_t>(address) - int64_t{kLocalBase}) +
             ", of " + std::to_string(size));
  }
  const size_t at = static_cast<size_t>(warp.first_thread() + lane) * size + (address - kLocalBase);
  for (size_t i = at; i < at + bytes; ++i) {
    if (writes) local_written_[i] = 1;
    if (!local_written_[i]) fail(warp, lane, "reads local memory that the thread has not written");
  }
  return &local_[at];
}

const unsigned char* Block::read(Warp& warp, int lane, Space space, uint64_t address, uint32_t bytes, bool read_only,
                                 uint32_t used) {
  const int thread = warp.first_thread() + lane;
  switch (resolve(space, &address)) {
    case Space::shared: {
      const uint32_t offset = shared_offset(warp, lane, address, bytes, "reads");
      if (const char* why = shared_.unreadable(offset, bytes, used))
        fail(warp, lane, "reads shared memory at byte " + std::to_string(offset) + " " + why);
      const std::string race = shared_.record_read(clocks_, warp.index, thread, offset, bytes, used);
      if (!race.empty()) fail(warp, lane, "reads shared memory at byte " + std::to_string(offset) + " " + race);
      return shared_.data(offset);
    }
    case Space::local: return local(warp, lane, address, bytes, false);
    case Space::parameter: {
      const size_t size = grid_->parameters.size();
      if (address % bytes != 0) fail(warp, lane, "reads a parameter that is not aligned");
      if (address < kParameterBase || address + bytes > kParameterBase + size)
        fail(warp, lane, "reads outside of the parameters");
      return &grid_->parameters[address - kParameterBase];
    }
    default: {
      if (address % bytes != 0)
        fail(warp, lane,
             "reads " + std::to_string(bytes) + " bytes at " + hexadecimal(address) + ", which is not aligned");
      if (!read_only) check_has_waited(warp, uint32_t{1} << lane, "reads global memory");
      const std::string wrong = global_->read(thread, address, bytes, read_only);
      if (!wrong.empty()) fail(warp, lane, "reads global memory: " + wrong);
      return reinterpret_cast<const unsigned char*>(address);
    }
  }
}

void Block::write(Warp& warp, int lane, Space space, uint64_t address, uint32_t bytes, const unsigned char* value) {
  const int thread = warp.first_thread() + lane;
  unsigned char* to = nullptr;
  switch (resolve(space, &address)) {
    case Space::shared: {
      const uint32_t offset = shared_offset(warp, lane, address, bytes, "writes");
      if (!shared_.idle(offset, bytes))
        fail(warp, lane, "writes shared memory to which a copy is under way, at byte " + std::to_string(offset));
      to = shared_.data(offset);
      const std::string race = shared_.record_write(clocks_, warp.index, thread, offset, bytes, false);
      if (!race.empty() && std::memcmp(to, value, bytes) != 0)
        fail(warp, lane, "writes shared memory at byte " + std::to_string(offset) + " " + race);
      shared_.set_state(offset, bytes, ByteState::written);
      break;
    }
    case Space::local: to = local(warp, lane, address, bytes, true); break;
    case Space::parameter: fail(warp, lane, "writes to the parameters");
    default: {
      if (address % bytes != 0) {
        fail(warp, lane,
             "writes " + std::to_string(bytes) + " bytes at " + hexadecimal(address) + ", which is not aligned");
      }
      check_has_waited(warp, uint32_t{1} << lane, "writes global memory");
      const std::string wrong = global_->write(thread, address, bytes, value);
      if (!wrong.empty()) fail(warp, lane, "writes global memory: " + wrong);
      to = reinterpret_cast<unsigned char*>(address);
    }
  }
  std::memcpy(to, value, bytes);
}

// An atomic operation.
unsigned char* Block::update(Warp& warp, int lane, Space space, uint64_t address, uint32_t bytes) {
  const int thread = warp.first_thread() + lane;
  switch (resolve(space, &address)) {
    case Space::shared: {
      const uint32_t offset = shared_offset(warp, lane, address, bytes, "updates");
      if (const char* why = shared_.unreadable(offset, bytes))
        fail(warp, lane, "updates shared memory at byte " + std::to_string(offset) + " " + why);
      const std::string race = shared_.record_write(clocks_, warp.index, thread, offset, bytes, true);
      if (!race.empty()) fail(warp, lane, "updates shared memory at byte " + std::to_string(offset) + " " + race);
      return shared_.data(offset);
    }
    case Space::global: {
      if (address % bytes != 0) fail(warp, lane, "an atomic operation at an address that is not aligned");
      check_has_waited(warp, uint32_t{1} << lane, "writes global memory");
      const std::string wrong = global_->write(thread, address, bytes, nullptr);
      if (!wrong.empty()) fail(warp, lane, "an atomic operation on global memory: " + wrong);
      return reinterpret_cast<unsigned char*>(address);
    }
    default: fail(warp, lane, "an atomic operation on memory that is neither global nor shared");
  }
}

const unsigned char* Block::read_row(Warp& warp, int lane, uint64_t address, uint32_t bytes) {
  const uint32_t offset = shared_offset(warp, lane, address, bytes, "reads");
  if (const char* why = shared_.unreadable(offset, bytes))
    fail(warp, lane, "reads shared memory at byte " + std::to_string(offset) + " " + why);
  const std::string race = shared_.record_read(clocks_, warp.index, -1, offset, bytes);
  if (!race.empty()) fail(warp, lane, "reads shared memory at byte " + std::to_string(offset) + " " + race);
  return shared_.data(offset);
}

// ---- cp.async.

void Block::begin_copy(Warp& warp, int lane, uint64_t shared, uint64_t global, uint32_t bytes, uint32_t valid_bytes) {
  if (valid_bytes > bytes) fail(warp, lane, "cp.async of more bytes than it copies");
  const int thread = warp.first_thread() + lane;
  const uint32_t offset = shared_offset(warp, lane, shared, bytes, "copies to");
  if (global % bytes != 0)
    fail(warp, lane,
         "cp.async of " + std::to_string(bytes) + " bytes from " + hexadecimal(global) + ", which is not aligned");
  if (valid_bytes > 0) {
    const std::string wrong = global_->read(thread, global, valid_bytes, false);
    if (!wrong.empty()) fail(warp, lane, "cp.async reads global memory: " + wrong);
  }
  if (!shared_.idle(offset, bytes))
    fail(warp, lane, "cp.async to where a copy is under way, byte " + std::to_string(offset));
  const std::string race = shared_.record_write(clocks_, warp.index, thread, offset, bytes, false);
  if (!race.empty()) fail(warp, lane, "cp.async to shared memory at byte " + std::to_string(offset) + " " + race);
  // What was there is gone from now on, and what will be there is not there yet.
  std::memset(shared_.data(offset), 0xff, bytes);
  shared_.set_state(offset, bytes, ByteState::in_flight);
  copies_[static_cast<size_t>(thread)].copies.push_back({offset, reinterpret_cast<const unsigned char*>(global),
                                                         static_cast<uint8_t>(bytes),
                                                         static_cast<uint8_t>(valid_bytes)});
}

void Block::commit_copies(Warp& warp, int lane) {
  AsyncCopies& own = copies_[static_cast<size_t>(warp.first_thread() + lane)];
  own.group_ends.push_back(own.copies.size());
}

void Block::land_copies(Warp& warp, int lane, int newest) {
  const int thread = warp.first_thread() + lane;
  AsyncCopies& own = copies_[static_cast<size_t>(thread)];
  const size_t groups = own.group_ends.size();
  if (newest >= 0 && groups <= static_cast<size_t>(newest)) return;
  const size_t landing = newest < 0 ? groups : groups - static_cast<size_t>(newest);
  const size_t end = newest < 0 ? own.copies.size() : own.group_ends[landing - 1];
  for (size_t i = 0; i < end; ++i) {
    const AsyncCopy& copy = own.copies[i];
    unsigned char* const to = shared_.data(copy.shared_offset);
    std::memset(to, 0, copy.bytes);
    if (copy.valid_bytes > 0) std::memcpy(to, copy.from, copy.valid_bytes);
    shared_.set_state(copy.shared_offset, copy.bytes, ByteState::written);
    shared_.record_write(clocks_, warp.index, thread, copy.shared_offset, copy.bytes, false);
  }
  own.copies.erase(own.copies.begin(), own.copies.begin() + static_cast<int64_t>(end));
  own.group_ends.erase(own.group_ends.begin(), own.group_ends.begin() + static_cast<int64_t>(landing));
  for (size_t& group_end : own.group_ends) group_end -= end;
}

void Block::fence(Warp& warp, uint32_t lanes) {
  for (uint32_t left = lanes; left; left &= left - 1) global_->fence(warp.first_thread() + std::countr_zero(left));
}

void Block::synchronize_warp(Warp& warp, uint32_t lanes) {
  if (lanes != kAllLanes) fail(warp, std::countr_zero(lanes), "bar.warp.sync of some lanes only is not known");
  clocks_.advance(warp.index);
}

// ---- Who runs.

void Block::reset(const std::array<unsigned, 3>& index) {
  const int num_warps = static_cast<int>(grid_->threads / kLanes);
  index_ = index;
  dice_.seed(grid_->seed * 1000003 + linear_index_);
  const size_t words = program_->num_words;
  const bool is_new = rows_program_ != program_ || warps_.size() != static_cast<size_t>(num_warps);
  if (is_new) {  // what no instruction has written yet is rubbish
    rows_.assign(words * static_cast<size_t>(num_warps) + 16, 0x7fa5a5a5u);
    predicates_.assign(program_->num_predicates * static_cast<size_t>(num_warps), 0x5a5a5a5au);
    rows_program_ = program_;
  }
  warps_.resize(static_cast<size_t>(num_warps));
  // To a cache line.
  const size_t skip = (64 - reinterpret_cast<uintptr_t>(rows_.data()) % 64) % 64 / 4;
  for (int i = 0; i < num_warps; ++i) {
    Warp& warp = warps_[static_cast<size_t>(i)];
    warp = Warp{};
    warp.rows = rows_.data() + skip + words * static_cast<size_t>(i);
    warp.predicates = predicates_.data() + program_->num_predicates * static_cast<size_t>(i);
    warp.block = this;
    warp.index = i;
    warp.ready = kAllLanes;
    warp.waited = program_->waits_for_previous ? 0 : kAllLanes;
    warp.groups[0] = kAllLanes;
    for (const Constant& constant : program_->constants) {
      if (!is_new) break;
      for (int lane = 0; lane < kLanes; ++lane) {
        if (constant.is_64_bits) {
          reinterpret_cast<uint64_t*>(warp.rows + constant.row)[lane] = constant.value;
        } else {
          warp.rows[constant.row + static_cast<uint32_t>(lane)] = static_cast<uint32_t>(constant.value);
        }
      }
    }
    for (const auto& [predicate, bits] : program_->constant_predicates) warp.predicates[predicate] = bits;
    for (const SpecialRow& special : program_->specials) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const unsigned thread = static_cast<unsigned>(i * kLanes + lane);
        const unsigned values[] = {thread,
                                   0,
                                   0,
                                   grid_->threads,
                                   1,
                                   1,
                                   index[0],
                                   index[1],
                                   index[2],
                                   grid_->size[0],
                                   grid_->size[1],
                                   grid_->size[2],
                                   static_cast<unsigned>(lane)};
        warp.rows[special.row + static_cast<uint32_t>(lane)] = values[static_cast<size_t>(special.special)];
      }
    }
    // With a seed: 1, 2 or 4 groups.
    warp.num_groups = grid_->seed == 0 ? 1 : 1 << grid_->seed % 3;
    if (warp.num_groups > 1) {
      warp.groups = {};
      for (int lane = 0; lane < kLanes; ++lane)
        warp.groups[dice_.below(static_cast<uint32_t>(warp.num_groups))] |= 1u << lane;
    }
  }
  order_.resize(static_cast<size_t>(num_warps));
  for (int i = 0; i < num_warps; ++i) order_[static_cast<size_t>(i)] = i;
  if (grid_->seed != 0) {
    for (uint32_t i = static_cast<uint32_t>(num_warps); i > 1; --i) std::swap(order_[i - 1], order_[dice_.below(i)]);
  }
  for (Barrier& barrier : barriers_) barrier = Barrier{};
  shared_.reset(grid_->shared_bytes);
  if (program_->local_bytes > 0) {
    local_.assign(static_cast<size_t>(program_->local_bytes) * grid_->threads, 0xff);
    local_written_.assign(local_.size(), 0);
  }
  mbarriers_.clear();
  bulk_copies_.clear();
  idle_waits_ = 0;
  copies_.resize(grid_->threads);
  for (AsyncCopies& own : copies_) {
    own.copies.clear();
    own.group_ends.clear();
  }
  clocks_.reset(num_warps);
  global_->begin_block(linear_index_, &clocks_);
}

// The next lanes to run: of one group of one warp, those that are furthest behind.
bool Block::choose(int* chosen, uint32_t* lanes) {
  const int num_warps = static_cast<int>(warps_.size());
  int warp = -1;
  if (grid_->seed == 0) {
    for (int i = 0; i < num_warps && warp < 0; ++i) {
      const int candidate = (running_ + i) % num_warps;
      if (warps_[static_cast<size_t>(candidate)].ready) warp = candidate;
    }
  } else {
    // Strict priorities, or chance.
    const int first = grid_->seed % 2 == 0 ? 0 : static_cast<int>(dice_.below(static_cast<uint32_t>(num_warps)));
    for (int i = 0; i < num_warps && warp < 0; ++i) {
      const int candidate = order_[static_cast<size_t>((first + i) % num_warps)];
      if (warps_[static_cast<size_t>(candidate)].ready) warp = candidate;
    }
  }
  if (warp < 0) return false;
  const Warp& w = warps_[static_cast<size_t>(warp)];
  uint32_t group = 0;
  const uint32_t first_group = w.num_groups == 1 ? 0 : dice_.below(static_cast<uint32_t>(w.num_groups));
  for (uint32_t i = 0; i < static_cast<uint32_t>(w.num_groups) && !(group & w.ready); ++i)
    group = w.groups[(first_group + i) % static_cast<uint32_t>(w.num_groups)];
  group &= w.ready;
  *chosen = warp;
  *lanes = group;
  return true;
}

// Runs the lanes of a group that are furthest behind, until they wait, end, lose their turn or meet the others.
void Block::run_lanes(Warp& warp, uint32_t group) {
  uint32_t pc = ~0u, lanes = 0, next = ~0u;  // next: where others of the group stand
  for (uint32_t left = group; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    const uint32_t at = warp.pc[static_cast<size_t>(lane)];
    if (at < pc) {
      next = pc;
      pc = at;
      lanes = 1u << lane;
    } else if (at == pc) {
      lanes |= 1u << lane;
    } else if (at < next) {
      next = at;
    }
  }
  running_ = warp.index;
  const Instruction* const code = program_->code.data();
  uint8_t* const executed = program_->executed;
  const uint32_t* const operands = program_->operands.data();
  const uint64_t width = static_cast<uint64_t>(std::popcount(lanes));
  const auto leave = [&](uint32_t which, uint32_t at) {
    for (uint32_t left = which; left; left &= left - 1) warp.pc[static_cast<size_t>(std::countr_zero(left))] = at;
  };
  for (;;) {
    if (pc >= next) break;
    if (++steps_ > kMostSteps) fail(warp, std::countr_zero(lanes), "the block does not end");
    const Instruction& in = code[pc];
    running_pc_ = pc;
    uint32_t active = lanes;
    if (in.guard != kNoGuard) {
      const uint32_t predicate = warp.predicates[in.guard >> 1];
      active &= in.guard & 1 ? ~predicate : predicate;
    }
    instructions_ += width;
    if (executed && active) executed[pc] = 1;
    switch (in.flow) {
      case Flow::next:
        if (active) in.handler(warp, in, operands + in.operands, active);
        ++pc;
        continue;
      case Flow::memory:
        if (active) in.handler(warp, in, operands + in.operands, active);
        ++pc;
        if (grid_->seed != 0 && dice_.below(32) == 0) break;
        continue;
      case Flow::branch:
        if (active == lanes) {
          pc = static_cast<uint32_t>(in.immediate);
          continue;
        }
        if (active == 0) {
          ++pc;
          continue;
        }
        leave(active, static_cast<uint32_t>(in.immediate));
        leave(lanes & ~active, pc + 1);
        return;
      case Flow::exit:
        check_has_waited(warp, active, "ends");
        leave(lanes & ~active, pc + 1);
        warp.ready &= ~active;
        warp.done |= active;
        return;
      case Flow::collective:
        leave(lanes, pc + 1);
        if (active == 0 || collect(warp, in, active, pc)) {
          if (active == lanes) {
            ++pc;
            continue;
          }
        }
        return;
      case Flow::barrier:
        leave(lanes, pc + 1);
        if (active == 0 || arrive(warp, in, active, pc)) {
          if (active == lanes) {
            ++pc;
            continue;
          }
        }
        return;
    }
    break;
  }
  leave(lanes, pc);
}

bool Block::collect(Warp& warp, const Instruction& in, uint32_t lanes, uint32_t pc) {
  // A collective's first operand is the row of its mask of lanes.
  const uint32_t* const operands = program_->operands.data() + in.operands;
  const int first = std::countr_zero(lanes);
  const uint32_t mask = warp.rows[operands[0] + static_cast<uint32_t>(first)];
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int lane = std::countr_zero(left);
    if (warp.rows[operands[0] + static_cast<uint32_t>(lane)] != mask)
      fail(warp, lane, "lanes of one operation name different masks");
  }
  if ((lanes & ~mask) != 0) fail(warp, std::countr_zero(lanes & ~mask), "a lane that is not in its own mask");
  if ((warp.done & mask) != 0) fail(warp, first, "a lane of the mask has ended");
  if (warp.waiting != 0) {
    const uint32_t other = warp.pc[static_cast<size_t>(std::countr_zero(warp.waiting))];
    if (other != pc) {
      fail(warp, first,
           "lanes of one warp stand at different operations, also at PTX line " +
               std::to_string(program_->code[other].line));
    }
  }
  const uint32_t arrived = warp.waiting | lanes;
  if (arrived != mask) {
    warp.waiting = arrived;
    warp.ready &= ~lanes;
    for (uint32_t left = lanes; left; left &= left - 1) warp.pc[static_cast<size_t>(std::countr_zero(left))] = pc;
    return false;
  }
  in.handler(warp, in, operands, mask);
  const bool alone = warp.waiting == 0;
  for (uint32_t left = mask; left; left &= left - 1) warp.pc[static_cast<size_t>(std::countr_zero(left))] = pc + 1;
  warp.ready |= mask;
  warp.waiting = 0;
  return alone;
}

bool Block::arrive(Warp& warp, const Instruction& in, uint32_t lanes, uint32_t pc) {
  const uint32_t* const operands = program_->operands.data() + in.operands;
  const size_t first = static_cast<size_t>(std::countr_zero(lanes));
  const uint32_t number = warp.rows[operands[0] + first];
  const uint32_t count = warp.rows[operands[1] + first];
  const int lane = static_cast<int>(first);
  for (uint32_t left = lanes; left; left &= left - 1) {
    const size_t other = static_cast<size_t>(std::countr_zero(left));
    if (warp.rows[operands[0] + other] != number || warp.rows[operands[1] + other] != count)
      fail(warp, static_cast<int>(other), "lanes of one warp name different barriers");
  }
  if (number >= barriers_.size()) fail(warp, lane, "there is no barrier " + std::to_string(number));
  if (count % kLanes != 0) fail(warp, lane, "a barrier of " + std::to_string(count) + " threads, not whole warps");
  if (warp.done != 0) fail(warp, lane, "a lane of the warp has ended before the barrier");
  if (warp.at_barrier != 0 && warp.pc[static_cast<size_t>(std::countr_zero(warp.at_barrier))] != pc)
    fail(warp, lane, "lanes of one warp stand at different barriers");
  warp.at_barrier |= lanes;
  warp.ready &= ~lanes;
  for (uint32_t left = lanes; left; left &= left - 1) warp.pc[static_cast<size_t>(std::countr_zero(left))] = pc;
  if (warp.at_barrier != kAllLanes) return false;
  Barrier& barrier = barriers_[number];
  const uint32_t expected = count == 0 ? grid_->threads : count;
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.line = in.line;
  } else if (barrier.expected != expected) {
    fail(warp, lane,
         "barrier " + std::to_string(number) + " of " + std::to_string(expected) + " threads here, of " +
             std::to_string(barrier.expected) + " at PTX line " + std::to_string(barrier.line));
  }
  barrier.arrived += kLanes;
  barrier.warps.push_back(warp.index);
  if (barrier.arrived < barrier.expected) return false;
  clocks_.join(barrier.warps);
  for (const int index : barrier.warps) {
    Warp& other = warps_[static_cast<size_t>(index)];
    other.at_barrier = 0;
    other.ready = kAllLanes;
    for (uint32_t& at : other.pc) ++at;
  }
  barrier.arrived = 0;
  barrier.warps.clear();
  return false;
}

void Block::run(const Grid& grid, GlobalMemory& global, const std::array<unsigned, 3>& index, uint32_t linear_index) {
  grid_ = &grid;
  program_ = &grid.entry->decoded();
  global_ = &global;
  linear_index_ = linear_index;
  running_ = 0;
  steps_ = 0;
  reset(index);
  int warp;
  uint32_t lanes;
  while (choose(&warp, &lanes)) run_lanes(warps_[static_cast<size_t>(warp)], lanes);
  for (const Warp& w : warps_) {
    if (w.done == kAllLanes) continue;
    throw Fault(deadlock() + ", in block (" + std::to_string(index[0]) + ", " + std::to_string(index[1]) + ", " +
                std::to_string(index[2]) + "), seed " + std::to_string(grid.seed));
  }
}

}  // namespace diffqkv::ptx
