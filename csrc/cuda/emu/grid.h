// Runs a grid of CUDA threads on the CPU: one operating-system thread for each cluster of blocks, one fiber for each
// CUDA thread, in an order drawn from a seed. What the threads of a block do together is a rendezvous: who comes early
// is parked. When all are parked, that is a deadlock, and is reported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "cuda/emu/async.h"
#include "cuda/emu/checker.h"
#include "cuda/emu/fiber.h"
#include "cuda/emu/intrinsics.h"
#include "cuda/emu/wgmma.h"

namespace drupe::emu {

// A kernel did what a GPU forbids or leaves undefined. The message names the kernel, the thread, the line and the seed.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr int kNamedBarriers = 16;
inline constexpr int kRegisters = 65536;  // of a multiprocessor

struct Launch {
  std::string kernel;
  Dim3 grid, block, cluster;
  std::size_t shared_bytes;
  const void* arguments;  // what the body reads of the host's memory
  std::size_t argument_bytes;
};

// Throws Fault where no device can run that.
void check_launch(const Launch& launch);
// Runs body() once in each CUDA thread. Throws Fault.
void run_grid(const Launch& launch, FunctionRef<void()> body);

struct Block;
struct Cluster;
struct Warp;
struct AsyncCopies;

// One CUDA thread.
struct Thread {
  Context context;
  Stack* stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int linear = 0;  // in its block
  int lane = 0;
  Dim3 index{0, 0, 0};
  bool done = false;
  const char* waits_for = nullptr;  // while parked
  Where where;
  int inside = 1;  // emulator's functions: their accesses are not the kernel's
  Clock clock;
  std::vector<std::vector<PendingCopy>> copy_groups;  // cp.async: committed groups, oldest first; the last is open
  std::vector<BulkGroup> bulk_groups;                 // the same of bulk stores
  int wgmma_groups = 0, wgmma_waited = 0;             // committed; known to be done
  bool wgmma_fenced = false;
  unsigned cluster_phase = 0;  // of the cluster's barrier, at which it arrived
  bool cluster_arrived = false;

  int id() const;  // in its cluster
};

// A warp's rendezvous in progress.
struct Collective {
  const char* name;
  unsigned mask;
  unsigned arrived = 0;
  Where where;
  void* operands[kWarpSize] = {};
  FunctionRef<void(void* const*, unsigned)> combine;
  bool orders_memory;
};

struct Warp {
  Thread* lanes[kWarpSize] = {};
  unsigned alive = 0;
  int registers = 0;  // a thread, once setmaxnreg was used
  std::vector<Collective> open;
};

struct Barrier {
  int expected = 0;  // threads; 0 while idle
  int arrived = 0;
  Where where;
  std::vector<Thread*> waiting;
  SyncClock clock;
};

struct Block {
  Cluster* cluster = nullptr;
  Dim3 index{0, 0, 0};
  int rank = 0;  // in its cluster
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int alive = 0;
  std::byte* shared = nullptr;
  std::size_t shared_bytes = 0;
  Shadow shadow;
  Barrier barriers[kNamedBarriers];
  std::map<std::size_t, Mbarrier> mbarriers;  // by offset
  std::vector<Thread*> wants_registers;
  std::vector<Warpgroup> warpgroups;
  std::uint32_t agent_clocks[kAgents] = {};

  int agent(int which) const;  // its id
};

struct Cluster {
  Cluster(const Launch& launched, FunctionRef<void()> kernel, std::size_t members)
      : launch(&launched), body(kernel), blocks(members) {}
  const Launch* launch;
  FunctionRef<void()> body;
  std::vector<Block> blocks;
  std::vector<Thread*> ready;
  std::size_t alive = 0;
  Barrier barrier;
  unsigned barrier_phase = 0;
  SyncClock barrier_clock;  // of the phase that ended last
  std::vector<std::shared_ptr<Transfer>> transfers;
  unsigned patience = 1;  // one goes a step further at one of so many switches between threads
  Context scheduler;
  std::string fault;
  std::minstd_rand random;
};

// The CUDA thread that runs here, or null in host code.
Thread* current();
// The same, for what only kernels may call: throws std::logic_error in host code.
Thread& self(const char* what);

// Held by what a kernel calls: std's inline functions may be linked in their watched form, for the emulator too.
struct Inside {
  explicit Inside(const char* what) : thread(self(what)) { ++thread.inside; }
  ~Inside() { --thread.inside; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  Thread& thread;
};

// Suspends the current thread until wake(); what it waits for is for the report of a deadlock.
void park(const char* waits_for, Where where);
void wake(Thread& thread);
// Lets another thread run first, now and then.
void maybe_yield();

// Ends the launch with a Fault that names the thread and the place.
[[noreturn]] void fault(const std::string& what, const std::string& place);
[[noreturn]] void fault(const std::string& what, Where where);
std::string describe(Where where);

// The lanes of `mask` meet; the last one runs combine(operands by lane, those that came) and all go on.
void warp_collective(const char* name, unsigned mask, void* operand, FunctionRef<void(void* const*, unsigned)> combine,
                     bool orders_memory, Where where);

// What draws the order of threads: DRUPE_EMU_SEED, or 1.
std::uint64_t seed();
void set_seed(std::uint64_t value);

}  // namespace drupe::emu
