// One thread per open device, which runs its jobs in the order of submission. A job is created on
// the JS thread, runs on the executor thread, and is settled on the JS thread. The event loop never
// blocks.
//
// The event loop is kept alive only while a job is pending. When the environment ends (a worker is
// terminated, the process exits), the running job is canceled, queued jobs are dropped, and the
// thread is joined before Node-API handles become invalid.
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
// GCC 12 added a new symbol version of condition_variable::wait, which differs only in noexcept.
// Link to the old version, which newer libraries still have. Otherwise a prebuilt module would not
// load with the libstdc++ of GCC 11 (RHEL 9).
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

  // Called and destroyed on the executor thread.
  std::function<void(Job& job)> run;
  // Called on the JS thread, after run. Holds no JS values. If empty, the promise resolves to
  // undefined.
  std::function<Napi::Value(Job& job)> resolve;
  std::shared_ptr<CancelFlag> cancel = std::make_shared<CancelFlag>(false);
  Napi::ObjectReference keep;        // a JS object that resolve needs, such as an array to fill
  Napi::FunctionReference progress;  // (done, total), called on the JS thread

  Napi::Env env;
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;  // valid until the call that made the job returns
  std::exception_ptr error;
  // { thrown }: an exception of the progress callback. It ends the job and rejects its promise.
  Napi::ObjectReference progress_error;
};

class Executor : public std::enable_shared_from_this<Executor> {
 public:
  // An element of the queue and of the outbox. Its list node is allocated in advance, so that lack
  // of memory is an error of the call, and is then only moved: ending a job and freeing memory must
  // not allocate.
  struct Entry {
    std::unique_ptr<Job> job;      // to run, to settle or, if `settled`, to destroy; or null
    std::shared_ptr<void> memory;  // to free
    bool settled = false;
    Job* progress_of = nullptr;  // in the outbox: a job that still runs
    double progress_done = 0;
    double progress_total = 0;
  };
  using Entries = std::list<Entry>;
  static Entries one_entry() { return Entries(1); }

  static std::shared_ptr<Executor> start(Napi::Env env);
  explicit Executor(Napi::Env env) : env_(env) {}

  // JS thread.
  Napi::Value submit(std::unique_ptr<Job> job);  // returns its promise
  void reject_queued(const CancelFlag* cancel);  // rejects the queued jobs of this flag at once

  // Any thread.
  void close();  // ends the thread after the queued jobs
  // Frees `memory` on the executor thread.
  void release(Entries entry, std::shared_ptr<void> memory) noexcept;
  void report_progress(Job& job, int64_t done, int64_t total);

  // Cancels the running job and joins the thread. Later nothing is settled. For the end of the
  // environment or of the process.
  void stop_now() noexcept;
  static void stop_all_of_this_thread() noexcept;  // all executors that this JS thread started

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
  Executor* next_of_thread_ = nullptr;  // list of the executors that this JS thread started
  std::shared_ptr<Executor> self_;      // reset when the thread has ended

  std::mutex mutex_;  // guards all members below
  std::condition_variable changed_;
  Entries queue_;
  Entries outbox_;
  std::shared_ptr<CancelFlag> running_;
  int64_t unsettled_ = 0;  // number of submitted jobs whose promise is pending
  bool closing_ = false;
  bool stopped_ = false;
  bool ended_ = false;
};

}  // namespace diffqkv::addon
