#include "addon/executor.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <utility>

#include "addon/convert.h"

namespace diffqkv::addon {
namespace {

// The executors started by this JS thread, for all its environments. A raw pointer: a thread-local
// object with a destructor must be registered with glibc, which aborts if it cannot allocate.
constinit thread_local Executor* first_of_this_thread = nullptr;

// The first access to thread-local data allocates, and glibc aborts if that fails. Access it here,
// after checking that memory is available.
void prepare_thread() {
  ::operator delete(::operator new (size_t{64} << 10));
  static_cast<Executor* volatile&>(first_of_this_thread) = nullptr;
}

}  // namespace

std::shared_ptr<Executor> Executor::start(Napi::Env env) {
  auto self = std::make_shared<Executor>(env);
  napi_value name;
  if (napi_create_string_utf8(env, "diffqkv executor", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, self.get(), on_message,
                                      &self->wake_) != napi_ok) {
    throw Napi::Error::New(env);
  }
  napi_unref_threadsafe_function(env, self->wake_);
  try {
    self->thread_ = std::thread(&Executor::loop, self.get());
  } catch (const std::exception& error) {
    napi_release_threadsafe_function(self->wake_, napi_tsfn_abort);
    fail(ErrorCode::out_of_memory, "cannot start a thread for the device: %s", error.what());
  }
  // Added after the thread-safe function, so that the hook of that function runs after this one.
  napi_add_env_cleanup_hook(env, on_environment_end, self.get());
  self->self_ = self;
  self->next_of_thread_ = std::exchange(first_of_this_thread, self.get());
  return self;
}

Napi::Value Executor::submit(std::unique_ptr<Job> job) {
  Napi::Value promise(env_, job->promise);
  Entries entry = one_entry();
  entry.front().job = std::move(job);
  {
    std::lock_guard lock(mutex_);
    if (closing_ || stopped_) fail(ErrorCode::disposed, "the device is disposed");
    queue_.splice(queue_.end(), entry);
    if (++unsettled_ == 1) napi_ref_threadsafe_function(env_, wake_);
  }
  changed_.notify_one();
  return promise;
}

void Executor::release(Entries entry, std::shared_ptr<void> memory) noexcept {
  entry.front().memory = std::move(memory);
  {
    std::lock_guard lock(mutex_);
    if (!ended_ && !stopped_) queue_.splice(queue_.end(), entry);
  }
  changed_.notify_one();
}

void Executor::close() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_one();
}

void Executor::report_progress(Job& job, int64_t done, int64_t total) {
  if (job.progress.IsEmpty()) return;
  Entries entry = one_entry();
  entry.front().progress_of = &job;
  entry.front().progress_done = static_cast<double>(done);
  entry.front().progress_total = static_cast<double>(total);
  send(std::move(entry));
}

void Executor::send(Entries entry) {
  std::lock_guard lock(mutex_);
  outbox_.splice(outbox_.end(), entry);
  // After stop_now nothing is delivered; the outbox is destroyed with this object.
  if (!stopped_ && outbox_.size() == 1) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void Executor::loop() {
  bool prepared = false;
  std::unique_lock lock(mutex_);
  for (;;) {
    // After close() the thread runs until all jobs are settled, because settled jobs are destroyed
    // here.
    changed_.wait(lock, [this] { return stopped_ || !queue_.empty() || (closing_ && unsettled_ == 0); });
    if (stopped_ || queue_.empty()) break;
    Entries entry;
    entry.splice(entry.end(), queue_, queue_.begin());
    const bool runs = entry.front().job && !entry.front().settled;
    if (runs) running_ = entry.front().job->cancel;
    lock.unlock();
    if (runs) {
      Job& job = *entry.front().job;
      try {
        if (!prepared) prepare_thread();
        prepared = true;
        if (job.cancel->load()) fail(ErrorCode::aborted, "the call was aborted before it began");
        job.run(job);
      } catch (...) {
        job.error = std::current_exception();
      }
      job.run = nullptr;  // here, so that memory it was the last to hold is freed on this thread
      send(std::move(entry));
    }
    entry.clear();
    lock.lock();
    running_.reset();
  }
#ifdef __GLIBC__
  // Returns the memory of the closed device to the system. glibc would keep it in the arena of this
  // thread, and the thread of the next device would use another arena.
  lock.unlock();
  malloc_trim(0);
  lock.lock();
#endif
  ended_ = true;
  if (!stopped_) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void Executor::on_message(napi_env env, napi_value, void* context, void*) {
  if (env != nullptr) static_cast<Executor*>(context)->deliver();
}

void Executor::deliver() {
  Napi::HandleScope scope(env_);
  auto self = shared_from_this();
  Entries entries;
  bool ended;
  {
    std::lock_guard lock(mutex_);
    entries.swap(outbox_);
    ended = ended_;
  }
  while (!entries.empty()) {
    Entries entry;
    entry.splice(entry.end(), entries, entries.begin());
    if (entry.front().job) {
      settle(std::move(entry));
    } else {
      call_progress(*entry.front().progress_of, entry.front().progress_done, entry.front().progress_total);
    }
  }
  if (ended) finish();
}

// Uses the C functions of Node-API, not the wrappers, which throw. Failures can be ignored: they
// mean that the environment is being torn down.
void Executor::call_progress(Job& job, double done, double total) {
  if (!job.progress_error.IsEmpty()) return;
  Napi::HandleScope scope(env_);
  napi_value undefined, arguments[2];
  if (napi_get_undefined(env_, &undefined) != napi_ok || napi_create_double(env_, done, &arguments[0]) != napi_ok ||
      napi_create_double(env_, total, &arguments[1]) != napi_ok) {
    return;
  }
  if (napi_call_function(env_, undefined, job.progress.Value(), 2, arguments, nullptr) != napi_pending_exception)
    return;
  napi_value thrown;
  if (napi_get_and_clear_last_exception(env_, &thrown) != napi_ok) return;
  // In an object, because Node-API 8 has no references to primitives.
  napi_value box;
  if (napi_create_object(env_, &box) != napi_ok || napi_set_named_property(env_, box, "thrown", thrown) != napi_ok)
    return;
  job.progress_error = Napi::Persistent(Napi::Object(env_, box));
  job.cancel->store(true);
}

void Executor::settle(Entries entry) {
  Job& job = *entry.front().job;
  Napi::HandleScope scope(env_);
  napi_value value = nullptr;
  bool ok = false;
  try {
    if (job.error) std::rethrow_exception(job.error);
    value = job.resolve ? job.resolve(job) : Napi::Env(env_).Undefined();
    ok = true;
  } catch (...) {
    value = js_error(env_, std::current_exception());
  }
  if (!job.progress_error.IsEmpty()) {
    ok = false;
    napi_get_named_property(env_, job.progress_error.Value(), "thrown", &value);
  }
  if (value != nullptr && job.deferred != nullptr) {
    ok ? napi_resolve_deferred(env_, job.deferred, value) : napi_reject_deferred(env_, job.deferred, value);
  }
  // The rest of the job is destroyed on the executor thread, because it may hold much memory.
  job.keep.Reset();
  job.progress.Reset();
  job.progress_error.Reset();
  job.error = nullptr;
  entry.front().settled = true;
  {
    std::lock_guard lock(mutex_);
    if (--unsettled_ == 0) napi_unref_threadsafe_function(env_, wake_);
    if (!ended_ && !stopped_) queue_.splice(queue_.end(), entry);
  }
  changed_.notify_one();
}

void Executor::reject_queued(const CancelFlag* cancel) {
  Entries rejected;
  {
    std::lock_guard lock(mutex_);
    for (auto it = queue_.begin(); it != queue_.end();) {
      const auto at = it++;
      if (at->job && !at->settled && at->job->cancel.get() == cancel) rejected.splice(rejected.end(), queue_, at);
    }
  }
  while (!rejected.empty()) {
    Entries entry;
    entry.splice(entry.end(), rejected, rejected.begin());
    try {
      fail(ErrorCode::aborted, "the call was aborted before it began");
    } catch (...) {
      entry.front().job->error = std::current_exception();
    }
    settle(std::move(entry));
  }
}

// The thread has ended after close().
void Executor::finish() {
  if (!self_) return;
  if (thread_.joinable()) thread_.join();  // joined already if the process exits
  napi_remove_env_cleanup_hook(env_, on_environment_end, this);
  forget_environment();
}

void Executor::on_environment_end(void* self) {
  auto* executor = static_cast<Executor*>(self);
  executor->stop_now();
  executor->forget_environment();
}

void Executor::stop_now() noexcept {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    if (running_) running_->store(true);
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Executor::stop_all_of_this_thread() noexcept {
  for (Executor* executor = first_of_this_thread; executor; executor = executor->next_of_thread_) executor->stop_now();
}

void Executor::forget_environment() {
  auto self = std::move(self_);
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  Executor** at = &first_of_this_thread;
  while (*at && *at != this) at = &(*at)->next_of_thread_;
  if (*at) *at = next_of_thread_;
  napi_release_threadsafe_function(wake_, napi_tsfn_abort);
  // Their references to JS values must be released before the environment ends.
  queue_.clear();
  outbox_.clear();
}

}  // namespace diffqkv::addon
