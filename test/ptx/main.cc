// ptx_check [OPTION ...]: runs the calls of all operators on the emulated device twice, by the kernels as C++ and by their
// PTX, and compares. Prints JSON: failures, and for each architecture how many kernels there are and were run.
//   --ptx FOLDER             has FILE.cu.ARCHITECTURE[.*].ptx
//   --architectures A,B      (default: sm_80,sm_90a)
//   --seeds N                orders of threads for each architecture (default: 1): 0, in which lanes run together, to
//                            N - 1, and for the next architecture the next N
//   --jobs N                 processes (default: 2)
//   --checks                 runs the checks of the interpreter instead, and prints [{"name", "wrong": null or text}, ...]
//   --only TEXT              the calls whose name contains it; then kernels that no call reaches are no failure
#include <omp.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>

#include "cases.h"
#include "comparison.h"
#include "executor.h"
#include "interpreter_checks.h"

namespace diffqkv::ptx {
namespace {

struct Options {
  std::string folder, only;
  std::vector<std::string> architectures = {"sm_80", "sm_90a"};
  int seeds = 1, jobs = 2;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<std::string> files_of(const std::string& folder, const std::string& architecture) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.ends_with(".ptx") && name.find(".cu." + architecture + ".") != std::string::npos)
      files.push_back(entry.path());
  }
  return files;
}

// What the processes share: the next piece of work, a case on an architecture.
struct Shared {
  std::atomic<size_t> next;
};

std::string run_call(emulated::Call& call, const Shape& shape) {
  try {
    emulated::CallContext context(shape.multiprocessors, shape.shared_bytes);
    call.enqueue(context);
    context.finish();
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

// Runs a case: as C++, and from PTX in all orders. Returns whether all is well. Reports failures, and the kernels that
// have run and were found right.
bool run_case(const Case& c, Device* device, int first_seed, int seeds, std::FILE* report) {
  const double started = now();
  const auto fail = [&](const std::string& where, const std::string& wrong) {
    std::fprintf(report, "failure\t%s, %s: %s\n", c.name.c_str(), where.c_str(), wrong.c_str());
    return false;
  };
  emulated::executor() = nullptr;
  Contents expected;
  {
    emulated::Call call = c.make();
    const std::string wrong = run_call(call, c.shape);
    if (!wrong.empty()) return fail("as C++", wrong);
    expected = contents_of(call);
  }
  const double compared = now();
  device->executed().clear();
  const uint64_t before = device->instructions();
  for (int seed = first_seed; seed < first_seed + seeds; ++seed) {
    emulated::executor() = [&](const emulated::KernelLaunch& launch) {
      return device->run(launch, static_cast<uint64_t>(seed));
    };
    emulated::Call call = c.make();
    std::string wrong = run_call(call, c.shape);
    if (wrong.empty()) wrong = difference(call, contents_of(call), expected);
    if (!wrong.empty()) return fail(device->architecture() + ", seed " + std::to_string(seed), wrong);
  }
  const char* const architecture = device->architecture().c_str();
  std::fprintf(report, "instructions\t%s\t%llu\n", architecture,
               static_cast<unsigned long long>(device->instructions() - before));
  for (const Entry* entry : device->executed())
    std::fprintf(report, "kernel\t%s\t%s\n", architecture, entry->name.c_str());
  std::fprintf(report, "time\t%6.3f as C++, %6.3f from PTX\t%s, %s\n", compared - started, now() - compared,
               c.name.c_str(), architecture);
  return true;
}

std::string json_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + '"';
}

void print_list(const char* name, const std::vector<std::string>& items) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < items.size(); ++i) std::printf("%s\n  %s", i ? "," : "", json_text(items[i]).c_str());
  std::printf("]");
}

int run(const Options& options) {
  const double started = now();
  std::vector<std::unique_ptr<Device>> devices;
  for (const std::string& architecture : options.architectures)
    devices.push_back(std::make_unique<Device>(architecture, files_of(options.folder, architecture)));
  std::vector<Case> cases;
  for (Case& c : all_cases())
    if (c.name.find(options.only) != std::string::npos) cases.push_back(std::move(c));

  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory to share");
  Shared* const shared = new (memory) Shared{};
  const size_t num_works = cases.size() * devices.size();
  std::FILE* const report = std::tmpfile();
  if (!report) throw std::runtime_error("no temporary file for the report");
  std::setvbuf(report, nullptr, _IOLBF, 1 << 16);  // a line is one write, whoever writes
  // A process works until something is wrong, and then makes place for another: what failed may have left traces.
  const auto start = [&] {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child != 0) return;
    omp_set_num_threads(1);
    bool ok = true;
    for (size_t i = shared->next++; ok && i < num_works; i = ok ? shared->next++ : 0) {
      std::fprintf(report, "begin\t%zu\n", i);
      const size_t d = i % devices.size();
      ok = run_case(cases[i / devices.size()], devices[d].get(), static_cast<int>(d) * options.seeds, options.seeds,
                    report);
      std::fprintf(report, "end\t%zu\n", i);
    }
    _exit(0);
  };
  for (int job = 0; job < options.jobs; ++job) start();
  int status;
  std::vector<std::string> failures, times;
  while (waitpid(-1, &status, 0) > 0) {
    if (status != 0) failures.push_back("a process ended with status " + std::to_string(status));
    if (shared->next < num_works) start();
  }

  std::map<std::string, std::set<std::string>> executed;
  std::map<std::string, uint64_t> instructions;
  std::set<std::string> begun;
  std::rewind(report);
  char* line = nullptr;
  size_t capacity = 0;
  while (getline(&line, &capacity, report) > 0) {
    std::string text = line;
    if (text.back() == '\n') text.pop_back();
    const size_t tab = text.find('\t'), second = text.find('\t', tab + 1);
    const std::string kind = text.substr(0, tab), first = text.substr(tab + 1, second - tab - 1);
    if (kind == "begin") begun.insert(first);
    if (kind == "end") begun.erase(first);
    if (kind == "failure") failures.push_back(text.substr(tab + 1));
    if (kind == "time") times.push_back(text.substr(tab + 1));
    if (kind == "kernel") executed[first].insert(text.substr(second + 1));
    if (kind == "instructions") instructions[first] += std::stoull(text.substr(second + 1));
  }
  std::free(line);
  for (const std::string& i : begun) {
    const size_t work = std::stoul(i);
    failures.push_back(cases[work / devices.size()].name + ", " + devices[work % devices.size()]->architecture() +
                       ": it did not end");
  }

  std::printf("{\"cases\": %zu, \"seeds\": %d, \"architectures\": {", cases.size(), options.seeds);
  for (size_t d = 0; d < devices.size(); ++d) {
    const std::string& architecture = devices[d]->architecture();
    size_t kernels = 0;
    for (const auto& module : devices[d]->modules()) {
      for (const Entry& entry : module->entries) {
        ++kernels;
        if (options.only.empty() && !executed[architecture].contains(entry.name))
          failures.push_back(architecture + ": no case has run " + short_name(entry));
      }
    }
    std::printf("%s\n  \"%s\": {\"kernels\": %zu, \"compared\": %zu, \"instructions\": %llu}", d ? "," : "",
                architecture.c_str(), kernels, executed[architecture].size(),
                static_cast<unsigned long long>(instructions[architecture]));
  }
  std::printf("},\n\"seconds\": %.1f,\n", now() - started);
  print_list("times", times);
  std::printf(",\n");
  print_list("failures", failures);
  std::printf("}\n");
  return failures.empty() ? 0 : 1;
}

int run_checks() {
  bool failed = false;
  const char* separator = "[";
  std::vector<check::Check> checks = instruction_checks();
  for (const auto& more : {warp_checks(), fault_checks()}) checks.insert(checks.end(), more.begin(), more.end());
  for (const check::Check& check : checks) {
    std::string wrong;
    try {
      wrong = check.run();
    } catch (const std::exception& error) {
      wrong = std::string("it threw: ") + error.what();
    }
    failed |= !wrong.empty();
    std::printf("%s\n  {\"name\": %s, \"wrong\": %s}", separator, json_text(check.name).c_str(),
                wrong.empty() ? "null" : json_text(wrong).c_str());
    separator = ",";
  }
  std::printf("\n]\n");
  return failed ? 1 : 0;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

}  // namespace
}  // namespace diffqkv::ptx

int main(int argc, char** argv) {
  diffqkv::ptx::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--ptx") options.folder = value;
    if (name == "--architectures") options.architectures = diffqkv::ptx::split(value);
    if (name == "--seeds") options.seeds = std::atoi(value.c_str());
    if (name == "--jobs") options.jobs = std::atoi(value.c_str());
    if (name == "--only") options.only = value;
  }
  try {
    if (argc == 2 && std::string(argv[1]) == "--checks") return diffqkv::ptx::run_checks();
    return diffqkv::ptx::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ptx_check: %s\n", error.what());
    return 2;
  }
}
