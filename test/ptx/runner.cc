#include "runner.h"

#include <omp.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>

#include "cases.h"
#include "comparison.h"
#include "executor.h"

namespace diffqkv::ptx {
namespace {

using Case = emulated::NamedCall;
using Devices = std::vector<std::unique_ptr<Device>>;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// FILE.cu.ARCHITECTURE.ptx, with or without a hash before ".ptx".
std::vector<std::string> files_of(const std::string& folder, const std::string& architecture) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.ends_with(".ptx") && name.find(".cu." + architecture + ".") != std::string::npos)
      files.push_back(entry.path());
  }
  return files;
}

// Zeros that processes started later share.
void* shared_memory(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

template <typename F>
void for_entries(const Devices& devices, const F& f) {
  for (const auto& device : devices)
    for (const auto& module : device->modules())
      for (Entry& entry : module->entries) f(*device, entry);
}

// Decodes all kernels, and has all processes record in one place which instructions have run.
void decode_all(const Devices& devices) {
  size_t count = 0;
  for_entries(devices, [&](Device&, Entry& entry) { count += entry.decoded().code.size(); });
  uint8_t* executed = static_cast<uint8_t*>(shared_memory(count));
  for_entries(devices, [&](Device&, Entry& entry) {
    entry.decoded().executed = executed;
    executed += entry.decoded().code.size();
  });
}

// ---- One case.

// Returns what is wrong.
std::string run_call(emulated::Call& call, const emulated::PlannedGpu& gpu) {
  try {
    emulated::CallContext context(gpu.multiprocessors, gpu.shared_bytes);
    call.enqueue(context);
    context.finish();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

// As C++, and from PTX in some orders of threads. Writes to the report, a line each, what failed, or which kernels have
// run and were found right. Returns whether all is well.
bool run_case(const Case& c, Device* device, int first_seed, int seeds, std::FILE* report) {
  const double started = now();
  const auto fail = [&](const std::string& where, const std::string& wrong) {
    std::fprintf(report, "failure\t%s, %s: %s\n", c.name.c_str(), where.c_str(), wrong.c_str());
    return false;
  };
  emulated::executor() = nullptr;
  emulated::Call call = c.make();
  const std::string reported = run_call(call, c.gpu);
  const bool reports = reported.find("reports an argument") != std::string::npos;
  if (reports != c.is_rejected) return fail("as C++", reported.empty() ? "the kernel reports nothing" : reported);
  if (!reports && !reported.empty()) return fail("as C++", reported);
  const Contents expected = contents_of(call);

  const double compared = now();
  device->executed().clear();
  const uint64_t before = device->instructions();
  for (int seed = first_seed; seed < first_seed + seeds; ++seed) {
    emulated::executor() = nullptr;
    emulated::Call again = c.make();
    emulated::executor() = [&](const emulated::KernelLaunch& launch) {
      return device->run(launch, static_cast<uint64_t>(seed));
    };
    std::string wrong = run_call(again, c.gpu);
    if (wrong == reported) {
      wrong = difference(again, contents_of(again), expected);
    } else if (wrong.empty()) {
      wrong = "the kernel does not report the argument";
    }
    if (!wrong.empty()) return fail(device->architecture() + ", seed " + std::to_string(seed), wrong);
  }
  const char* const architecture = device->architecture().c_str();
  std::fprintf(report, "executed\t%s\t%llu\n", architecture,
               static_cast<unsigned long long>(device->instructions() - before));
  for (const Entry* entry : device->executed())
    std::fprintf(report, "kernel\t%s\t%s\n", architecture, entry->name.c_str());
  std::fprintf(report, "time\t%6.3f s as C++, %6.3f s from PTX: %s, %s\n", compared - started, now() - compared,
               c.name.c_str(), architecture);
  return true;
}

// ---- All cases. A piece of work is a case on an architecture.

struct Work {
  std::vector<Case> cases;
  Devices devices;
  int seeds;
  std::atomic<size_t>* next;  // in shared memory

  size_t size() const { return cases.size() * devices.size(); }
  const Case& case_of(size_t i) const { return cases[i / devices.size()]; }
  size_t device_of(size_t i) const { return i % devices.size(); }
};

// In a process of its own. It ends when something has failed: that may have left traces.
[[noreturn]] void work_on(const Work& work, std::FILE* report) {
  omp_set_num_threads(1);
  for (;;) {
    const size_t i = (*work.next)++;
    if (i >= work.size()) break;
    std::fprintf(report, "begin\t%zu\n", i);
    const size_t device = work.device_of(i);
    const int first_seed = static_cast<int>(device) * work.seeds;
    const bool ok = run_case(work.case_of(i), work.devices[device].get(), first_seed, work.seeds, report);
    std::fprintf(report, "end\t%zu\n", i);
    if (!ok) break;
  }
  _exit(0);
}

void work_in_processes(const Work& work, int jobs, std::FILE* report, std::vector<std::string>* failures) {
  const auto start = [&] {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) work_on(work, report);
    if (child < 0) throw std::runtime_error("no process can be started");
  };
  for (int job = 0; job < jobs; ++job) start();
  int status;
  while (waitpid(-1, &status, 0) > 0) {
    if (status != 0) failures->push_back("a process ended with status " + std::to_string(status));
    if (*work.next < work.size()) start();
  }
}

// What the processes have reported.
struct Report {
  std::map<std::string, std::set<std::string>> kernels;  // by architecture
  std::map<std::string, uint64_t> executed;
  std::set<size_t> begun;  // and not ended
};

Report read_report(std::FILE* file, Result* result) {
  Report report;
  std::rewind(file);
  char* buffer = nullptr;
  size_t capacity = 0;
  while (getline(&buffer, &capacity, file) > 0) {
    std::string line = buffer;
    line.pop_back();
    const size_t tab = line.find('\t');
    const std::string kind = line.substr(0, tab), text = line.substr(tab + 1);
    const std::string architecture = text.substr(0, text.find('\t')), rest = text.substr(text.find('\t') + 1);
    if (kind == "begin") report.begun.insert(std::stoul(text));
    if (kind == "end") report.begun.erase(std::stoul(text));
    if (kind == "failure") result->failures.push_back(text);
    if (kind == "time") result->times.push_back(text);
    if (kind == "kernel") report.kernels[architecture].insert(rest);
    if (kind == "executed") report.executed[architecture] += std::stoull(rest);
  }
  std::free(buffer);
  return report;
}

}  // namespace

Result run_cases(const Options& options) {
  Work work;
  work.seeds = options.seeds;
  work.next = new (shared_memory(sizeof(std::atomic<size_t>))) std::atomic<size_t>(0);
  for (const std::string& architecture : options.architectures)
    work.devices.push_back(std::make_unique<Device>(architecture, files_of(options.folder, architecture)));
  for (Case& c : all_cases())
    if (c.name.find(options.only) != std::string::npos) work.cases.push_back(std::move(c));
  decode_all(work.devices);

  Result result;
  result.cases = work.cases.size();
  std::FILE* const file = std::tmpfile();
  if (!file) throw std::runtime_error("no temporary file for the report");
  std::setvbuf(file, nullptr, _IOLBF, 1 << 16);  // a line is one write, whoever writes
  work_in_processes(work, options.jobs, file, &result.failures);
  Report report = read_report(file, &result);
  std::fclose(file);
  for (const size_t i : report.begun) {
    result.failures.push_back(work.case_of(i).name + ", " + work.devices[work.device_of(i)]->architecture() +
                              ": it did not end");
  }

  std::ofstream unexecuted;
  if (!options.unexecuted.empty()) unexecuted.open(options.unexecuted);
  for (const auto& device : work.devices) result.architectures.push_back({device->architecture()});
  for_entries(work.devices, [&](Device& device, Entry& entry) {
    for (ArchitectureResult& architecture : result.architectures) {
      if (architecture.name != device.architecture()) continue;
      const bool has_run = report.kernels[architecture.name].contains(entry.name);
      if (!has_run && options.only.empty())
        result.failures.push_back(architecture.name + ": no case has run " + short_name(entry));
      ++architecture.kernels;
      architecture.compared += has_run;
      architecture.executed = report.executed[architecture.name];
      const Program& program = entry.decoded();
      architecture.code += program.code.size();
      for (size_t i = 0; i < program.code.size(); ++i) {
        architecture.code_executed += program.executed[i];
        if (unexecuted.is_open() && !program.executed[i])
          unexecuted << entry.module->file << ":" << program.code[i].line << "\n";
      }
    }
  });
  return result;
}

}  // namespace diffqkv::ptx
