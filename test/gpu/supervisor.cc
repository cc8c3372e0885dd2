// Runs cases in worker processes: a case that hangs is killed, one that crashes takes only its worker along, and a fresh
// worker goes on at the next case. Also the lines that the program prints.
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace diffqkv::driver {
namespace {

using Clock = std::chrono::steady_clock;

// What a worker may take to open the device, and a killed one to end: a driver that frees a hung GPU needs seconds.
constexpr double kStartSeconds = 60, kEndSeconds = 10;
constexpr double kStoppedSeconds = 2;  // and if this program is to end itself

volatile std::sig_atomic_t terminated = 0;
void on_terminate(int) { terminated = 1; }

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

const char* outcome_name(Outcome outcome) {
  constexpr const char* kNames[] = {"ok", "FAILED", "TIMEOUT", "CRASHED", "SKIPPED"};
  return kNames[static_cast<size_t>(outcome)];
}

// A worker's process and the pipe from its stdout.
class Worker {
 public:
  Worker(std::vector<std::string> command, size_t from) {
    command.push_back("--worker-from");
    command.push_back(std::to_string(from));
    std::vector<char*> arguments;
    for (std::string& argument : command) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    std::fflush(stdout);
    process_ = fork();
    if (process_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(ends[1], STDOUT_FILENO);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    close(ends[1]);
    pipe_ = ends[0];
  }
  ~Worker() {
    if (pipe_ >= 0) close(pipe_);
  }

  // The next line of the worker's output. False at its end, or with *timed_out when `deadline` has come.
  bool read_line(Clock::time_point deadline, std::string* line, bool* timed_out) {
    for (;;) {
      const size_t end = buffer_.find('\n');
      if (end != std::string::npos) {
        *line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return true;
      }
      const double left = -seconds_since(deadline);
      *timed_out = left <= 0 || terminated != 0;
      if (*timed_out) return false;
      pollfd poll_entry = {pipe_, POLLIN, 0};
      if (poll(&poll_entry, 1, static_cast<int>(std::ceil(std::min(left, 1000.0) * 1000))) <= 0) continue;
      char bytes[4096];
      const ssize_t count = read(pipe_, bytes, sizeof(bytes));
      if (count == 0 || (count < 0 && errno != EINTR)) return false;
      if (count > 0) buffer_.append(bytes, static_cast<size_t>(count));
    }
  }

  void kill() const { ::kill(process_, SIGKILL); }
  // The status that waitpid gives, or -1 if the process does not end in time; then it is left behind.
  int wait() const {
    const Clock::time_point start = Clock::now();
    int status = 0;
    while (waitpid(process_, &status, WNOHANG) == 0) {
      if (seconds_since(start) > (terminated != 0 ? kStoppedSeconds : kEndSeconds)) return -1;
      usleep(5000);
    }
    return status;
  }

 private:
  pid_t process_ = -1;
  int pipe_ = -1;
  std::string buffer_;
};

std::string end_text(int status) {
  if (status == -1) return "the worker process does not end";
  if (WIFSIGNALED(status)) return std::string("the worker process ended by ") + strsignal(WTERMSIG(status));
  return "the worker process ended with status " + std::to_string(WEXITSTATUS(status));
}

class Supervisor {
 public:
  Supervisor(const Options& options, const std::vector<std::string>& command) : options_(options), command_(command) {
    for (const Case& c : driver_cases(options)) names_.push_back(c.name);
  }

  Status run() {
    while (next_ < names_.size() && !time_is_up()) {
      if (!run_one_worker()) return kNoDevice;
    }
    while (next_ < names_.size()) record(Outcome::skipped, 0, "the time limit of the run");
    std::puts(summary_line(counts_, seconds_since(start_)).c_str());
    return status_of(counts_);
  }

 private:
  bool time_is_up() const {
    return terminated != 0 || (options_.seconds > 0 && seconds_since(start_) >= options_.seconds);
  }
  Clock::time_point deadline_in(double seconds) const {
    const auto after = [](Clock::time_point from, double s) {
      return from + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
    };
    const Clock::time_point at = after(Clock::now(), seconds);
    return options_.seconds > 0 ? std::min(at, after(start_, options_.seconds)) : at;
  }

  // Of the next case, which is over.
  void record(Outcome outcome, double seconds, const std::string& why) {
    std::puts(case_line(options_, names_[next_], outcome, seconds, {{"wrong", json_text(why)}}).c_str());
    std::fflush(stdout);
    ++counts_[outcome];
    ++next_;
  }

  // Forwards a worker's line, and counts it if it is a case's.
  void forward(const std::string& line) {
    const bool describes_device = line.rfind("{\"part\": \"device\"", 0) == 0;
    if (describes_device && device_shown_) return;
    device_shown_ |= describes_device;
    std::puts(line.c_str());
    std::fflush(stdout);
    if (describes_device) return;
    Outcome outcome = Outcome::crashed;
    for (const Outcome o : {Outcome::ok, Outcome::failed, Outcome::skipped}) {
      if (line.find(std::string("\"outcome\": \"") + outcome_name(o) + '"') != std::string::npos) outcome = o;
    }
    ++counts_[outcome];
    ++next_;
  }

  // False if there is no device.
  bool run_one_worker() {
    const size_t first = next_;
    Worker worker(command_, first);
    bool in_case = false, timed_out = false;
    Clock::time_point case_start = Clock::now(), deadline = deadline_in(kStartSeconds);
    std::string line;
    while (worker.read_line(deadline, &line, &timed_out)) {
      if (line.rfind("start ", 0) == 0) {
        in_case = true;
        case_start = Clock::now();
        std::fprintf(stderr, "%zu/%zu %s\n", next_ + 1, names_.size(), names_[next_].c_str());
      } else if (line.rfind("{", 0) == 0) {
        forward(line);
        in_case = false;
      } else {
        std::fprintf(stderr, "%s\n", line.c_str());
      }
      deadline = deadline_in(options_.case_seconds);
    }
    if (timed_out) worker.kill();
    const int status = worker.wait();
    const double seconds = in_case ? seconds_since(case_start) : 0;
    if (timed_out) {
      if (time_is_up()) return true;  // the case is among those that are skipped
      record(Outcome::timeout, seconds, in_case ? "the time limit of a case" : "the device does not open");
      return true;
    }
    const int code = status != -1 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (code == kNoDevice) return false;
    const bool as_it_should = !in_case && (next_ == names_.size() || (code == kDeviceLost && next_ > first));
    if (!as_it_should) record(Outcome::crashed, seconds, end_text(status));
    return true;
  }

  const Options& options_;
  const std::vector<std::string>& command_;
  const Clock::time_point start_ = Clock::now();
  std::vector<std::string> names_;
  size_t next_ = 0;
  bool device_shown_ = false;
  Counts counts_;
};

}  // namespace

std::string json_text(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 32) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      out += code;
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

std::string json_number(double number) {
  if (!std::isfinite(number)) return "null";
  char text[40];
  std::snprintf(text, sizeof(text), "%.6g", number);
  return text;
}

std::string json_object(const Fields& fields) {
  std::string out = "{";
  for (const auto& [name, value] : fields) {
    if (out.size() > 1) out += ", ";
    out += json_text(name) + ": " + value;
  }
  return out + "}";
}

std::string case_line(const Options& options, const std::string& name, Outcome outcome, double seconds,
                      const Fields& details) {
  Fields fields = {{"part", options.part == Part::correctness ? "\"correctness\"" : "\"timing\""},
                   {"case", json_text(name)},
                   {"outcome", json_text(outcome_name(outcome))},
                   {"seconds", json_number(seconds)}};
  fields.insert(fields.end(), details.begin(), details.end());
  return json_object(fields);
}

std::string summary_line(Counts counts, double seconds) {
  Fields fields = {{"part", "\"summary\""}};
  for (size_t i = 0; i < 5; ++i)
    fields.push_back({outcome_name(static_cast<Outcome>(i)), std::to_string(counts.of[i])});
  fields.push_back({"seconds", json_number(seconds)});
  return json_object(fields);
}

Status status_of(Counts counts) {
  if (counts[Outcome::failed] + counts[Outcome::timeout] + counts[Outcome::crashed] > 0) return kSomeFailed;
  return counts[Outcome::skipped] > 0 ? kIncomplete : kAllOk;
}

Status supervise(const Options& options, const std::vector<std::string>& worker) {
  std::signal(SIGTERM, on_terminate);
  std::signal(SIGINT, on_terminate);
  return Supervisor(options, worker).run();
}

}  // namespace diffqkv::driver
