// What the compiler calls in a kernel: for each access (the interface of the thread sanitizer's run time), for an
// address less aligned than its type, for an index past the end of an array (those of the undefined-behaviour
// sanitizer's).
#if defined(DRUPE_EMU_CHECK)
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cuda/emu/checker.h"
#include "cuda/emu/grid.h"

namespace drupe::emu {
namespace {

// The default argument is evaluated in the caller: it is where the kernel goes on.
void hook(const void* address, std::size_t bytes, Access access, const void* code = __builtin_return_address(0)) {
  Thread* thread = current();
  if (!thread || thread->inside) return;
  ++thread->inside;
  on_access(*thread, address, bytes, access, code);
  --thread->inside;
}

struct Site {
  const char* file;
  std::uint32_t line, column;
};
struct Type {
  std::uint16_t kind, info;
  char name[1];  // and on, up to a zero
};
struct Mismatch {
  Site site;
  const Type* type;
  unsigned char log_alignment, kind;
};
struct OutOfBounds {
  Site site;
  const Type* array;
  const Type* index;
};

// First of all: what follows is not the kernel's.
void stop_watching() {
  if (Thread* thread = current()) ++thread->inside;
}

[[noreturn]] void report(const std::string& what, const Site& site) {
  const std::string file = site.file;
  const std::string place = file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
  if (current()) fault(what, place);
  std::fprintf(stderr, "%s at %s, in host code\n", what.c_str(), place.c_str());
  std::abort();
}

}  // namespace
}  // namespace drupe::emu

using drupe::emu::Access;
using drupe::emu::hook;
using drupe::emu::Mismatch;
using drupe::emu::OutOfBounds;
using drupe::emu::report;
using drupe::emu::stop_watching;

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read1(void* a) {
  hook(a, 1, Access::read);
}
void __tsan_read2(void* a) {
  hook(a, 2, Access::read);
}
void __tsan_read4(void* a) {
  hook(a, 4, Access::read);
}
void __tsan_read8(void* a) {
  hook(a, 8, Access::read);
}
void __tsan_read16(void* a) {
  hook(a, 16, Access::read);
}
void __tsan_write1(void* a) {
  hook(a, 1, Access::write);
}
void __tsan_write2(void* a) {
  hook(a, 2, Access::write);
}
void __tsan_write4(void* a) {
  hook(a, 4, Access::write);
}
void __tsan_write8(void* a) {
  hook(a, 8, Access::write);
}
void __tsan_write16(void* a) {
  hook(a, 16, Access::write);
}
void __tsan_unaligned_read2(void* a) {
  hook(a, 2, Access::read);
}
void __tsan_unaligned_read4(void* a) {
  hook(a, 4, Access::read);
}
void __tsan_unaligned_read8(void* a) {
  hook(a, 8, Access::read);
}
void __tsan_unaligned_read16(void* a) {
  hook(a, 16, Access::read);
}
void __tsan_unaligned_write2(void* a) {
  hook(a, 2, Access::write);
}
void __tsan_unaligned_write4(void* a) {
  hook(a, 4, Access::write);
}
void __tsan_unaligned_write8(void* a) {
  hook(a, 8, Access::write);
}
void __tsan_unaligned_write16(void* a) {
  hook(a, 16, Access::write);
}
void __tsan_volatile_read1(void* a) {
  hook(a, 1, Access::read);
}
void __tsan_read_range(void* a, std::size_t bytes) {
  hook(a, bytes, Access::read);
}
void __tsan_write_range(void* a, std::size_t bytes) {
  hook(a, bytes, Access::write);
}
// Atomics of the launchers: reference counts, guards of static variables. Kernels' own are the platform's.
std::uint8_t __tsan_atomic8_load(const volatile std::uint8_t* a, int) {
  return __atomic_load_n(a, __ATOMIC_SEQ_CST);
}
std::uint32_t __tsan_atomic32_load(const volatile std::uint32_t* a, int) {
  return __atomic_load_n(a, __ATOMIC_SEQ_CST);
}
std::uint64_t __tsan_atomic64_load(const volatile std::uint64_t* a, int) {
  return __atomic_load_n(a, __ATOMIC_SEQ_CST);
}
std::uint32_t __tsan_atomic32_fetch_add(volatile std::uint32_t* a, std::uint32_t value, int) {
  return __atomic_fetch_add(a, value, __ATOMIC_SEQ_CST);
}
std::uint64_t __tsan_atomic64_fetch_add(volatile std::uint64_t* a, std::uint64_t value, int) {
  return __atomic_fetch_add(a, value, __ATOMIC_SEQ_CST);
}
void __ubsan_handle_type_mismatch_v1(const Mismatch* data, std::uintptr_t address) {
  stop_watching();
  report("an address " + std::to_string(address % (std::uintptr_t{1} << data->log_alignment)) + " bytes off the " +
             std::to_string(std::uintptr_t{1} << data->log_alignment) + "-byte alignment of " + data->type->name,
         data->site);
}
void __ubsan_handle_out_of_bounds(const OutOfBounds* data, std::uintptr_t index) {
  stop_watching();
  report("index " + std::to_string(static_cast<std::intptr_t>(index)) + " is past the end of " + data->array->name,
         data->site);
}
}
#endif
