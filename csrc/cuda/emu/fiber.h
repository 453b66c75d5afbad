// Fibers: stacks of their own that hand the processor to one another. A switch saves six registers.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace drupe::emu {

inline constexpr std::size_t kStackBytes = 256 * 1024;  // reserved, not touched

// A stack with an unmapped page below it, so that an overflow faults instead of spoiling a neighbour.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  std::byte* bottom() const { return bottom_; }
  std::byte* top() const { return bottom_ + kStackBytes; }

 private:
  std::byte* bottom_;
};

// A suspended point of execution.
struct Context {
  void* stack_pointer = nullptr;
  const std::byte* bottom = nullptr;  // of its stack: AddressSanitizer wants to know
  std::size_t bytes = 0;
  void* fake_stack = nullptr;
};

// Makes `context` start at entry(argument) on an empty stack. entry must not return.
void prepare(Context& context, const Stack& stack, void (*entry)(void*), void* argument);

// Suspends the running code in `from` and goes on with `to`; `from_ends` where nobody will come back.
void switch_context(Context& from, Context& to, bool from_ends = false);

// To be called first by a fiber's entry.
void arrived(Context& self);

}  // namespace drupe::emu
