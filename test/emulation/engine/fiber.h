// A stack of its own for each emulated thread, and the switch between two of them: a few instructions, where swapcontext
// would make a system call.
#pragma once

#include <cstddef>

namespace diffqkv::emulated {

// Memory for `count` stacks, each with a page below it that faults.
class Stacks {
 public:
  ~Stacks();
  void reserve(size_t count);
  unsigned char* bottom(size_t index) const;
  static size_t bytes();  // of one

 private:
  unsigned char* data_ = nullptr;
  size_t count_ = 0;
};

// Where a stack was left.
struct StackContext {
  void* stack_pointer = nullptr;
  const void* bottom = nullptr;  // what AddressSanitizer wants to know of the stack
  size_t size = 0;
  void* fake_stack = nullptr;
};

// `entry`, which must not return, begins at the first switch to `context`.
void make_context(StackContext* context, unsigned char* bottom, void (*entry)());
void switch_context(StackContext* from, StackContext* to);
// To be called first thing in `entry`.
void enter_context();

}  // namespace diffqkv::emulated
