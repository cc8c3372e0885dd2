// LD_PRELOAD, for out_of_memory.test.ts: makes allocations fail that diffqkv's native module asks for, on whatever
// thread, itself or through the C++ library; never those of Node, V8, OpenMP, oneDNN or the dynamic linker, which end the
// process where they get no memory. Whose an allocation is, its call stack says.
//
// It is told what to do through a file, which it maps and the test reads and writes: FAIL_ALLOCATION_FILE.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <unwind.h>

#include <atomic>
#include <initializer_list>

namespace {

struct Control {
  std::atomic<int64_t> first;   // which allocation fails, counted from 1; 0: none is looked at
  std::atomic<int64_t> times;   // how many fail from there on
  std::atomic<int64_t> seen;    // allocations since `seen` was set to 0
  std::atomic<int64_t> failed;  // of them
  std::atomic<int64_t> trace;   // not 0: each that fails writes its call stack to stderr
};
Control* control = nullptr;
thread_local __attribute__((tls_model("initial-exec"))) bool inside = false;

__attribute__((constructor)) void open_control() {
  const char* path = getenv("FAIL_ALLOCATION_FILE");
  const int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void* data = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (data != MAP_FAILED) control = static_cast<Control*>(data);
}

enum Owner { unknown, ours, not_ours };

bool contains(const char* text, const char* part) { return strstr(text, part) != nullptr; }

_Unwind_Reason_Code look(_Unwind_Context* context, void* result) {
  void* address = reinterpret_cast<void*>(_Unwind_GetIP(context));
  dl_find_object found;
  // What no object has was compiled by V8; the main program, which has no name, is Node.
  if (_dl_find_object(address, &found) != 0 || found.dlfo_link_map->l_name[0] == '\0') {
    *static_cast<Owner*>(result) = not_ours;
    return _URC_END_OF_STACK;
  }
  const char* name = found.dlfo_link_map->l_name;
  if (control->trace) {
    dprintf(2, "  %s+%#lx\n", name, reinterpret_cast<unsigned long>(address) - found.dlfo_link_map->l_addr);
    return _URC_NO_REASON;
  }
  if (contains(name, "diffqkv") && contains(name, ".node")) *static_cast<Owner*>(result) = ours;
  for (const char* other : {"libgomp", "libdnnl", "ld-linux"}) {
    if (contains(name, other)) *static_cast<Owner*>(result) = not_ours;
  }
  return *static_cast<Owner*>(result) == unknown ? _URC_NO_REASON : _URC_END_OF_STACK;
}

bool fails() {
  if (!control || inside || control->first.load(std::memory_order_relaxed) == 0) return false;
  inside = true;
  Owner owner = unknown;
  const int64_t trace = control->trace.exchange(0);
  _Unwind_Backtrace(look, &owner);
  bool result = false;
  if (owner == ours) {
    const int64_t number = ++control->seen - control->first;
    result = number >= 0 && number < control->times;
    if (result) ++control->failed;
  }
  control->trace = trace;
  if (result && trace) {
    dprintf(2, "allocation %ld fails:\n", control->seen.load());
    _Unwind_Backtrace(look, &owner);
  }
  inside = false;
  return result;
}

template <typename Function>
Function* next(const char* name) {
  inside = true;  // dlsym may allocate
  void* found = dlsym(RTLD_NEXT, name);
  inside = false;
  return reinterpret_cast<Function*>(found);
}

}  // namespace

// glibc's own names of what is replaced: looking them up could need them.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) {
  if (!fails()) return __libc_malloc(bytes);
  errno = ENOMEM;
  return nullptr;
}

void* calloc(size_t count, size_t bytes) {
  if (!fails()) return __libc_calloc(count, bytes);
  errno = ENOMEM;
  return nullptr;
}

void* realloc(void* data, size_t bytes) {
  if (bytes == 0 || !fails()) return __libc_realloc(data, bytes);
  errno = ENOMEM;
  return nullptr;
}

int posix_memalign(void** data, size_t alignment, size_t bytes) {
  void* memory = fails() ? nullptr : __libc_memalign(alignment, bytes);
  if (!memory) return ENOMEM;
  *data = memory;
  return 0;
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  if (!fails()) return __libc_memalign(alignment, bytes);
  errno = ENOMEM;
  return nullptr;
}

void* mmap(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  static auto* const real = next<void*(void*, size_t, int, int, int, off_t)>("mmap");
  if (!fails()) return real(address, bytes, protection, flags, fd, offset);
  errno = ENOMEM;
  return MAP_FAILED;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  static auto* const real = next<int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>("pthread_create");
  return fails() ? EAGAIN : real(thread, attributes, start, argument);
}
}
