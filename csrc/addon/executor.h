// One thread per open device that runs its jobs, first in, first out. A job is made on the JS thread, runs here, and is
// settled on the JS thread, so that nothing ever waits on the event loop.
//
// The event loop is kept alive only while a job is pending. When the environment goes (a worker is terminated, the
// process exits), running jobs are cancelled, queued ones dropped, and the thread is joined before Node-API handles die.
#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "model/model.h"

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
  static std::shared_ptr<Executor> start(Napi::Env env);
  explicit Executor(Napi::Env env) : env_(env) {}

  // JS thread.
  Napi::Value submit(std::unique_ptr<Job> job);  // gives its promise
  void reject_queued(const CancelFlag* cancel);  // jobs that wait behind others need not wait to be aborted

  // Any thread.
  void close();                                // runs what is queued, then ends the thread
  void release(std::shared_ptr<void> memory);  // drops the reference on the executor thread
  void report_progress(Job& job, int64_t done, int64_t total);

  // Cancels what runs, joins the thread; nothing is settled any more. For the end of an environment, or of the process.
  void stop_now() noexcept;
  static void stop_all_of_this_thread() noexcept;  // the executors that this JS thread started

 private:
  struct Message {
    std::unique_ptr<Job> job;  // done; or null:
    Job* progress_of = nullptr;
    double done = 0, total = 0;
  };
  struct Entry {
    std::unique_ptr<Job> job;  // or null:
    std::shared_ptr<void> memory;
  };

  void loop();
  void send(Message message);
  void deliver();
  void settle(Job& job);
  void call_progress(Job& job, double done, double total);
  void finish();
  void forget_environment();
  static void on_message(napi_env env, napi_value, void* context, void*);
  static void on_environment_end(void* self);

  napi_env env_;
  napi_threadsafe_function wake_ = nullptr;
  std::thread thread_;
  std::shared_ptr<Executor> self_;  // until the thread has ended and its handles are gone

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<Entry> queue_;
  std::deque<Message> outbox_;
  std::shared_ptr<CancelFlag> running_;
  int64_t unsettled_ = 0;  // jobs submitted whose promise is not yet settled
  bool closing_ = false;
  bool stopped_ = false;
  bool ended_ = false;
};

}  // namespace diffqkv::addon
