// Watches every load and store of the kernels (which are compiled with the thread sanitizer's hooks, answered here) for
// addresses out of bounds and for races in shared memory. Two accesses to a byte race when one of them writes and no
// barrier orders them: vector clocks tell (Flanagan & Freund 2009, "FastTrack", section 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <vector>

namespace drupe::emu {

struct Thread;
struct Block;

#if defined(DRUPE_EMU_CHECK)
inline constexpr bool kChecked = true;
#else
inline constexpr bool kChecked = false;
#endif

using Counts = std::vector<std::uint32_t>;

// What a thread has seen of the others: the counts it shares with those it last met, and its own count. What of it was
// also fenced towards the async proxy, by itself or by those it met; null for nothing.
struct Clock {
  std::shared_ptr<const Counts> seen, fenced;
  std::uint32_t own = 1;
};

// The greatest of several counts.
struct Merged {
  Counts counts;
  std::shared_ptr<const Counts> last;                // that was taken in
  std::shared_ptr<const Counts> all, before, after;  // given out: counts, and what one became of another
};

// What a barrier knows: all that who arrived had seen.
struct SyncClock {
  Merged seen, fenced;
};

void release(SyncClock& sync, Thread& thread);
// Several threads go on, each having seen what the barrier has.
void acquire(SyncClock& sync, Thread* const* threads, std::size_t count);
// What `thread` has seen is fenced towards the async proxy.
void fence_async(Thread& thread);
// An agent's work up to `count` is known to who passes this.
void publish(SyncClock& sync, const Thread& any, int agent, std::uint32_t count);
// All of them meet: release and acquire in one.
void meet(Thread* const* threads, std::size_t count);

// Who touched a byte of shared memory last.
struct Cell {
  std::uint32_t write_clock, read_clock;
  std::uint16_t writer, reader;
  std::uint8_t pending;      // the writer is a copy in flight
  std::uint8_t written;      // how: a Written
  std::uint8_t async_reads;  // in flight
  std::uint8_t is_mbarrier;
};

enum Written : std::uint8_t { kNever, kStore, kAtomic, kAsync };

// Beside its threads, each block has agents that act on shared memory: the copy engine and its warpgroups' tensor
// cores.
inline constexpr int kAgents = 9;

using Shadow = std::vector<Cell>;

// A copy in flight to shared memory; bytes past `size` become zero.
struct PendingCopy {
  std::byte* to;
  const std::byte* from;
  std::size_t bytes, size;
  bool landed;
};

enum class Access : std::uint8_t { read, write, atomic };

// For what the emulator itself does on a thread's behalf. Faults as the hooks do.
void check_access(Thread& thread, const void* address, std::size_t bytes, Access access, std::source_location where);
// An access by the kernel's own code, from which `code` is the address to return to.
void on_access(Thread& thread, const void* address, std::size_t bytes, Access access, const void* code);
// Whether this is an address in the thread's own shared memory.
bool is_shared(const Thread& thread, const void* address);
// The async proxy reads or writes the shared memory of a block of the cluster: from an instruction of `thread` until it
// is known to be over. Reads then count as those of thread or agent `id` at its time `clock`; writes as the agent's.
void begin_async_read(Thread& thread, const void* address, std::size_t bytes, std::source_location where);
void end_async_read(Block& block, std::size_t offset, std::size_t bytes, int id, std::uint32_t clock);
void begin_async_write(Thread& thread, void* address, std::size_t bytes, std::source_location where);
void end_async_write(Block& block, std::size_t offset, std::size_t bytes, int id, std::uint32_t clock);
// These eight bytes are for mbarrier instructions alone.
void mark_mbarrier(Thread& thread, void* address, std::source_location where);
Block* shared_owner(Thread& thread, const void* address);
// A copy to shared memory begins or ends.
void begin_copy(Thread& thread, const PendingCopy& copy, std::source_location where);
void end_copy(Thread& thread, PendingCopy& copy);

}  // namespace drupe::emu
