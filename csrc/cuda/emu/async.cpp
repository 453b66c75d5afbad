#include "cuda/emu/async.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "cuda/emu/grid.h"
#include "cuda/emu/memory.h"

namespace drupe::emu {
namespace {

constexpr std::int64_t kMaxTransaction = (1 << 20) - 1;

std::size_t offset_in(const Block& block, const void* address) {
  return static_cast<std::size_t>(static_cast<const std::byte*>(address) - block.shared);
}

// The barrier at an address, fit to be used by `thread`.
Mbarrier& find(Thread& thread, Block& block, const void* address, Where where) {
  const auto found = block.mbarriers.find(offset_in(block, address));
  if (found == block.mbarriers.end()) fault("an mbarrier that was not initialised", where);
  if (block.alive == 0) fault("an mbarrier of a block that has ended", where);
  Mbarrier& barrier = found->second;
  const auto initialiser = static_cast<std::size_t>(barrier.initialiser);
  if (kChecked && barrier.initialiser != thread.id() && (*thread.clock.seen)[initialiser] < barrier.initialised) {
    fault("an mbarrier whose initialisation this thread need not see yet: no barrier between them", where);
  }
  return barrier;
}

Block& owner(Thread& thread, const void* address, Where where) {
  Block* block = shared_owner(thread, address);
  if (!block) fault("an mbarrier outside shared memory", where);
  return *block;
}

void end_phase(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.transaction_bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
  barrier.arrived.clear();
  barrier.completed = std::move(barrier.current);
  barrier.current = {};
  std::vector<Thread*> met = std::move(barrier.waiting);
  barrier.waiting.clear();
  if (kChecked) acquire(barrier.completed, met.data(), met.size());
  for (Thread* thread : met) wake(*thread);
}

void arrive(Thread& thread, Mbarrier& barrier, Where where) {
  if (barrier.pending == 0) {
    fault("an mbarrier for " + std::to_string(barrier.expected) + " arrivals a phase gets one more", where);
  }
  if (std::find(barrier.arrived.begin(), barrier.arrived.end(), thread.id()) != barrier.arrived.end()) {
    fault("a thread arrives twice in one phase of an mbarrier", where);
  }
  barrier.arrived.push_back(thread.id());
  --barrier.pending;
  if (kChecked) release(barrier.current, thread);
  end_phase(barrier);
}

}  // namespace

void mbarrier_init(void* address, unsigned count, Where where) {
  const Inside inside("mbarrier.init");
  Thread& thread = inside.thread;
  Block& block = *thread.block;
  if (!is_shared(thread, address)) fault("mbarrier.init outside the block's shared memory", where);
  if (offset_in(block, address) % 8 != 0) fault("an mbarrier at a misaligned address", where);
  if (count < 1 || count >= 1u << 20) fault("an mbarrier for " + std::to_string(count) + " arrivals", where);
  if (block.mbarriers.contains(offset_in(block, address))) fault("an mbarrier is initialised twice", where);
  mark_mbarrier(thread, address, where);
  Mbarrier& barrier = block.mbarriers[offset_in(block, address)];
  barrier.expected = barrier.pending = static_cast<int>(count);
  barrier.initialiser = thread.id();
  barrier.initialised = thread.clock.own;
}

void mbarrier_arrive(void* address, bool remote, unsigned rank, Where where) {
  const Inside inside("mbarrier.arrive");
  Thread& thread = inside.thread;
  if (!is_shared(thread, address)) fault("mbarrier.arrive outside the block's shared memory", where);
  if (remote) address = map_shared(address, rank, where);
  Mbarrier& barrier = find(thread, owner(thread, address, where), address, where);
  if (remote && rank != static_cast<unsigned>(thread.block->rank) && !barrier.fenced) {
    fault("an mbarrier of another block without fence.mbarrier_init after its initialisation", where);
  }
  arrive(thread, barrier, where);
  maybe_yield();
}

void mbarrier_expect(void* address, unsigned bytes, bool arrives, Where where) {
  const Inside inside("mbarrier.expect_tx");
  Thread& thread = inside.thread;
  if (!is_shared(thread, address)) fault("mbarrier.expect_tx outside the block's shared memory", where);
  Mbarrier& barrier = find(thread, *thread.block, address, where);
  barrier.transaction_bytes += bytes;
  if (barrier.transaction_bytes > kMaxTransaction) fault("an mbarrier that expects more than 2^20 - 1 bytes", where);
  if (arrives) arrive(thread, barrier, where);
  maybe_yield();
}

void mbarrier_wait(void* address, unsigned parity, Where where) {
  const Inside inside("mbarrier.try_wait");
  Thread& thread = inside.thread;
  if (!is_shared(thread, address)) fault("mbarrier.try_wait outside the block's shared memory", where);
  if (parity > 1) fault("mbarrier.try_wait for a parity of " + std::to_string(parity), where);
  Mbarrier& barrier = find(thread, *thread.block, address, where);
  maybe_yield();
  if (barrier.phase == parity) {
    barrier.waiting.push_back(&thread);
    park(parity ? "an mbarrier (parity 1)" : "an mbarrier (parity 0)", where);
  } else if (kChecked) {
    Thread* self = &thread;
    acquire(barrier.completed, &self, 1);
  }
}

void require_transaction(Thread& thread, Block& block, std::size_t offset, Where where) {
  const Mbarrier& barrier = find(thread, block, block.shared + offset, where);
  if (!barrier.fenced) {
    fault("an mbarrier that the copy engine need not see yet: no fence.mbarrier_init after its initialisation", where);
  }
}

void complete_transaction(Block& block, std::size_t offset, std::size_t bytes, int agent, std::uint32_t count) {
  Mbarrier& barrier = block.mbarriers.at(offset);
  if (kChecked) publish(barrier.current, block.threads[0], agent, count);
  barrier.transaction_bytes -= static_cast<std::int64_t>(bytes);
  if (barrier.transaction_bytes != 0 || barrier.pending != 0) return;
  end_phase(barrier);
}

void fence_proxy_async() {
  const Inside inside("fence.proxy.async");
  Thread& thread = inside.thread;
  if (kChecked) fence_async(thread);
  fence_mbarrier_init();
}

void fence_mbarrier_init() {
  const Inside inside("fence.mbarrier_init");
  for (auto& [offset, barrier] : inside.thread.block->mbarriers) {
    if (barrier.initialiser == inside.thread.id()) barrier.fenced = true;
  }
}

void* map_shared(void* address, unsigned rank, Where where) {
  const Inside inside("mapa");
  Thread& thread = inside.thread;
  if (rank >= thread.block->cluster->blocks.size()) fault("a block outside the cluster", where);
  if (!is_shared(thread, address)) fault("mapa of what is not the block's shared memory", where);
  return thread.block->cluster->blocks[rank].shared + offset_in(*thread.block, address);
}

unsigned shared_address(const void* address, Where where) {
  const Inside inside("a shared address");
  if (!is_shared(inside.thread, address)) fault("an address outside the block's shared memory", where);
  return static_cast<unsigned>(offset_in(*inside.thread.block, address)) + kSharedBase;
}

unsigned cluster_rank() {
  return static_cast<unsigned>(self("cluster_ctarank").block->rank);
}
unsigned cluster_blocks() {
  return static_cast<unsigned>(self("cluster_nctarank").block->cluster->blocks.size());
}

bool elect(unsigned mask, Where where) {
  // The same lane for the same mask each time, but which is the hardware's business.
  const int lane = [&] {
    int skip = static_cast<int>(seed() % static_cast<unsigned>(std::popcount(mask)));
    unsigned left = mask;
    while (skip-- > 0) left &= left - 1;
    return std::countr_zero(left);
  }();
  const Inside inside("elect.sync");
  warp_collective("elect.sync", mask, nullptr, [](void* const*, unsigned) {}, false, where);
  return inside.thread.lane == lane;
}

// Warps of a block share the registers that it was launched with.
void set_registers(int count, bool more, Where where) {
  const Inside inside("setmaxnreg");
  Thread& thread = inside.thread;
  Block& block = *thread.block;
  Warp& warp = *thread.warp;
  if (count < 24 || count > 256 || count % 8 != 0) {
    fault("setmaxnreg of " + std::to_string(count) + ": a multiple of 8 from 24 to 256", where);
  }
  const auto warps = static_cast<int>(block.warps.size());
  const int launched = std::min(kRegisters / (warps * kWarpSize) / 8 * 8, 256);
  for (Warp& each : block.warps) {
    if (each.registers == 0) each.registers = launched;
  }
  if (more ? count < warp.registers : count > warp.registers) {
    fault(std::string(more ? "setmaxnreg.inc" : "setmaxnreg.dec") + " from " + std::to_string(warp.registers) + " to " +
              std::to_string(count) + " registers",
          where);
  }
  warp_collective("setmaxnreg", kFullMask, nullptr, [](void* const*, unsigned) {}, false, where);
  const auto fits = [&] {
    int others = 0;
    for (const Warp& each : block.warps) others += &each == &warp ? 0 : each.registers;
    return others + count <= launched * warps;
  };
  while (!fits()) {
    block.wants_registers.push_back(&thread);
    park("setmaxnreg.inc", where);
  }
  warp.registers = count;
  std::vector<Thread*> waiting = std::move(block.wants_registers);
  block.wants_registers.clear();
  for (Thread* each : waiting) wake(*each);
}

}  // namespace drupe::emu
