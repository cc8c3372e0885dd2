// Runs cases in this process, one line each.
#include <chrono>
#include <cstdio>

#include "compare.h"
#include "cuda_devices.h"
#include "device_cases.h"

namespace diffqkv::cuda {

DeviceShape device_shape() {
  static const DeviceShape shape = [] {
    cudaDeviceProp properties;
    check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    DeviceShape known;
    known.multiprocessors = properties.multiProcessorCount;
    known.shared_bytes = properties.sharedMemPerBlockOptin;
    known.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
    return known;
  }();
  return shape;
}

}  // namespace diffqkv::cuda

namespace diffqkv::driver {
namespace {

using namespace cuda;
using Clock = std::chrono::steady_clock;

#if defined(__CUDACC__)
constexpr const char* kKind = "cuda";
#else
constexpr const char* kKind = "emulated";
#endif

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void print_line(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

std::string device_line(const DeviceInfo& info) {
  const DeviceShape shape = device_shape();
  Fields fields = {{"part", "\"device\""},
                   {"kind", json_text(kKind)},
                   {"name", json_text(info.name)},
                   {"computeCapability", json_text(info.compute_capability)},
                   {"multiprocessors", std::to_string(shape.multiprocessors)},
                   {"sharedBytes", std::to_string(shape.shared_bytes)},
                   {"l2Bytes", std::to_string(shape.l2_bytes)},
                   {"memoryBytes", std::to_string(info.total_memory)}};
  for (const auto& [name, value] : info.details) {
    if (name == "driver" || name == "runtime") fields.push_back({name, json_text(value)});
  }
  fields.push_back({"tolerances", tolerances_json()});
  return json_object(fields);
}

struct Ended {
  Outcome outcome;
  Fields details;
  bool device_lost = false;
};

Ended run_case(const Case& c) {
  try {
    const Result result = c.run();
    Ended ended = {result.wrong.empty() ? Outcome::ok : Outcome::failed, result.details};
    if (!result.wrong.empty()) ended.details.insert(ended.details.begin(), {"wrong", json_text(result.wrong)});
    return ended;
  } catch (const Skipped& skipped) {
    return {Outcome::skipped, {{"wrong", json_text(skipped.what())}}};
  } catch (const std::exception& error) {
    // After a fault every call of this process answers with the same error.
    const bool lost = cudaDeviceSynchronize() != cudaSuccess;
    return {lost ? Outcome::crashed : Outcome::failed, {{"wrong", json_text(error.what())}}, lost};
  }
}

}  // namespace

std::vector<Case> driver_cases(const Options& options) {
  std::vector<Case> cases;
  for (Case& c : options.part == Part::correctness ? correctness_cases(options) : timing_cases(options)) {
    if (c.name.find(options.only) != std::string::npos) cases.push_back(std::move(c));
  }
  // After the first case, so that cases come before them and after them.
  std::vector<Case> broken;
  for (const std::string& kind : options.breaks) broken.push_back(broken_case(kind));
  cases.insert(cases.begin() + (cases.empty() ? 0 : 1), broken.begin(), broken.end());
  return cases;
}

Status run_worker(const Options& options, size_t from, bool announce) {
  const Clock::time_point start = Clock::now();
  const DeviceInfo info = device_infos()[0];
  if (!info.usable) {
    std::fprintf(stderr, "gpu_driver: no usable GPU: %s\n", info.reason.c_str());
    return kNoDevice;
  }
  use_gpu(0);
  print_line(device_line(info));
  const std::vector<Case> cases = driver_cases(options);
  Counts counts;
  bool lost = false;
  for (size_t i = from; i < cases.size(); ++i) {
    if (lost || (!announce && options.seconds > 0 && seconds_since(start) >= options.seconds)) {
      const char* why = lost ? "the device is lost" : "the time limit of the run";
      print_line(case_line(options, cases[i].name, Outcome::skipped, 0, {{"wrong", json_text(why)}}));
      ++counts[Outcome::skipped];
      continue;
    }
    if (announce) print_line("start " + std::to_string(i));
    const Clock::time_point case_start = Clock::now();
    const Ended ended = run_case(cases[i]);
    print_line(case_line(options, cases[i].name, ended.outcome, seconds_since(case_start), ended.details));
    ++counts[ended.outcome];
    lost = ended.device_lost;
    if (lost && announce) return kDeviceLost;
  }
  if (announce) return kAllOk;
  print_line(summary_line(counts, seconds_since(start)));
  return status_of(counts);
}

}  // namespace diffqkv::driver
