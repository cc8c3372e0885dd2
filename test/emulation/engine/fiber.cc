#include "engine/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#error "the emulation switches stacks by hand, and knows x86-64 only"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void diffqkv_switch_stack(void** save, void* to);

// What a function must leave as it found it is pushed, the stack pointer exchanged, and the same popped from the other.
asm(R"(
.text
.local diffqkv_switch_stack
.type diffqkv_switch_stack, @function
diffqkv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size diffqkv_switch_stack, .-diffqkv_switch_stack
)");

namespace diffqkv::emulated {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 128 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

thread_local StackContext* switched_from = nullptr;

void unmap(unsigned char* data, size_t bytes) {
  if (!data) return;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(data, bytes);  // others get these addresses, and what is known of them
#endif
  munmap(data, bytes);
}

}  // namespace

Stacks::~Stacks() { unmap(data_, count_ * kStackBytes); }

size_t Stacks::bytes() { return kStackBytes; }

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  void* data = mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  unmap(data_, count_ * kStackBytes);
  data_ = static_cast<unsigned char*>(data), count_ = count;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < count; ++i) mprotect(bottom(i), page, PROT_NONE);
}

unsigned char* Stacks::bottom(size_t index) const { return data_ + index * kStackBytes; }

void make_context(StackContext* context, unsigned char* bottom, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, kStackBytes);  // of what ran here before and never returned
#endif
  // At entry the stack must be 8 past a multiple of 16, as after a call.
  uint64_t* top = reinterpret_cast<uint64_t*>(bottom + kStackBytes) - 1;
  *top = 0;                                    // no caller
  *--top = reinterpret_cast<uint64_t>(entry);  // what `ret` goes to
  for (int i = 0; i < 6; ++i) *--top = 0;      // the registers
  *context = {top, bottom, kStackBytes, nullptr};
}

void switch_context(StackContext* from, StackContext* to) {
  switched_from = from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->size);
#endif
  diffqkv_switch_stack(&from->stack_pointer, to->stack_pointer);
  enter_context();
}

void enter_context() {
#if defined(__SANITIZE_ADDRESS__)
  // The context that now runs again is not known here, but AddressSanitizer wants only what it has saved of it: it is
  // null, as detect_stack_use_after_return is off.
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (switched_from && switched_from->bottom == nullptr) switched_from->bottom = bottom, switched_from->size = size;
#endif
}

}  // namespace diffqkv::emulated
