// Runs the launches of the emulated runtime from PTX.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "machine.h"
#include "program.h"

namespace diffqkv::ptx {

// The PTX of all kernels for one architecture.
class Device {
 public:
  Device(std::string architecture, const std::vector<std::string>& files);

  // As an emulated::Executor: empty, or what went wrong. No kernel's PTX is a fault.
  std::string run(const emulated::KernelLaunch& launch, uint64_t seed);

  const std::string& architecture() const { return architecture_; }
  const std::vector<std::unique_ptr<Module>>& modules() const { return modules_; }
  uint64_t instructions() const { return block_.instructions(); }
  // The entries that have run since it was last cleared.
  std::set<const Entry*>& executed() { return executed_; }

 private:
  Entry* find(const void* function, std::string* why);

  std::string architecture_;
  std::vector<std::unique_ptr<Module>> modules_;
  std::multimap<std::string, Entry*> by_name_;
  std::map<const void*, Entry*> by_function_;
  std::set<const Entry*> executed_;
  Block block_;
};

// An entry's name for people: without parameters and namespaces.
std::string short_name(const Entry& entry);

}  // namespace diffqkv::ptx
