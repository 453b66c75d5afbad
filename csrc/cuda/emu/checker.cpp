#include "cuda/emu/checker.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/emu/grid.h"
#include "cuda/emu/memory.h"

namespace drupe::emu {
namespace {

constexpr const char* kVerbs[] = {"a load", "a store", "an atomic"};

// Where an access happens: a line of the emulator's caller, or an address in compiled code.
struct Place {
  std::source_location where;
  const void* code = nullptr;
};

std::string describe(const Place& place) {
  if (!place.code) return emu::describe(place.where);
  Dl_info info{};
  if (!dladdr(place.code, &info)) return "an unknown line";
  char offset[32];
  std::snprintf(offset, sizeof offset, "%#zx",
                reinterpret_cast<std::size_t>(place.code) - reinterpret_cast<std::size_t>(info.dli_fbase) - 1);
  const std::string command = std::string("addr2line -s -e '") + info.dli_fname + "' " + offset + " 2>/dev/null";
  std::string line;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char buffer[256];
    if (std::fgets(buffer, sizeof buffer, pipe)) line = buffer;
    pclose(pipe);
  }
  line.erase(std::remove(line.begin(), line.end(), '\n'), line.end());
  return line.empty() || line[0] == '?' ? std::string("code offset ") + offset : line;
}

void take_in(Counts& counts, const Counts& more) {
  if (counts.empty()) {
    counts = more;
  } else {
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] = std::max(counts[i], more[i]);
  }
}

bool has_seen(const Thread& thread, std::uint16_t other, std::uint32_t clock) {
  return other == thread.id() || clock <= (*thread.clock.seen)[other];
}

std::string name_of(const Thread& thread, int id) {
  const int size = static_cast<int>(thread.block->threads.size());
  return "thread " + std::to_string(id % size) + (id / size == thread.block->rank ? "" : " of another block");
}

// The block of this cluster in whose shared memory an address lies, or null.
Block* owner_of(Thread& thread, const std::byte* address) {
  for (Block& block : thread.block->cluster->blocks) {
    if (address >= block.shared && address < block.shared + block.shared_bytes) return &block;
  }
  return nullptr;
}

void check_shared(Thread& thread, Block& block, const std::byte* address, std::size_t bytes, Access access,
                  const Place& place) {
  const auto offset = static_cast<std::size_t>(address - block.shared);
  if (offset + bytes > block.shared_bytes) {
    fault(std::string(kVerbs[static_cast<int>(access)]) + " of " + std::to_string(bytes) +
              " bytes past the end of shared memory",
          describe(place));
  }
  const auto id = static_cast<std::uint16_t>(thread.id());
  for (std::size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = block.shadow[i];
    const auto race = [&](const char* earlier, int other) {
      fault(std::string(kVerbs[static_cast<int>(access)]) + " at shared byte " + std::to_string(i) + " races with " +
                earlier + " by " + name_of(thread, other),
            describe(place));
    };
    if (cell.pending) race("a copy in flight that was begun", cell.writer);
    if (cell.write_clock != 0 && !has_seen(thread, cell.writer, cell.write_clock) &&
        !(access == Access::atomic && cell.generic == 2)) {
      race("a store", cell.writer);
    }
    if (access == Access::read) {
      if (cell.read_clock == 0 || has_seen(thread, cell.reader, cell.read_clock)) {
        cell.reader = id;
        cell.read_clock = thread.clock.own;
      }
    } else {
      if (cell.read_clock != 0 && !has_seen(thread, cell.reader, cell.read_clock)) race("a load", cell.reader);
      cell.writer = id;
      cell.write_clock = thread.clock.own;
      cell.generic = access == Access::atomic ? 2 : 1;
    }
  }
}

// Constants and tables of this very library.
struct Image {
  std::uintptr_t begin = 0, end = 0;
};

Image own_image() {
  static const Image image = [] {
    Image found;
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&check_access), &info);
    std::pair<std::uintptr_t, Image*> search{reinterpret_cast<std::uintptr_t>(info.dli_fbase), &found};
    dl_iterate_phdr(
        [](dl_phdr_info* object, std::size_t, void* data) {
          const auto& [base, result] = *static_cast<std::pair<std::uintptr_t, Image*>*>(data);
          std::uintptr_t low = ~std::uintptr_t{0}, high = 0;
          for (int i = 0; i < object->dlpi_phnum; ++i) {
            if (object->dlpi_phdr[i].p_type != PT_LOAD) continue;
            const std::uintptr_t begin = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr;
            low = std::min(low, begin);
            high = std::max(high, begin + object->dlpi_phdr[i].p_memsz);
          }
          if (base < low || base >= high) return 0;
          *result = {low, high};
          return 1;
        },
        &search);
    return found;
  }();
  return image;
}

bool within(const void* address, std::size_t bytes, const void* begin, std::size_t size) {
  const auto* a = static_cast<const std::byte*>(address);
  const auto* b = static_cast<const std::byte*>(begin);
  return a >= b && a + bytes <= b + size;
}

void check(Thread& thread, const void* pointer, std::size_t bytes, Access access, const Place& place) {
  const auto* address = static_cast<const std::byte*>(pointer);
  if (within(address, bytes, thread.stack->bottom(), kStackBytes)) return;
  const std::string verb = kVerbs[static_cast<int>(access)];
  if (is_device_address(address)) {
    if (!is_device_range(address, bytes)) {
      fault(verb + " of " + std::to_string(bytes) + " bytes of device memory outside any live block", describe(place));
    }
    return;
  }
  if (Block* block = owner_of(thread, address)) {
    check_shared(thread, *block, address, bytes, access, place);
    return;
  }
  const Launch& launch = *thread.block->cluster->launch;
  if (access == Access::read && within(address, bytes, launch.arguments, launch.argument_bytes)) return;
  const Image image = own_image();
  const auto value = reinterpret_cast<std::uintptr_t>(address);
  if (access == Access::read && value >= image.begin && value < image.end) return;
  for (const Block& block : thread.block->cluster->blocks) {
    for (const Thread& other : block.threads) {
      if (within(address, bytes, other.stack->bottom(), kStackBytes)) {
        fault(verb + " of another thread's local memory", describe(place));
      }
    }
  }
  fault(verb + " of " + std::to_string(bytes) + " bytes of memory that is not the device's", describe(place));
}

}  // namespace

void release(SyncClock& sync, Thread& thread) {
  if (sync.merged != thread.clock.seen) {
    take_in(sync.counts, *thread.clock.seen);
    sync.merged = thread.clock.seen;
  }
  std::uint32_t& own = sync.counts[static_cast<std::size_t>(thread.id())];
  own = std::max(own, thread.clock.own++);
}

void acquire(SyncClock& sync, Thread* const* threads, std::size_t count) {
  if (sync.counts.empty()) return;
  const auto all = std::make_shared<const Counts>(sync.counts);
  std::shared_ptr<const Counts> before, after = all;
  for (std::size_t i = 0; i < count; ++i) {
    std::shared_ptr<const Counts>& seen = threads[i]->clock.seen;
    if (seen != before) {
      before = seen;
      Counts both = *all;
      take_in(both, *seen);
      after = both == *all ? all : std::make_shared<const Counts>(std::move(both));
    }
    seen = after;
  }
}

void meet(Thread* const* threads, std::size_t count) {
  SyncClock sync;
  for (std::size_t i = 0; i < count; ++i) release(sync, *threads[i]);
  acquire(sync, threads, count);
}

void check_access(Thread& thread, const void* address, std::size_t bytes, Access access, std::source_location where) {
  if (kChecked) {
    check(thread, address, bytes, access, {.where = where});
  } else if (is_device_address(address) && !is_device_range(address, bytes)) {
    fault(std::string(kVerbs[static_cast<int>(access)]) + " of device memory outside any live block", where);
  }
}

void begin_copy(Thread& thread, const PendingCopy& copy, std::source_location where) {
  if (copy.size > 0) check_access(thread, copy.from, copy.size, Access::read, where);
  check_access(thread, copy.to, copy.bytes, Access::write, where);
  Block* block = owner_of(thread, copy.to);
  if (!block) fault("an asynchronous copy to what is not shared memory", where);
  std::memset(copy.to, 0xff, copy.bytes);
  if (!kChecked) return;
  const auto offset = static_cast<std::size_t>(copy.to - block->shared);
  for (std::size_t i = offset; i < offset + copy.bytes; ++i) block->shadow[i].pending = 1;
}

void end_copy(Thread& thread, PendingCopy& copy) {
  if (!copy.landed) {
    std::memcpy(copy.to, copy.from, copy.size);
    std::memset(copy.to + copy.size, 0, copy.bytes - copy.size);
    copy.landed = true;
  }
  if (!kChecked) return;
  Block* block = owner_of(thread, copy.to);
  const auto offset = static_cast<std::size_t>(copy.to - block->shared);
  for (std::size_t i = offset; i < offset + copy.bytes; ++i) {
    Cell& cell = block->shadow[i];
    cell.pending = 0;
    cell.writer = static_cast<std::uint16_t>(thread.id());
    cell.write_clock = thread.clock.own;
  }
}

namespace {

// The default argument is evaluated in the caller: it is where the kernel goes on.
void hook(const void* address, std::size_t bytes, Access access, const void* code = __builtin_return_address(0)) {
  if (Thread* thread = current()) check(*thread, address, bytes, access, {.where = {}, .code = code});
}

}  // namespace

}  // namespace drupe::emu

// What the compiler calls for each access in a kernel (the interface of the thread sanitizer's run time).
#if defined(DRUPE_EMU_CHECK)
using drupe::emu::Access;
using drupe::emu::hook;

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
// Reference counts, in the host code of a kernel's file.
int __tsan_atomic32_fetch_add(volatile int* a, int value, int) {
  return __atomic_fetch_add(a, value, __ATOMIC_ACQ_REL);
}
void __tsan_read_range(void* a, std::size_t bytes) {
  hook(a, bytes, Access::read);
}
void __tsan_write_range(void* a, std::size_t bytes) {
  hook(a, bytes, Access::write);
}
}
#endif
