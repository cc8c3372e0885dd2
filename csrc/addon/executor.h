// One thread per open device that runs its jobs, first in, first out. A job is made on the JS thread, runs here, and is
// settled on the JS thread, so that nothing ever waits on the event loop.
//
// The event loop is kept alive only while a job is pending. When the environment goes (a worker is terminated, the
// process exits), running jobs are cancelled, queued ones dropped, and the thread is joined before Node-API handles die.
#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "model/model.h"

#if defined(__linux__) && defined(__GLIBCXX__)
// GCC 12 gave condition_variable::wait a new version, the same but for noexcept, which would be all that keeps a prebuilt
// module from systems with GCC 11's libstdc++ (RHEL 9 and its kin). Ask for the one before, which is still there.
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#endif

namespace diffqkv::addon {

struct Job {
  enum Kind { with_promise, without_promise };
  explicit Job(Napi::Env environment, Kind kind = with_promise) : env(environment) {
    if (kind == with_promise && napi_create_promise(env, &deferred, &promise) != napi_ok) throw Napi::Error::New(env);
  }

  std::function<void(Job& job)> run;             // executor thread; destroyed there
  std::function<Napi::Value(Job& job)> resolve;  // JS thread, after run; holds no JS values. Where empty: undefined
  std::shared_ptr<CancelFlag> cancel = std::make_shared<CancelFlag>(false);
  Napi::ObjectReference keep;        // what resolve needs of JS: an array to fill
  Napi::FunctionReference progress;  // (done, total), called on the JS thread

  Napi::Env env;
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;  // valid until the call that made the job returns
  std::exception_ptr error;
  Napi::ObjectReference progress_error;  // { thrown }: what the progress callback threw ends the job and is its error
};

class Executor : public std::enable_shared_from_this<Executor> {
 public:
  // What goes through the queue and comes back through the outbox. Its node in a list is made beforehand, where lack of
  // memory is an error of the call that asks, and then only moved: what ends a job, or frees memory, must not need any.
  struct Entry {
    std::unique_ptr<Job> job;      // to be run, to be settled or, where `settled`, to be let go; or null:
    std::shared_ptr<void> memory;  // to be let go
    bool settled = false;
    Job* progress_of = nullptr;  // in the outbox: of a job that still runs
    double progress_done = 0, progress_total = 0;
  };
  using Entries = std::list<Entry>;
  static Entries one_entry() { return Entries(1); }

  static std::shared_ptr<Executor> start(Napi::Env env);
  explicit Executor(Napi::Env env) : env_(env) {}

  // JS thread.
  Napi::Value submit(std::unique_ptr<Job> job);  // gives its promise
  void reject_queued(const CancelFlag* cancel);  // jobs that wait behind others need not wait to be aborted

  // Any thread.
  void close();  // runs what is queued, then ends the thread
  // Drops the reference on the executor thread.
  void release(Entries entry, std::shared_ptr<void> memory) noexcept;
  void report_progress(Job& job, int64_t done, int64_t total);

  // Cancels what runs, joins the thread; nothing is settled any more. For the end of an environment, or of the process.
  void stop_now() noexcept;
  static void stop_all_of_this_thread() noexcept;  // the executors that this JS thread started

 private:
  void loop();
  void send(Entries entry);
  void deliver();
  void settle(Entries entry);
  void call_progress(Job& job, double done, double total);
  void finish();
  void forget_environment();
  static void on_message(napi_env env, napi_value, void* context, void*);
  static void on_environment_end(void* self);

  napi_env env_;
  napi_threadsafe_function wake_ = nullptr;
  std::thread thread_;
  Executor* next_of_thread_ = nullptr;  // of those that the same JS thread has started
  std::shared_ptr<Executor> self_;      // until the thread has ended and its handles are gone

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  Entries queue_, outbox_;
  std::shared_ptr<CancelFlag> running_;
  int64_t unsettled_ = 0;  // jobs submitted whose promise is not yet settled
  bool closing_ = false;
  bool stopped_ = false;
  bool ended_ = false;
};

}  // namespace diffqkv::addon
