// gpu_driver's parts: what a case is, and who runs it. main.cc and supervisor.cc are host code; the rest is compiled for
// the device that the program runs on, a GPU or the emulated one.
#pragma once

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace diffqkv::driver {

enum class Part { correctness, timings };

struct Options {
  Part part = Part::correctness;
  bool small_shapes = true, sigma_shapes = true;
  std::string only;                 // part of a case's name; empty: all cases
  double seconds = 0;               // for the whole run; 0: no limit
  double case_seconds = 20;         // for a case
  std::vector<std::string> breaks;  // cases that go wrong deliberately
  bool in_process = false;          // no worker process: for tools that watch one process
  std::optional<bool> emulation;    // small calls are compared with the emulation too; by default on a GPU
};

// The members of a JSON object: names and JSON texts.
using Fields = std::vector<std::pair<std::string, std::string>>;
std::string json_text(const std::string& text);
std::string json_number(double number);
std::string json_object(const Fields& fields);

struct Result {
  std::string wrong;  // empty if all is well
  Fields details;
};

// Thrown by a case that cannot run on this device.
struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Case {
  std::string name;
  std::function<Result()> run;
};

// Exit statuses of the program; a worker has one more.
enum Status { kAllOk = 0, kSomeFailed = 1, kUsage = 2, kNoDevice = 3, kIncomplete = 4, kDeviceLost = 5 };

// The cases in the order in which they run. Touches no device.
std::vector<Case> driver_cases(const Options& options);

// Runs the cases from `from` on in this process and prints a line for each. With `announce`, it prints "start INDEX"
// before a case. Returns kDeviceLost after a case that has made the device unusable for this process.
Status run_worker(const Options& options, size_t from, bool announce);

// Runs all cases in worker processes and prints their lines, those of cases that hang, crash or are skipped, and the
// summary. `worker`: the command of a worker, without the index to start from.
Status supervise(const Options& options, const std::vector<std::string>& worker);

// The line of a case, and the summary of how many ended how.
enum class Outcome { ok, failed, timeout, crashed, skipped };
std::string case_line(const Options& options, const std::string& name, Outcome outcome, double seconds,
                      const Fields& details);
struct Counts {
  size_t of[5] = {};
  size_t& operator[](Outcome outcome) { return of[static_cast<size_t>(outcome)]; }
};
std::string summary_line(Counts counts, double seconds);
Status status_of(Counts counts);

}  // namespace diffqkv::driver
