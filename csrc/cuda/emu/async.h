// What Hopper's instructions ask of the emulator beside the tensor cores: mbarriers, clusters, bulk copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <vector>

#include "cuda/emu/checker.h"
#include "cuda/emu/tensor.h"

namespace drupe::emu {

struct Thread;
struct Block;
struct Cluster;
using Where = std::source_location;

inline constexpr int kSharedBase = 1024;  // where a block's own shared memory begins in its address space

struct Mbarrier {
  unsigned phase = 0;  // the parity of the one that runs
  int expected = 0, pending = 0;
  std::int64_t transaction_bytes = 0;
  int initialiser = 0;
  std::uint32_t initialised = 0;  // the initialiser's clock
  bool fenced = false;            // towards the copy engine and the cluster
  std::vector<int> arrived;       // threads, in this phase
  std::vector<Thread*> waiting;
  SyncClock current, completed;
};

// A bulk copy under way. Bytes move in steps, each at a moment drawn at random.
struct Transfer {
  enum class Step : std::uint8_t { issued, read, done };
  bool store = false, add = false;
  Step step = Step::issued;
  TensorMap map;  // rank 0 for a plain copy
  int at[kMaxRank] = {};
  int offsets[3] = {};                // im2col
  const std::byte* source = nullptr;  // of a plain copy
  std::byte* destination = nullptr;   // the same
  std::size_t bytes = 0, offset = 0;  // in shared memory
  Block* from = nullptr;              // of a store
  std::vector<Block*> to;             // of a load: the blocks that receive it
  std::size_t barrier = 0;            // its offset in each of them
  std::vector<std::byte> staged;      // what a store has read
};

// Stores since one cp.async.bulk.commit_group and the next.
struct BulkGroup {
  std::vector<std::shared_ptr<Transfer>> transfers;
  bool read = false;  // known to have been
};

void mbarrier_init(void* barrier, unsigned count, Where where);
// Arrives, at the barrier of the block of that rank where `remote`.
void mbarrier_arrive(void* barrier, bool remote, unsigned rank, Where where);
void mbarrier_expect(void* barrier, unsigned bytes, bool arrives, Where where);
void mbarrier_wait(void* barrier, unsigned parity, Where where);
void fence_proxy_async();
void fence_mbarrier_init();

void* map_shared(void* address, unsigned rank, Where where);
unsigned shared_address(const void* address, Where where);
void cluster_arrive(Where where);
void cluster_wait(Where where);
unsigned cluster_rank();
unsigned cluster_blocks();

// To the calling block, or with a mask to the blocks of those ranks.
void bulk_load(void* to, const TensorMap& map, int rank, const int* at, const std::uint16_t* offsets, void* barrier,
               unsigned mask, Where where);
void bulk_load(void* to, const void* from, std::size_t bytes, void* barrier, Where where);
void bulk_store(const TensorMap& map, int rank, const int* at, const void* from, bool add, Where where);
void bulk_store(void* to, const void* from, std::size_t bytes, Where where);
void bulk_commit();
void bulk_wait(int pending, bool read, Where where);

// A bulk copy is about to signal the barrier at this offset, or has.
void require_transaction(Thread& thread, Block& block, std::size_t barrier, Where where);
void complete_transaction(Block& block, std::size_t barrier, std::size_t bytes, int agent, std::uint32_t count);
// Lets one transfer go a step further; false where there is none.
bool advance_transfers(Cluster& cluster);
// Faults where a block that ends leaves transfers from or to its shared memory.
void check_transfers(Thread& last);

bool elect(unsigned mask, Where where);
void set_registers(int count, bool more, Where where);

}  // namespace drupe::emu
