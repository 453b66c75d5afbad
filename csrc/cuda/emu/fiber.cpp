#include "cuda/emu/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#include "cuda/emu/asan.h"

extern "C" {
// Pushes what a function must preserve, stores the stack pointer in *save, takes `load` as the stack pointer, pops.
void drupe_emu_switch(void** save, void* load);
// Where a new fiber begins: calls the function in one preserved register with the value in another.
void drupe_emu_start();
}

#if defined(__x86_64__)
asm(R"(
.text
.globl drupe_emu_switch
.type drupe_emu_switch, @function
drupe_emu_switch:
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
.size drupe_emu_switch, .-drupe_emu_switch
.globl drupe_emu_start
.type drupe_emu_start, @function
drupe_emu_start:
  movq %r12, %rdi
  callq *%r13
  ud2
.size drupe_emu_start, .-drupe_emu_start
.section .note.GNU-stack,"",@progbits
.text
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl drupe_emu_switch
.type drupe_emu_switch, %function
drupe_emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size drupe_emu_switch, .-drupe_emu_switch
.globl drupe_emu_start
.type drupe_emu_start, %function
drupe_emu_start:
  mov x0, x19
  blr x20
  brk #0
.size drupe_emu_start, .-drupe_emu_start
)");
#else
#error "the emulated GPU switches fibers on x86-64 and aarch64 only"
#endif

namespace drupe::emu {
namespace {

#if defined(__SANITIZE_ADDRESS__)
thread_local Context* leaving = nullptr;
#endif

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Stack::Stack() {
  void* block = mmap(nullptr, kStackBytes + page_bytes(), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (block == MAP_FAILED) throw std::bad_alloc();
  mprotect(block, page_bytes(), PROT_NONE);
  bottom_ = static_cast<std::byte*>(block) + page_bytes();
}

Stack::~Stack() {
  permit(bottom_, kStackBytes);  // what is mapped here next does not inherit the marks
  munmap(bottom_ - page_bytes(), kStackBytes + page_bytes());
}

void prepare(Context& context, const Stack& stack, void (*entry)(void*), void* argument) {
  permit(stack.bottom(), kStackBytes);  // its abandoned frames left marks
  auto** top = reinterpret_cast<void**>(stack.top());
#if defined(__x86_64__)
  // As drupe_emu_switch pops them: r15, r14, r13, r12, rbx, rbp, the return address; then the stack is aligned.
  void** frame = top - 7;
  frame[0] = frame[1] = frame[4] = frame[5] = nullptr;
  frame[2] = reinterpret_cast<void*>(entry);
  frame[3] = argument;
  frame[6] = reinterpret_cast<void*>(&drupe_emu_start);
#else
  void** frame = top - 20;
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[0] = argument;                                    // x19
  frame[1] = reinterpret_cast<void*>(entry);              // x20
  frame[11] = reinterpret_cast<void*>(&drupe_emu_start);  // x30
#endif
  context = {.stack_pointer = frame, .bottom = stack.bottom(), .bytes = kStackBytes, .fake_stack = nullptr};
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool from_ends) {
#if defined(__SANITIZE_ADDRESS__)
  leaving = &from;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
  drupe_emu_switch(&from.stack_pointer, to.stack_pointer);
  arrived(from);
}

void arrived([[maybe_unused]] Context& self) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(self.fake_stack, &bottom, &bytes);
  leaving->bottom = static_cast<const std::byte*>(bottom);  // a thread's own stack is known only from here
  leaving->bytes = bytes;
#endif
}

}  // namespace drupe::emu
