#include "cuda/emu/grid.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>

#include "cuda/emu/asan.h"
#include "cuda/emu/memory.h"

namespace drupe::emu {
namespace {

thread_local Thread* running = nullptr;

constexpr std::size_t kArenaAlignment = 1024;
constexpr std::size_t kMaxCluster = 8;  // the portable size

std::atomic<std::uint64_t>& chosen_seed() {
  static std::atomic<std::uint64_t> value = [] {
    const char* text = std::getenv("DRUPE_EMU_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 1;
  }();
  return value;
}

// What an operating-system thread keeps from cluster to cluster.
struct Resources {
  std::vector<std::unique_ptr<Stack>> stacks;
  std::vector<std::byte> arena;
};
thread_local Resources resources;

// Neighbouring seeds give unlike sequences (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
// generators").
std::uint32_t mixed(std::uint64_t value) {
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
  value = (value ^ value >> 27) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(value >> 32 ^ value) | 1u;
}

std::string text_of(Dim3 index) {
  std::ostringstream out;
  out << '(' << index.x << ", " << index.y << ", " << index.z << ')';
  return out.str();
}

std::string prologue(const Cluster& cluster) {
  return "[cuda emulator] " + cluster.launch->kernel + ": ";
}

std::string epilogue() {
  return "; DRUPE_EMU_SEED=" + std::to_string(seed()) + " reproduces it";
}

std::string describe_deadlock(const Cluster& cluster) {
  std::map<std::string, int> waiting;
  for (const Block& block : cluster.blocks) {
    for (const Thread& thread : block.threads) {
      if (!thread.done)
        ++waiting["block " + text_of(block.index) + " at " + thread.waits_for + " (" + describe(thread.where) + ")"];
    }
  }
  std::string text = prologue(cluster) + "deadlock:";
  for (const auto& [place, threads] : waiting) {
    text += (text.back() == ':' ? " " : "; ") + std::to_string(threads) + " threads of " + place;
  }
  return text + epilogue();
}

// Goes on with a ready thread drawn at random, or back to the scheduler where there is none.
void switch_away(Thread& from, bool ends) {
  Cluster& cluster = *from.block->cluster;
  while ((cluster.ready.empty() || cluster.random() % cluster.patience == 0) && advance_transfers(cluster)) {
  }
  Context* next = &cluster.scheduler;
  Thread* chosen = nullptr;
  if (!cluster.ready.empty()) {
    std::swap(cluster.ready[cluster.random() % cluster.ready.size()], cluster.ready.back());
    chosen = cluster.ready.back();
    cluster.ready.pop_back();
    if (chosen == &from) return;
    next = &chosen->context;
  }
  running = chosen;
  switch_context(from.context, *next, ends);
  running = &from;
}

void complete(Warp& warp, std::size_t index) {
  const Collective collective = warp.open[index];
  warp.open.erase(warp.open.begin() + static_cast<std::ptrdiff_t>(index));
  Thread* met[kWarpSize];
  std::size_t count = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (collective.arrived >> lane & 1u) met[count++] = warp.lanes[lane];
  }
  collective.combine(collective.operands, collective.arrived);
  if (kChecked && collective.orders_memory) meet(met, count);
  for (std::size_t i = 0; i < count; ++i) {
    if (met[i]->waits_for) wake(*met[i]);
  }
}

void complete(Barrier& barrier, Thread* last) {
  std::vector<Thread*> met = std::move(barrier.waiting);
  barrier.waiting.clear();
  if (last) met.push_back(last);
  if (kChecked) acquire(barrier.clock, met.data(), met.size());
  barrier.expected = barrier.arrived = 0;
  barrier.clock = {};
  for (Thread* thread : met) {
    if (thread->waits_for) wake(*thread);
  }
}

void end_cluster_phase(Cluster& cluster) {
  Barrier& barrier = cluster.barrier;
  if (barrier.arrived == 0 || static_cast<std::size_t>(barrier.arrived) != cluster.alive) return;
  ++cluster.barrier_phase;
  cluster.barrier_clock = barrier.clock;
  complete(barrier, nullptr);
}

// Those that are left no longer wait for one that has ended.
void retire(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = *thread.warp;
  thread.done = true;
  --block.cluster->alive;
  --block.alive;
  warp.alive &= ~(1u << thread.lane);
  for (std::vector<PendingCopy>& group : thread.copy_groups) {
    for (PendingCopy& copy : group) end_copy(thread, copy);
  }
  for (std::size_t i = 0; i < warp.open.size(); ++i) {
    if (warp.open[i].arrived == (warp.open[i].mask & warp.alive)) complete(warp, i--);
  }
  for (Barrier& whole : block.barriers) {
    if (whole.expected == 0 && whole.arrived > 0 && whole.arrived == block.alive) complete(whole, nullptr);
  }
  if (thread.cluster_arrived && thread.cluster_phase == block.cluster->barrier_phase) {
    --block.cluster->barrier.arrived;  // it is not among those that are waited for any more
  }
  end_cluster_phase(*block.cluster);
  if (block.alive == 0) check_transfers(thread);
}

void enter(void* argument) {
  auto& thread = *static_cast<Thread*>(argument);
  arrived(thread.context);
  std::string thrown;
  try {
    thread.inside = 0;
    thread.block->cluster->body();
    thread.inside = 1;
  } catch (const std::exception& exception) {
    thread.inside = 1;
    thrown = exception.what();
  }
  if (!thrown.empty()) fault("the kernel threw: " + thrown, "an unknown line");
  retire(thread);
  switch_away(thread, true);
  std::abort();  // nobody comes back
}

void lay_out(Block& block, const Launch& launch, unsigned rank) {
  const std::size_t threads = launch.block.count();
  block.rank = static_cast<int>(rank);
  block.alive = static_cast<int>(threads);
  block.threads = std::vector<Thread>(threads);
  block.warps = std::vector<Warp>((threads + kWarpSize - 1) / kWarpSize);
  block.warpgroups = std::vector<Warpgroup>((threads + kWarpgroupSize - 1) / kWarpgroupSize);
  if (kChecked) block.shadow.assign(launch.shared_bytes, Cell{});
  for (std::size_t i = 0; i < threads; ++i) {
    Thread& thread = block.threads[i];
    thread.block = &block;
    thread.linear = static_cast<int>(i);
    thread.lane = static_cast<int>(i % kWarpSize);
    thread.warp = &block.warps[i / kWarpSize];
    thread.warp->lanes[thread.lane] = &thread;
    thread.warp->alive |= 1u << thread.lane;
    const auto linear = static_cast<unsigned>(i);
    thread.index = {linear % launch.block.x, linear / launch.block.x % launch.block.y,
                    linear / (launch.block.x * launch.block.y)};
  }
}

void run_cluster(const Launch& launch, FunctionRef<void()> body, std::size_t first) {
  const std::size_t members = launch.cluster.count(), threads = launch.block.count();
  Cluster cluster(launch, body, members);
  cluster.random.seed(mixed(seed() * 0x9e3779b97f4a7c15u + first));
  cluster.patience = 2u << cluster.random() % 3 * 3;
  cluster.alive = members * threads;

  const std::size_t stride = (launch.shared_bytes + 2 * kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  permit(resources.arena.data(), resources.arena.size());
  if (resources.arena.size() < members * stride + kArenaAlignment)
    resources.arena.resize(members * stride + kArenaAlignment);
  const auto address = reinterpret_cast<std::uintptr_t>(resources.arena.data());
  std::byte* arena = resources.arena.data() + (kArenaAlignment - address % kArenaAlignment) % kArenaAlignment;
  std::memset(arena, 0xff, members * stride);
  while (resources.stacks.size() < members * threads) resources.stacks.push_back(std::make_unique<Stack>());

  const std::size_t across = launch.grid.x / launch.cluster.x, down = launch.grid.y / launch.cluster.y;
  const Dim3 corner{static_cast<unsigned>(first % across) * launch.cluster.x,
                    static_cast<unsigned>(first / across % down) * launch.cluster.y,
                    static_cast<unsigned>(first / (across * down)) * launch.cluster.z};
  const auto none = std::make_shared<const Counts>(kChecked ? members * (threads + kAgents) : 0);
  for (unsigned rank = 0; rank < members; ++rank) {
    Block& block = cluster.blocks[rank];
    block.cluster = &cluster;
    block.index = {corner.x + rank % launch.cluster.x, corner.y + rank / launch.cluster.x % launch.cluster.y,
                   corner.z + rank / (launch.cluster.x * launch.cluster.y)};
    block.shared = arena + rank * stride;
    block.shared_bytes = launch.shared_bytes;
    forbid(block.shared + block.shared_bytes, stride - block.shared_bytes);
    lay_out(block, launch, rank);
    for (Thread& thread : block.threads) {
      thread.stack = resources.stacks[rank * threads + static_cast<std::size_t>(thread.linear)].get();
      thread.clock.seen = none;
      prepare(thread.context, *thread.stack, &enter, &thread);
      cluster.ready.push_back(&thread);
    }
  }
  Thread* start = cluster.ready[cluster.random() % cluster.ready.size()];
  std::erase(cluster.ready, start);
  running = start;
  switch_context(cluster.scheduler, start->context);
  running = nullptr;
  if (!cluster.fault.empty()) throw Fault(cluster.fault);
  if (cluster.alive > 0) throw Fault(describe_deadlock(cluster));
}

}  // namespace

int Thread::id() const {
  return block->rank * static_cast<int>(block->threads.size()) + linear;
}

int Block::agent(int which) const {
  return static_cast<int>(cluster->blocks.size() * threads.size()) + rank * kAgents + which;
}

std::uint64_t seed() {
  return chosen_seed();
}

void set_seed(std::uint64_t value) {
  chosen_seed() = value;
}

Thread* current() {
  return running;
}

Thread& self(const char* what) {
  if (!running) throw std::logic_error(std::string("[cuda emulator] ") + what + " in host code");
  return *running;
}

void park(const char* waits_for, Where where) {
  Thread& thread = *running;
  thread.waits_for = waits_for;
  thread.where = where;
  switch_away(thread, false);
}

void wake(Thread& thread) {
  thread.waits_for = nullptr;
  thread.block->cluster->ready.push_back(&thread);
}

void maybe_yield() {
  Thread& thread = *running;
  Cluster& cluster = *thread.block->cluster;
  if (cluster.random() % 4 != 0) return;
  cluster.ready.push_back(&thread);
  switch_away(thread, false);
}

std::string describe(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

void fault(const std::string& what, Where where) {
  fault(what, describe(where));
}

void fault(const std::string& what, const std::string& place) {
  Thread& thread = *running;
  Cluster& cluster = *thread.block->cluster;
  cluster.fault = prologue(cluster) + what + " at " + place + ", thread " + text_of(thread.index) + " of block " +
                  text_of(thread.block->index) + epilogue();
  running = nullptr;
  switch_context(thread.context, cluster.scheduler);
  std::abort();  // nobody comes back
}

void warp_collective(const char* name, unsigned mask, void* operand, FunctionRef<void(void* const*, unsigned)> combine,
                     bool orders_memory, Where where) {
  const Inside inside(name);
  Thread& thread = inside.thread;
  Warp& warp = *thread.warp;
  const unsigned bit = 1u << thread.lane;
  if (!(mask & bit)) fault(std::string(name) + " with a mask that leaves out the calling lane", where);
  std::size_t index = warp.open.size();
  for (std::size_t i = 0; i < warp.open.size(); ++i) {
    const Collective& other = warp.open[i];
    if (other.mask == mask && std::strcmp(other.name, name) == 0 && other.where.line() == where.line()) {
      index = i;
    } else if (other.arrived & mask && other.mask & bit) {  // each waits for the other
      fault(std::string(name) + " while other lanes of the warp are at " + other.name + " (" + describe(other.where) +
                ")",
            where);
    }
  }
  if (index == warp.open.size()) {
    warp.open.push_back(
        {.name = name, .mask = mask, .where = where, .combine = combine, .orders_memory = orders_memory});
  }
  Collective& collective = warp.open[index];
  collective.arrived |= bit;
  collective.operands[thread.lane] = operand;
  if (collective.arrived == (mask & warp.alive)) {
    complete(warp, index);
  } else {
    park(name, where);
  }
}

void block_barrier(int id, int threads, bool waits, Where where) {
  const Inside inside("a barrier");
  Thread& thread = inside.thread;
  Block& block = *thread.block;
  const char* name = threads == 0 ? "__syncthreads" : "a named barrier";
  if (id < 0 || id >= kNamedBarriers) fault("barrier " + std::to_string(id) + " does not exist", where);
  if (threads % kWarpSize != 0) fault("a barrier of " + std::to_string(threads) + " threads: not whole warps", where);
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.where = where;
  } else if (barrier.expected != threads) {
    fault("barrier " + std::to_string(id) + " is for " + std::to_string(barrier.expected) + " threads at " +
              describe(barrier.where) + " and for " + std::to_string(threads) + " here",
          where);
  } else if (threads == 0 && barrier.where.line() != where.line()) {
    fault("__syncthreads while other threads are at the one at " + describe(barrier.where), where);
  }
  ++barrier.arrived;
  if (kChecked) release(barrier.clock, thread);
  if (barrier.arrived == (threads == 0 ? block.alive : threads)) {
    complete(barrier, waits ? &thread : nullptr);
  } else if (waits) {
    barrier.waiting.push_back(&thread);
    park(name, where);
  }
}

void named_barrier(int id, int threads, bool waits, Where where) {
  const Inside inside("a named barrier");
  if (id == 0 || threads <= 0) fault("a named barrier is one of 1 to 15, for some whole warps", where);
  block_barrier(id, threads, waits, where);
}

void cluster_arrive(Where where) {
  const Inside inside("barrier.cluster.arrive");
  Thread& thread = inside.thread;
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_arrived) fault("barrier.cluster.arrive twice without a wait between", where);
  thread.cluster_arrived = true;
  thread.cluster_phase = cluster.barrier_phase;
  ++cluster.barrier.arrived;
  if (kChecked) release(cluster.barrier.clock, thread);
  end_cluster_phase(cluster);
  maybe_yield();
}

void cluster_wait(Where where) {
  const Inside inside("barrier.cluster.wait");
  Thread& thread = inside.thread;
  Cluster& cluster = *thread.block->cluster;
  if (!thread.cluster_arrived) fault("barrier.cluster.wait without an arrival", where);
  if (thread.cluster_phase == cluster.barrier_phase) {
    cluster.barrier.waiting.push_back(&thread);
    park("the cluster's barrier", where);
  } else if (kChecked) {
    Thread* self = &thread;
    acquire(cluster.barrier_clock, &self, 1);
  }
  thread.cluster_arrived = false;
}

void* shared_memory(std::size_t bytes, Where where) {
  const Inside inside("shared memory");
  const Block& block = *inside.thread.block;
  if (bytes > block.shared_bytes) {
    fault("the kernel's storage takes " + std::to_string(bytes) + " bytes of shared memory, the launch asked for " +
              std::to_string(block.shared_bytes),
          where);
  }
  return block.shared;
}

void check_launch(const Launch& launch) {
  const std::size_t blocks = launch.grid.count(), threads = launch.block.count();
  const auto reject = [&](const std::string& why) { throw Fault("[cuda emulator] " + launch.kernel + ": " + why); };
  if (threads == 0 || threads > 1024) reject("a block of " + std::to_string(threads) + " threads: 1 to 1024 fit");
  if (blocks == 0 || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) {
    reject("a grid of " + text_of(launch.grid) + " blocks: at most 2147483647, 65535 and 65535");
  }
  if (launch.shared_bytes > 232448) reject(std::to_string(launch.shared_bytes) + " bytes of shared memory: 232448 fit");
  if (launch.block.z > 64) reject("a block of " + text_of(launch.block) + " threads: at most 64 along z");
  if (launch.cluster.count() == 0 || launch.grid.x % launch.cluster.x || launch.grid.y % launch.cluster.y ||
      launch.grid.z % launch.cluster.z) {
    reject("the grid " + text_of(launch.grid) + " is not made of whole clusters " + text_of(launch.cluster));
  }
  if (launch.cluster.count() > kMaxCluster) reject("a cluster of " + text_of(launch.cluster) + " blocks: 8 fit");
}

void run_grid(const Launch& launch, FunctionRef<void()> body) {
  check_launch(launch);
  const DeviceAccess access;
  parallel_for(static_cast<std::int64_t>(launch.grid.count() / launch.cluster.count()),
               [&](std::int64_t cluster) { run_cluster(launch, body, static_cast<std::size_t>(cluster)); });
}

}  // namespace drupe::emu
