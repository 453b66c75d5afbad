// wgmma.mma_async: what four warps ask of the tensor cores together, done at any moment until they wait for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <source_location>
#include <vector>

#include "cuda/emu/checker.h"

namespace drupe::emu {

struct Thread;
struct Block;
using Where = std::source_location;

inline constexpr int kWarpgroupSize = 128;

// Accumulators that the tensor cores hold: the threads' own are poisoned until they wait.
struct Accumulators {
  float* registers[kWarpgroupSize];
  int columns;
  std::vector<float> values;  // 64 x columns
  int last_group;             // of the instructions on them
  int delivered = 0;          // threads that have theirs back
};

struct WgmmaOperand {
  bool in_registers = false;
  bool transposed = false;    // MN-major
  std::vector<float> values;  // from registers: 64 x 16
  std::uint64_t descriptor = 0;
  std::vector<std::pair<std::size_t, std::size_t>> pieces;  // of shared memory that it reads: offset, bytes
};

struct WgmmaInstruction {
  bool half;  // f16 rather than bf16
  bool accumulates;
  WgmmaOperand a, b;
  std::shared_ptr<Accumulators> d;
  int group;
  bool done = false;
};

// What a thread asks for.
struct WgmmaRequest {
  bool half;
  int columns;
  bool accumulates;
  float* d;
  const std::uint32_t* a;  // null where it is in shared memory
  std::uint64_t a_descriptor, b_descriptor;
  bool a_transposed, b_transposed;
};

struct Warpgroup {
  std::vector<std::pair<Thread*, const WgmmaRequest*>> arrived;
  Where where;
  std::deque<WgmmaInstruction> queue;
  std::list<std::shared_ptr<Accumulators>> held;
  std::shared_ptr<Accumulators> returned;  // the last ones: unchanged, they need no fence
  SyncClock finished;
};

void wgmma_fence(Where where);
void wgmma(const WgmmaRequest& request, Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, Where where);

void store_matrices(const std::uint32_t* registers, void* row, int matrices, bool transposed, Where where);

}  // namespace drupe::emu
