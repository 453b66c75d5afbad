#include "cuda/emu/checker.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>

#include "cuda/emu/grid.h"
#include "cuda/emu/memory.h"

namespace drupe::emu {
namespace {

constexpr std::size_t kShortOfShared = std::size_t{1} << 20;  // for the message: a near miss

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

void put(Merged& merged, const std::shared_ptr<const Counts>& known) {
  if (!known || merged.last == known) return;
  take_in(merged.counts, *known);
  merged.last = known;
  merged.all = merged.before = merged.after = nullptr;
}

void take(Merged& merged, std::shared_ptr<const Counts>& known) {
  if (merged.counts.empty()) return;
  if (!merged.all) merged.all = std::make_shared<const Counts>(merged.counts);
  if (!known) {
    known = merged.all;
    return;
  }
  if (!merged.after || merged.before != known) {
    Counts both = merged.counts;
    take_in(both, *known);
    merged.before = known;
    merged.after = both == merged.counts ? merged.all : std::make_shared<const Counts>(std::move(both));
  }
  known = merged.after;
}

bool has_seen(const Thread& thread, std::uint16_t other, std::uint32_t clock) {
  return other == thread.id() || clock <= (*thread.clock.seen)[other];
}

std::string name_of(const Thread& thread, int id) {
  const int size = static_cast<int>(thread.block->threads.size());
  const int agent = id - size * static_cast<int>(thread.block->cluster->blocks.size());
  if (agent >= 0) return agent % kAgents == 0 ? "the copy engine" : "the tensor cores";
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
              " bytes past the end of the shared memory of " + std::to_string(block.shared_bytes) + " bytes",
          describe(place));
  }
  if (block.alive == 0) {
    fault(std::string(kVerbs[static_cast<int>(access)]) + " of the shared memory of a block that has ended",
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
    if (cell.is_mbarrier) {
      fault(std::string(kVerbs[static_cast<int>(access)]) + " of an mbarrier by an ordinary instruction",
            describe(place));
    }
    if (cell.pending) race("a copy in flight that was begun", cell.writer);
    if (access != Access::read && cell.async_reads > 0)
      race("an asynchronous read in flight that was begun", cell.reader);
    if (cell.write_clock != 0 && !has_seen(thread, cell.writer, cell.write_clock) &&
        !(access == Access::atomic && cell.written == kAtomic)) {
      race(cell.written == kAsync ? "an asynchronous write" : "a store", cell.writer);
    }
    if (access == Access::read) {
      if (cell.async_reads == 0 && (cell.read_clock == 0 || has_seen(thread, cell.reader, cell.read_clock))) {
        cell.reader = id;
        cell.read_clock = thread.clock.own;
      }
    } else {
      if (cell.read_clock != 0 && !has_seen(thread, cell.reader, cell.read_clock)) race("a load", cell.reader);
      cell.writer = id;
      cell.write_clock = thread.clock.own;
      cell.written = access == Access::atomic ? kAtomic : kStore;
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
  const auto reject = [&](const std::string& what) {
    fault(kVerbs[static_cast<int>(access)] + (" of " + std::to_string(bytes) + " bytes of ") + what, describe(place));
  };
  if (is_device_address(address)) {
    if (!is_device_range(address, bytes)) reject("device memory outside any live block");
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
      if (within(address, bytes, other.stack->bottom(), kStackBytes)) reject("another thread's local memory");
    }
    if (within(address, bytes, block.shared - kShortOfShared, block.shared_bytes + 2 * kShortOfShared)) {
      reject("memory outside the shared memory of " + std::to_string(block.shared_bytes) + " bytes");
    }
  }
  reject("memory that is not the device's");
}

}  // namespace

void release(SyncClock& sync, Thread& thread) {
  put(sync.seen, thread.clock.seen);
  put(sync.fenced, thread.clock.fenced);
  std::uint32_t& own = sync.seen.counts[static_cast<std::size_t>(thread.id())];
  own = std::max(own, thread.clock.own++);
  sync.seen.all = sync.seen.before = sync.seen.after = nullptr;
}

void acquire(SyncClock& sync, Thread* const* threads, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    take(sync.seen, threads[i]->clock.seen);
    take(sync.fenced, threads[i]->clock.fenced);
  }
}

void fence_async(Thread& thread) {
  Counts counts = *thread.clock.seen;
  if (thread.clock.fenced) take_in(counts, *thread.clock.fenced);
  counts[static_cast<std::size_t>(thread.id())] = thread.clock.own++;
  thread.clock.fenced = std::make_shared<const Counts>(std::move(counts));
}

void publish(SyncClock& sync, const Thread& any, int agent, std::uint32_t count) {
  Merged& seen = sync.seen;
  if (seen.counts.empty()) seen.counts.resize(any.clock.seen->size());
  std::uint32_t& known = seen.counts[static_cast<std::size_t>(agent)];
  known = std::max(known, count);
  seen.all = seen.before = seen.after = nullptr;
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

Block* shared_owner(Thread& thread, const void* address) {
  return owner_of(thread, static_cast<const std::byte*>(address));
}

namespace {

// The cells behind an address that the async proxy is about to touch. Faults where they are not shared memory, or where
// an ordinary store to them was not fenced.
std::span<Cell> async_cells(Thread& thread, const void* address, std::size_t bytes, std::source_location where) {
  Block* block = shared_owner(thread, address);
  const auto* from = static_cast<const std::byte*>(address);
  if (!block || from + bytes > block->shared + block->shared_bytes) {
    fault("an asynchronous access of " + std::to_string(bytes) + " bytes outside shared memory", where);
  }
  if (block->alive == 0) fault("an asynchronous access of the shared memory of a block that has ended", where);
  if (!kChecked) return {};
  const std::span<Cell> cells = std::span(block->shadow).subspan(static_cast<std::size_t>(from - block->shared), bytes);
  for (const Cell& cell : cells) {
    if (cell.written != kStore && cell.written != kAtomic) continue;
    if (!thread.clock.fenced || (*thread.clock.fenced)[cell.writer] < cell.write_clock) {
      fault("an asynchronous access at shared byte " + std::to_string(from - block->shared + (&cell - cells.data())) +
                " of what " + name_of(thread, cell.writer) + " stored: no fence.proxy.async between them",
            where);
    }
  }
  return cells;
}

}  // namespace

void begin_async_read(Thread& thread, const void* address, std::size_t bytes, std::source_location where) {
  const auto id = static_cast<std::uint16_t>(thread.id());
  if (kChecked && shared_owner(thread, address)) {  // as an ordinary read, but for the cells' record of readers
    for (Cell& cell : async_cells(thread, address, bytes, where)) {
      const auto race = [&](const char* earlier) {
        fault(std::string("an asynchronous read races with ") + earlier + " by " + name_of(thread, cell.writer), where);
      };
      if (cell.is_mbarrier) fault("an asynchronous read of an mbarrier", where);
      if (cell.pending) race("a copy in flight that was begun");
      if (cell.write_clock != 0 && !has_seen(thread, cell.writer, cell.write_clock)) {
        race(cell.written == kAsync ? "an asynchronous write" : "a store");
      }
      if (cell.async_reads++ == 0) cell.reader = id;
    }
  } else {
    async_cells(thread, address, bytes, where);
  }
}

void end_async_read(Block& block, std::size_t offset, std::size_t bytes, int id, std::uint32_t clock) {
  if (!kChecked) return;
  for (Cell& cell : std::span(block.shadow).subspan(offset, bytes)) {
    --cell.async_reads;
    cell.reader = static_cast<std::uint16_t>(id);
    cell.read_clock = clock;
  }
}

void begin_async_write(Thread& thread, void* address, std::size_t bytes, std::source_location where) {
  const std::span<Cell> cells = async_cells(thread, address, bytes, where);
  check_access(thread, address, bytes, Access::write, where);
  std::memset(address, 0xff, bytes);
  for (Cell& cell : cells) cell.pending = 1;
}

void end_async_write(Block& block, std::size_t offset, std::size_t bytes, int id, std::uint32_t clock) {
  if (!kChecked) return;
  for (Cell& cell : std::span(block.shadow).subspan(offset, bytes)) {
    cell.pending = 0;
    cell.written = kAsync;
    cell.writer = static_cast<std::uint16_t>(id);
    cell.write_clock = clock;
  }
}

void mark_mbarrier(Thread& thread, void* address, std::source_location where) {
  check_access(thread, address, 8, Access::write, where);
  if (!kChecked) return;
  const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(address) - thread.block->shared);
  for (Cell& cell : std::span(thread.block->shadow).subspan(offset, 8)) cell.is_mbarrier = 1;
}

bool is_shared(const Thread& thread, const void* address) {
  return within(address, 1, thread.block->shared, thread.block->shared_bytes);
}

void on_access(Thread& thread, const void* address, std::size_t bytes, Access access, const void* code) {
  check(thread, address, bytes, access, {.where = {}, .code = code});
}

void begin_copy(Thread& thread, const PendingCopy& copy, std::source_location where) {
  if (!is_shared(thread, copy.to)) fault("an asynchronous copy to what is not the block's shared memory", where);
  if (copy.size > 0) {
    if (owner_of(thread, copy.from)) fault("an asynchronous copy from what is not device memory", where);
    check_access(thread, copy.from, copy.size, Access::read, where);
  }
  check_access(thread, copy.to, copy.bytes, Access::write, where);
  std::memset(copy.to, 0xff, copy.bytes);
  if (!kChecked) return;
  Block* block = thread.block;
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
  Block* block = thread.block;
  const auto offset = static_cast<std::size_t>(copy.to - block->shared);
  for (std::size_t i = offset; i < offset + copy.bytes; ++i) {
    Cell& cell = block->shadow[i];
    cell.pending = 0;
    cell.written = kStore;
    cell.writer = static_cast<std::uint16_t>(thread.id());
    cell.write_clock = thread.clock.own;
  }
}

}  // namespace drupe::emu
