// ptx_check [OPTION ...]: runs the calls of all operators on the emulated device twice, by the kernels as C++ and by their
// PTX, and compares. Prints JSON: the failures, and of each architecture the kernels that there are and that have run.
//   --ptx FOLDER             has FILE.cu.ARCHITECTURE[.*].ptx
//   --architectures A,B      (default: sm_80,sm_90a)
//   --seeds N                orders of threads for each case (default: 1): on the first architecture 0, in which the lanes
//                            of a warp run together, to N - 1; on the next the next N
//   --jobs N                 processes (default: 2)
//   --only TEXT              only the cases whose name contains it; then a kernel that no case reaches is no failure
//   --unexecuted FILE        writes there the PTX line of each instruction that no thread has executed
// ptx_check --checks: runs the checks of the interpreter, and prints [{"name", "wrong": null or text}, ...].
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>

#include "interpreter_checks.h"
#include "runner.h"

namespace diffqkv::ptx {
namespace {

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

int compare(const Options& options) {
  const auto started = std::chrono::steady_clock::now();
  const Result result = run_cases(options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  std::printf("{\"cases\": %zu, \"seeds\": %d, \"seconds\": %.1f, \"architectures\": {", result.cases, options.seeds,
              seconds);
  const char* separator = "";
  for (const ArchitectureResult& a : result.architectures) {
    std::printf(
        "%s\n  \"%s\": {\"kernels\": %zu, \"compared\": %zu, \"code\": %zu, \"codeExecuted\": %zu, \"executed\": %llu}",
        separator, a.name.c_str(), a.kernels, a.compared, a.code, a.code_executed,
        static_cast<unsigned long long>(a.executed));
    separator = ",";
  }
  std::printf("},\n");
  print_list("times", result.times);
  std::printf(",\n");
  print_list("failures", result.failures);
  std::printf("}\n");
  return result.failures.empty() ? 0 : 1;
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

Options read_options(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) throw std::runtime_error(std::string(argv[i]) + " needs a value");
    given[argv[i]] = argv[i + 1];
  }
  Options options;
  const auto take = [&](const char* name, const auto& use) {
    const auto found = given.find(name);
    if (found == given.end()) return;
    use(found->second);
    given.erase(found);
  };
  take("--ptx", [&](const std::string& value) { options.folder = value; });
  take("--architectures", [&](const std::string& value) { options.architectures = split(value); });
  take("--seeds", [&](const std::string& value) { options.seeds = std::atoi(value.c_str()); });
  take("--jobs", [&](const std::string& value) { options.jobs = std::atoi(value.c_str()); });
  take("--only", [&](const std::string& value) { options.only = value; });
  take("--unexecuted", [&](const std::string& value) { options.unexecuted = value; });
  if (!given.empty()) throw std::runtime_error("there is no option " + given.begin()->first);
  if (options.folder.empty() || options.seeds < 1 || options.jobs < 1)
    throw std::runtime_error("--ptx FOLDER is needed; --seeds and --jobs are at least 1");
  return options;
}

}  // namespace
}  // namespace diffqkv::ptx

int main(int argc, char** argv) {
  using namespace diffqkv::ptx;
  setenv("DIFFQKV_EMULATED_GPU", "h200", 1);  // it allows all shared memory that a case plans with
  try {
    if (argc == 2 && std::string(argv[1]) == "--checks") return run_checks();
    return compare(read_options(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ptx_check: %s\n", error.what());
    return 2;
  }
}
