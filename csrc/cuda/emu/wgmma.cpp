#include "cuda/emu/wgmma.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "core/dtype.h"
#include "cuda/emu/grid.h"

namespace drupe::emu {
namespace {

constexpr int kRows = 64, kDepth = 16;
constexpr std::uint32_t kPoison = 0xffbfffffu;  // a signalling NaN: arithmetic on it gives another value
constexpr std::size_t kChunk = 16;              // bytes that stay together: eight elements

float value_of(std::uint16_t bits, bool half) {
  return half ? static_cast<float>(std::bit_cast<Float16>(bits)) : static_cast<float>(std::bit_cast<BFloat16>(bits));
}

int warpgroup_of(const Thread& thread) {
  return thread.linear / kWarpgroupSize;
}

// ---- the 64-bit descriptor of a matrix in shared memory (PTX ISA 9.7.15.5.1.2.2)
struct Descriptor {
  std::size_t start, leading, stride;
  int swizzle_bytes;
};

Descriptor decode(std::uint64_t bits, Where where) {
  constexpr std::uint64_t kReserved = 0x3ff1'c000'c000'c000ull;
  if (bits & kReserved) fault("a wgmma descriptor with reserved bits set", where);
  if (bits >> 49 & 7u) fault("a wgmma descriptor with a base offset, which is not emulated", where);
  constexpr int kSwizzles[] = {0, 128, 64, 32};
  const auto field = [&](int shift) { return static_cast<std::size_t>(bits >> shift & 0x3fffu) << 4; };
  const Descriptor descriptor{field(0), field(16), field(32), kSwizzles[bits >> 62]};
  const auto span = static_cast<std::size_t>(descriptor.swizzle_bytes);
  if (span > 0 && descriptor.start % (8 * span) >= span) {
    fault("a wgmma descriptor whose swizzle pattern does not begin at a multiple of " + std::to_string(8 * span) +
              " bytes",
          where);
  }
  return descriptor;
}

// The address of an element, mn along rows of A or columns of B, before the swizzle.
std::size_t locate(const Descriptor& descriptor, bool transposed, std::size_t mn, std::size_t k) {
  const auto span = static_cast<std::size_t>(descriptor.swizzle_bytes);
  std::size_t offset = 0;
  if (transposed && span > 0) {
    offset = mn % 8 * 2 + mn / 8 % (span / 16) * 16 + mn / (span / 2) * descriptor.leading + k % 8 * span +
             k / 8 * descriptor.stride;
  } else if (transposed) {
    offset = mn % 8 * 2 + mn / 8 * descriptor.stride + k % 8 * 16 + k / 8 * descriptor.leading;
  } else if (span > 0) {
    offset = mn % 8 * span + mn / 8 * descriptor.stride + k * 2;
  } else {
    offset = mn % 8 * 16 + mn / 8 * descriptor.stride + k % 8 * 2 + k / 8 * descriptor.leading;
  }
  return descriptor.start + offset;
}

// Calls f(mn, k of the first of eight elements, where they lie in the block's shared memory).
template <class F>
void for_each_chunk(const WgmmaOperand& operand, std::size_t extent, Where where, const F& f) {
  const Descriptor descriptor = decode(operand.descriptor, where);
  const std::size_t mn_step = operand.transposed ? 8 : 1, k_step = operand.transposed ? 1 : 8;
  for (std::size_t mn = 0; mn < extent; mn += mn_step) {
    for (std::size_t k = 0; k < kDepth; k += k_step) {
      const std::size_t address = locate(descriptor, operand.transposed, mn, k);
      f(mn, k, swizzle(address, descriptor.swizzle_bytes) - kSharedBase);
    }
  }
}

void begin_reads(Thread& thread, WgmmaOperand& operand, std::size_t extent, Where where) {
  for_each_chunk(operand, extent, where, [&](std::size_t, std::size_t, std::size_t offset) {
    begin_async_read(thread, thread.block->shared + offset, kChunk, where);
    operand.pieces.emplace_back(offset, kChunk);
  });
}

// As extent x 16 of floats.
std::vector<float> read(const Block& block, const WgmmaOperand& operand, std::size_t extent, bool half) {
  if (operand.in_registers) return operand.values;
  std::vector<float> values(extent * kDepth);
  for_each_chunk(operand, extent, {}, [&](std::size_t mn, std::size_t k, std::size_t offset) {
    std::uint16_t bits[8];
    std::memcpy(bits, block.shared + offset, kChunk);
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t row = operand.transposed ? mn + i : mn, column = operand.transposed ? k : k + i;
      values[row * kDepth + column] = value_of(bits[i], half);
    }
  });
  return values;
}

void execute(Block& block, WgmmaInstruction& instruction) {
  if (instruction.done) return;
  instruction.done = true;
  const auto columns = static_cast<std::size_t>(instruction.d->columns);
  const std::vector<float> a = read(block, instruction.a, kRows, instruction.half);
  const std::vector<float> b = read(block, instruction.b, columns, instruction.half);
  std::vector<float> transposed(kDepth * columns);
  for (std::size_t n = 0; n < columns; ++n) {
    for (std::size_t k = 0; k < kDepth; ++k) transposed[k * columns + n] = b[n * kDepth + k];
  }
  float* d = instruction.d->values.data();
  if (!instruction.accumulates) std::fill_n(d, kRows * columns, 0.0f);
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t k = 0; k < kDepth; ++k) {
      const float factor = a[m * kDepth + k];
      for (std::size_t n = 0; n < columns; ++n) d[m * columns + n] += factor * transposed[k * columns + n];
    }
  }
}

// Where register i of a thread lies in 64 x columns.
std::size_t place(int thread, int i, int columns) {
  const int warp = thread / 32, g = thread % 32 >> 2, t = thread & 3;
  return static_cast<std::size_t>((16 * warp + g + 8 * (i >> 1 & 1)) * columns + 8 * (i >> 2) + 2 * t + (i & 1));
}

void take_registers(Accumulators& held) {
  for (int t = 0; t < kWarpgroupSize; ++t) {
    for (int i = 0; i < held.columns / 2; ++i) {
      held.values[place(t, i, held.columns)] = held.registers[t][i];
    }
    for (int i = 0; i < held.columns / 2; ++i) std::memcpy(held.registers[t] + i, &kPoison, sizeof kPoison);
  }
}

void give_back(Accumulators& held, int t, Where where) {
  for (int i = 0; i < held.columns / 2; ++i) {
    if (std::bit_cast<std::uint32_t>(held.registers[t][i]) != kPoison) {
      fault("accumulators were written while a wgmma on them was in flight", where);
    }
    held.registers[t][i] = held.values[place(t, i, held.columns)];
  }
  ++held.delivered;
}

bool unchanged(const Accumulators& held) {
  for (int t = 0; t < kWarpgroupSize; ++t) {
    for (int i = 0; i < held.columns / 2; ++i) {
      if (std::bit_cast<std::uint32_t>(held.registers[t][i]) !=
          std::bit_cast<std::uint32_t>(held.values[place(t, i, held.columns)])) {
        return false;
      }
    }
  }
  return true;
}

bool same_registers(const Accumulators& held, const float* const* registers) {
  return std::equal(held.registers, held.registers + kWarpgroupSize, registers);
}

std::shared_ptr<Accumulators> hold(Warpgroup& group, const WgmmaRequest& request, float* const* registers, bool fenced,
                                   int number, Where where) {
  for (const std::shared_ptr<Accumulators>& held : group.held) {
    if (!same_registers(*held, registers)) continue;
    if (held->columns != request.columns) fault("wgmma of another shape on accumulators in flight", where);
    if (held->delivered > 0) fault("wgmma on accumulators that only some threads have waited for", where);
    held->last_group = number;
    return held;
  }
  const bool same = group.returned && same_registers(*group.returned, registers) &&
                    group.returned->columns == request.columns && unchanged(*group.returned);
  if (!fenced && !same) fault("wgmma on registers that were written, without a wgmma.fence after that", where);
  auto held = std::make_shared<Accumulators>();
  std::copy(registers, registers + kWarpgroupSize, held->registers);
  held->columns = request.columns;
  held->values.resize(static_cast<std::size_t>(kRows * request.columns));
  held->last_group = number;
  take_registers(*held);
  group.held.push_back(held);
  return held;
}

std::vector<float> gather(const Warpgroup& group, bool half) {
  std::vector<float> values(kRows * kDepth);
  for (const auto& [thread, request] : group.arrived) {
    const int warp = thread->linear % kWarpgroupSize / 32, g = thread->lane >> 2, t = thread->lane & 3;
    for (int i = 0; i < 8; ++i) {
      const int row = 16 * warp + g + 8 * (i >> 1 & 1), k = 2 * t + (i & 1) + 8 * (i >> 2);
      const auto bits = static_cast<std::uint16_t>(request->a[i / 2] >> (16 * (i & 1)));
      values[static_cast<std::size_t>(row * kDepth + k)] = value_of(bits, half);
    }
  }
  return values;
}

// All 128 have come: the instruction goes to the queue.
void issue(Thread& thread, Warpgroup& group, Where where) {
  const WgmmaRequest& request = *group.arrived.back().second;
  float* registers[kWarpgroupSize];
  bool fenced = true;
  for (const auto& [other, asked] : group.arrived) {
    registers[other->linear % kWarpgroupSize] = asked->d;
    fenced &= other->wgmma_fenced;
    const bool same = asked->half == request.half && asked->columns == request.columns &&
                      asked->accumulates == request.accumulates && asked->a_descriptor == request.a_descriptor &&
                      asked->b_descriptor == request.b_descriptor && other->wgmma_groups == thread.wgmma_groups;
    if (!same) fault("a wgmma whose threads disagree on its descriptors, shape or group", where);
  }
  if (!fenced && request.a) fault("wgmma of A in registers without a wgmma.fence after they were written", where);
  WgmmaInstruction instruction{.half = request.half,
                               .accumulates = request.accumulates,
                               .a = {.in_registers = request.a != nullptr,
                                     .transposed = request.a_transposed,
                                     .values = {},
                                     .descriptor = request.a_descriptor,
                                     .pieces = {}},
                               .b = {.in_registers = false,
                                     .transposed = request.b_transposed,
                                     .values = {},
                                     .descriptor = request.b_descriptor,
                                     .pieces = {}},
                               .d = hold(group, request, registers, fenced, thread.wgmma_groups, where),
                               .group = thread.wgmma_groups};
  if (request.a) {
    instruction.a.values = gather(group, request.half);
  } else {
    begin_reads(thread, instruction.a, kRows, where);
  }
  begin_reads(thread, instruction.b, static_cast<std::size_t>(request.columns), where);
  group.queue.push_back(std::move(instruction));
  if (thread.block->cluster->random() % 4 == 0) {
    for (WgmmaInstruction& queued : group.queue) execute(*thread.block, queued);
  }
}

}  // namespace

void wgmma_fence(Where where) {
  const Inside inside("wgmma.fence");
  warp_collective("wgmma.fence", kFullMask, nullptr, [](void* const*, unsigned) {}, false, where);
  inside.thread.wgmma_fenced = true;
}

void wgmma(const WgmmaRequest& request, Where where) {
  const Inside inside("wgmma");
  Thread& thread = inside.thread;
  Block& block = *thread.block;
  const int index = warpgroup_of(thread);
  if ((index + 1) * kWarpgroupSize > static_cast<int>(block.threads.size())) {
    fault("wgmma in a warpgroup of fewer than 128 threads", where);
  }
  if (request.columns % 8 != 0 || request.columns < 8 || request.columns > 256)
    fault("wgmma of an illegal shape", where);
  Warpgroup& group = block.warpgroups[static_cast<std::size_t>(index)];
  if (!group.arrived.empty() && group.where.line() != where.line()) {
    fault("wgmma while other threads of the warpgroup are at the one at " + describe(group.where), where);
  }
  group.where = where;
  group.arrived.emplace_back(&thread, &request);
  if (group.arrived.size() < kWarpgroupSize) {
    park("wgmma", where);
    return;
  }
  issue(thread, group, where);
  const auto met = std::move(group.arrived);
  group.arrived.clear();
  for (const auto& [other, asked] : met) {
    if (other != &thread) wake(*other);
  }
}

void wgmma_commit(Where where) {
  const Inside inside("wgmma.commit_group");
  warp_collective("wgmma.commit_group", kFullMask, nullptr, [](void* const*, unsigned) {}, false, where);
  ++inside.thread.wgmma_groups;
}

void wgmma_wait(int pending, Where where) {
  const Inside inside("wgmma.wait_group");
  Thread& thread = inside.thread;
  warp_collective("wgmma.wait_group", kFullMask, nullptr, [](void* const*, unsigned) {}, false, where);
  Block& block = *thread.block;
  const int index = warpgroup_of(thread);
  Warpgroup& group = block.warpgroups[static_cast<std::size_t>(index)];
  const int ended = thread.wgmma_groups - pending;
  while (!group.queue.empty() && group.queue.front().group < ended) {
    WgmmaInstruction& instruction = group.queue.front();
    execute(block, instruction);
    const int agent = block.agent(1 + index);
    const std::uint32_t count = ++block.agent_clocks[1 + index];
    for (const WgmmaOperand* operand : {&instruction.a, &instruction.b}) {
      for (const auto& [offset, bytes] : operand->pieces) end_async_read(block, offset, bytes, agent, count);
    }
    if (kChecked) publish(group.finished, thread, agent, count);
    group.queue.pop_front();
  }
  Thread* self = &thread;
  if (kChecked) acquire(group.finished, &self, 1);
  for (auto held = group.held.begin(); held != group.held.end();) {
    Accumulators& accumulators = **held;
    if (accumulators.last_group < ended && accumulators.last_group >= thread.wgmma_waited) {
      give_back(accumulators, thread.linear % kWarpgroupSize, where);
    }
    if (accumulators.delivered == kWarpgroupSize) {
      group.returned = *held;
      held = group.held.erase(held);
    } else {
      ++held;
    }
  }
  thread.wgmma_waited = std::max(thread.wgmma_waited, ended);
  thread.wgmma_fenced = false;  // what follows may write the registers
}

void store_matrices(const std::uint32_t* registers, void* row, int matrices, bool transposed, Where where) {
  struct Operand {
    std::byte* row;
    const std::uint32_t* registers;
  } operand{static_cast<std::byte*>(row), registers};
  const Inside inside("stmatrix");
  Thread& thread = inside.thread;
  if (thread.warp->alive != kFullMask) fault("stmatrix in a warp that lacks lanes", where);
  if (thread.lane < 8 * matrices) {
    if (!is_shared(thread, row)) fault("stmatrix to what is not shared memory", where);
    if (reinterpret_cast<std::uintptr_t>(row) % 16) fault("stmatrix of a row at a misaligned address", where);
    check_access(thread, row, 16, Access::write, where);
  }
  warp_collective(
      "stmatrix", kFullMask, &operand,
      [matrices, transposed, where](void* const* operands, unsigned lanes) {
        if (lanes != kFullMask) fault("stmatrix in a warp that lacks lanes", where);
        for (int m = 0; m < matrices; ++m) {
          std::uint16_t matrix[8][8];
          for (int lane = 0; lane < kWarpSize; ++lane) {
            const int g = lane >> 2, t = lane & 3;
            const std::uint32_t word = static_cast<Operand*>(operands[lane])->registers[m];
            for (int j = 0; j < 2; ++j) {
              (transposed ? matrix[2 * t + j][g] : matrix[g][2 * t + j]) = static_cast<std::uint16_t>(word >> (16 * j));
            }
          }
          for (int i = 0; i < 8; ++i) std::memcpy(static_cast<Operand*>(operands[8 * m + i])->row, matrix[i], 16);
        }
      },
      false, where);
}

}  // namespace drupe::emu
