#include "executor.h"

#include <cstring>

#include "global_memory.h"
#include "symbols.h"

namespace diffqkv::ptx {
namespace {

// "cuda/attention_decode.cu.sm_80.ptx" -> "attention_decode".
std::string stem_of(const std::string& file) {
  const std::string name = file.substr(file.rfind('/') + 1);
  return name.substr(0, name.find('.'));
}

// What the entry's .param space holds. Throws Fault if the kernel's parameters are not laid out so.
std::vector<unsigned char> lay_out(const Entry& entry, const emulated::KernelLaunch& launch) {
  if (launch.parameters.size() != entry.parameters.size()) {
    throw Fault("the PTX has " + std::to_string(entry.parameters.size()) + " parameters, the launch " +
                std::to_string(launch.parameters.size()));
  }
  std::vector<unsigned char> bytes;
  for (size_t i = 0; i < entry.parameters.size(); ++i) {
    const Parameter& parameter = entry.parameters[i];
    const emulated::KernelParameter& value = launch.parameters[i];
    if (value.size != parameter.bytes || value.alignment != parameter.alignment) {
      throw Fault("parameter " + std::to_string(i) + " has " + std::to_string(parameter.bytes) + " bytes aligned to " +
                  std::to_string(parameter.alignment) + " in the PTX, and " + std::to_string(value.size) +
                  " aligned to " + std::to_string(value.alignment) + " in C++");
    }
    bytes.resize(parameter.offset + parameter.bytes);
    std::memcpy(&bytes[parameter.offset], value.data, value.size);
  }
  return bytes;
}

}  // namespace

std::string short_name(const Entry& entry) {
  std::string name = common_name(entry.name);
  for (const std::string drop : {"void ", "diffqkv::", "(anonymous namespace)::"}) {
    for (size_t at = name.find(drop); at != std::string::npos; at = name.find(drop)) name.erase(at, drop.size());
  }
  // The parameters begin at the parenthesis that the last one closes.
  int depth = 0;
  for (size_t i = name.size(); i-- > 0;) {
    depth += name[i] == ')' ? 1 : name[i] == '(' ? -1 : 0;
    if (depth == 0 && name[i] == '(') return name.substr(0, i);
  }
  return name;
}

Device::Device(std::string architecture, const std::vector<std::string>& files)
    : architecture_(std::move(architecture)) {
  for (const std::string& file : files) {
    modules_.push_back(read_module(file));
    if (modules_.back()->target != architecture_)
      throw Fault(file + " is for " + modules_.back()->target + ", not " + architecture_);
    for (Entry& entry : modules_.back()->entries) by_name_.emplace(common_name(entry.name), &entry);
  }
}

Entry* Device::find(const void* function, std::string* why) {
  Entry*& known = by_function_[function];
  if (known) return known;
  const std::vector<FunctionName> names = functions_at(function);
  if (names.empty()) {
    *why = "the kernel's function has no symbol";
    return nullptr;
  }
  std::set<Entry*> found;
  for (const FunctionName& name : names) {
    const auto [begin, end] = by_name_.equal_range(name.name);
    for (auto it = begin; it != end; ++it)
      if (name.file.empty() || name.file == stem_of(it->second->module->file)) found.insert(it->second);
  }
  if (found.size() != 1) {
    *why = std::to_string(found.size()) + " entries of the PTX are called " + names[0].name;
    return nullptr;
  }
  return known = *found.begin();
}

std::string Device::run(const emulated::KernelLaunch& launch, uint64_t seed) {
  std::string why;
  Entry* const entry = find(launch.function, &why);
  if (!entry) return std::string(launch.name) + ", " + architecture_ + ": " + why;
  try {
    Grid grid;
    grid.entry = entry;
    grid.size = launch.grid;
    grid.threads = launch.threads;
    grid.shared_bytes = launch.shared_bytes;
    grid.seed = seed;
    grid.parameters = lay_out(*entry, launch);
    if (launch.threads == 0 || launch.threads % kLanes != 0) throw Fault("a block that is not of whole warps");
    if (launch.threads > static_cast<unsigned>(entry->max_threads))
      throw Fault(std::to_string(launch.threads) + " threads, of at most " + std::to_string(entry->max_threads));
    const uint32_t blocks = launch.grid[0] * launch.grid[1] * launch.grid[2];
    std::vector<uint32_t> order(blocks);
    for (uint32_t i = 0; i < blocks; ++i) order[i] = i;
    if (seed != 0) {
      Dice dice;
      dice.seed(seed);
      for (uint32_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[dice.below(i)]);
    }
    GlobalMemory global(launch.threads);
    for (const uint32_t block : order) {
      block_.run(
          grid, global,
          {block % launch.grid[0], block / launch.grid[0] % launch.grid[1], block / launch.grid[0] / launch.grid[1]},
          block);
    }
  } catch (const Fault& fault) {
    return short_name(*entry) + ", " + architecture_ + ": " + fault.what();
  }
  executed_.insert(entry);
  return "";
}

}  // namespace diffqkv::ptx
