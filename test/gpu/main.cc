// gpu_driver: every operator's kernels on this machine's GPU, checked and timed, without Node. gpu_driver_emulated is the
// same program on the emulated device.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "driver.h"

namespace diffqkv::driver {
namespace {

constexpr const char* kUsageText =
    R"(gpu_driver correctness|timings|list [--shapes small|sigma|all] [--only SUBSTRING] [--seconds N]
           [--case-seconds N] [--break hang|crash|abort|fail]... [--in-process]
           [--emulation | --no-emulation]

correctness: every operator against plain float32 kernels, at small shapes also against the emulation of this device.
timings:     bandwidth, launches, operators and whole decode steps; the small shapes only show that the program works.
list:        the names of the cases of both.

Prints one JSON object a line on stdout as each case ends: {"part", "case", "outcome", "seconds", ...}. "outcome" is ok,
FAILED, TIMEOUT, CRASHED, or SKIPPED for lack of time or of device memory. The first line describes the device, the last
one is a summary.

--shapes         small, or those of Sigma-1.5B and Sigma-10B (default: all; for timings sigma)
--seconds        limit of the whole run; the cases that are left then are SKIPPED
--case-seconds   limit of a case (default 20); one that takes longer is killed and is a TIMEOUT
--break          adds a case that hangs, that ends in a device error, that ends the process, or whose result is wrong
--in-process     runs the cases in this process, for compute-sanitizer: without time limits of cases
--emulation      compares small calls with the emulation, and looks for writes past an end (default on a GPU)
--no-emulation   compares with the plain kernels alone (default on the emulated device)

Exit status: 0 all cases are ok; 1 some are not; 2 usage; 3 no usable GPU; 4 nothing failed, but cases were skipped.
)";

struct CommandLine {
  Options options;
  bool list = false;
  std::optional<size_t> worker_from;  // the hidden option --worker-from of a worker process
};

std::optional<double> positive(const char* text) {
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  if (*text == '\0' || *end != '\0' || !(number > 0)) return std::nullopt;
  return number;
}

// Empty, or what is wrong.
std::string parse(const std::vector<std::string>& arguments, CommandLine* line) {
  Options& options = line->options;
  if (arguments.empty()) return "name a part: correctness, timings or list";
  if (arguments[0] == "list") {
    line->list = true;
  } else if (arguments[0] == "timings") {
    options.part = Part::timings;
    options.small_shapes = false;
  } else if (arguments[0] != "correctness") {
    return "unknown part '" + arguments[0] + "': name correctness, timings or list";
  }
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    if (name == "--in-process") {
      options.in_process = true;
      continue;
    }
    if (name == "--emulation" || name == "--no-emulation") {
      options.emulation = name == "--emulation";
      continue;
    }
    if (i + 1 == arguments.size()) return "unknown option '" + name + "', or its value is missing";
    const std::string& value = arguments[++i];
    const std::optional<double> number = positive(value.c_str());
    if (name == "--shapes") {
      if (value != "small" && value != "sigma" && value != "all") return "--shapes is small, sigma or all";
      options.small_shapes = value != "sigma";
      options.sigma_shapes = value != "small";
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--break") {
      if (value != "hang" && value != "crash" && value != "abort" && value != "fail")
        return "--break is hang, crash, abort or fail";
      options.breaks.push_back(value);
    } else if (name == "--seconds" || name == "--case-seconds") {
      if (!number) return name + " must be a number above 0";
      (name == "--seconds" ? options.seconds : options.case_seconds) = *number;
    } else if (name == "--worker-from") {
      line->worker_from = static_cast<size_t>(std::strtoull(value.c_str(), nullptr, 10));
    } else {
      return "unknown option '" + name + "'";
    }
  }
  return "";
}

Status list(Options options) {
  for (const Part part : {Part::correctness, Part::timings}) {
    options.part = part;
    for (const Case& c : driver_cases(options))
      std::printf("%s: %s\n", part == Part::correctness ? "correctness" : "timing", c.name.c_str());
  }
  return kAllOk;
}

Status run(const std::vector<std::string>& arguments) {
  CommandLine line;
  const std::string wrong = parse(arguments, &line);
  if (!wrong.empty()) {
    std::fprintf(stderr, "gpu_driver: %s\n\n%s", wrong.c_str(), kUsageText);
    return kUsage;
  }
  if (line.list) return list(line.options);
  if (line.worker_from) return run_worker(line.options, *line.worker_from, true);
  if (driver_cases(line.options).empty()) {
    std::fprintf(stderr, "gpu_driver: no case's name contains '%s'\n", line.options.only.c_str());
    return kUsage;
  }
  if (line.options.in_process) return run_worker(line.options, 0, false);
  std::vector<std::string> worker = {"/proc/self/exe"};
  worker.insert(worker.end(), arguments.begin(), arguments.end());
  return supervise(line.options, worker);
}

}  // namespace
}  // namespace diffqkv::driver

int main(int argc, char** argv) {
  if (argc == 2 && (std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "-h") == 0)) {
    std::fputs(diffqkv::driver::kUsageText, stdout);
    return 0;
  }
  return diffqkv::driver::run({argv + 1, argv + argc});
}
