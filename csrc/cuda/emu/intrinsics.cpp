#include "cuda/emu/intrinsics.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <type_traits>

#include "cuda/emu/grid.h"

namespace drupe::emu {
namespace {

// Applies change(old) atomically, among all blocks too.
template <class T, class Change>
T update(const char* name, T* address, Where where, const Change& change) {
  const Inside inside(name);
  Thread& thread = inside.thread;
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0)
    fault(std::string(name) + " on a misaligned address", where);
  check_access(thread, address, sizeof(T), Access::atomic, where);
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  const std::atomic_ref<Bits> word(*reinterpret_cast<Bits*>(address));
  Bits old = word.load(std::memory_order_relaxed);
  while (!word.compare_exchange_weak(old, std::bit_cast<Bits>(change(std::bit_cast<T>(old))))) {
  }
  maybe_yield();
  return std::bit_cast<T>(old);
}

void check_width(int width) {
  const Inside inside("a shuffle");
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) {
    fault("a shuffle among segments of " + std::to_string(width) + " lanes", "an unknown line");
  }
}

}  // namespace

Dim3 thread_index() {
  return self("threadIdx").index;
}
Dim3 block_index() {
  return self("blockIdx").block->index;
}
Dim3 block_size() {
  return self("blockDim").block->cluster->launch->block;
}
Dim3 grid_size() {
  return self("gridDim").block->cluster->launch->grid;
}
int lane_index() {
  return self("a lane").lane;
}

void sync_warp(unsigned mask, Where where) {
  warp_collective("__syncwarp", mask, nullptr, [](void* const*, unsigned) {}, true, where);
}

void thread_fence() {
  const Inside inside("__threadfence");
  std::atomic_thread_fence(std::memory_order_seq_cst);
  maybe_yield();
}

int segment_lane(int lane, int width) {
  check_width(width);
  return (lane_index() & ~(width - 1)) | (lane & (width - 1));
}
int segment_xor(int lanes, int width) {
  check_width(width);
  const int own = lane_index(), other = own ^ lanes;
  return (other & ~(width - 1)) > (own & ~(width - 1)) ? own : other;
}
int segment_shift(int by, int width) {
  check_width(width);
  const int own = lane_index(), other = own + by;
  return (other & ~(width - 1)) == (own & ~(width - 1)) && other >= 0 ? other : own;
}

void shuffle(const char* name, unsigned mask, void* value, std::size_t bytes, int source, Where where) {
  struct Operand {
    std::byte given[16], taken[16];
    int source;
  } operand{{}, {}, source};
  const Inside inside(name);
  if (bytes > sizeof operand.given) fault(std::string(name) + " of more than 16 bytes", where);
  std::memcpy(operand.given, value, bytes);
  warp_collective(
      name, mask, &operand,
      [bytes](void* const* operands, unsigned lanes) {
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (!(lanes >> lane & 1u)) continue;
          auto* taker = static_cast<Operand*>(operands[lane]);
          const int from = taker->source;
          if (lanes >> from & 1u) {
            std::memcpy(taker->taken, static_cast<Operand*>(operands[from])->given, bytes);
          } else {
            std::memset(taker->taken, 0xff, bytes);
          }
        }
      },
      false, where);
  std::memcpy(value, operand.taken, bytes);
}

unsigned ballot(const char* name, unsigned mask, bool predicate, Where where) {
  struct Operand {
    bool given;
    unsigned taken;
  } operand{predicate, 0};
  const Inside inside(name);
  warp_collective(
      name, mask, &operand,
      [](void* const* operands, unsigned lanes) {
        unsigned votes = 0;
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (lanes >> lane & 1u && static_cast<Operand*>(operands[lane])->given) votes |= 1u << lane;
        }
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (lanes >> lane & 1u) static_cast<Operand*>(operands[lane])->taken = votes;
        }
      },
      false, where);
  return operand.taken;
}

template <class T>
T atomic_add(T* address, T value, Where where) {
  return update("atomicAdd", address, where, [&](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomic_max(T* address, T value, Where where) {
  return update("atomicMax", address, where, [&](T old) { return std::max(old, value); });
}
template <class T>
T atomic_min(T* address, T value, Where where) {
  return update("atomicMin", address, where, [&](T old) { return std::min(old, value); });
}
template <class T>
T atomic_exchange(T* address, T value, Where where) {
  return update("atomicExch", address, where, [&](T) { return value; });
}
template <class T>
T atomic_compare_exchange(T* address, T expected, T value, Where where) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  return update("atomicCAS", address, where,
                [&](T old) { return std::bit_cast<Bits>(old) == std::bit_cast<Bits>(expected) ? value : old; });
}

template float atomic_add(float*, float, Where);
template double atomic_add(double*, double, Where);
template int atomic_add(int*, int, Where);
template unsigned atomic_add(unsigned*, unsigned, Where);
template unsigned long long atomic_add(unsigned long long*, unsigned long long, Where);
template int atomic_max(int*, int, Where);
template unsigned atomic_max(unsigned*, unsigned, Where);
template unsigned long long atomic_max(unsigned long long*, unsigned long long, Where);
template int atomic_min(int*, int, Where);
template unsigned atomic_min(unsigned*, unsigned, Where);
template unsigned long long atomic_min(unsigned long long*, unsigned long long, Where);
template float atomic_exchange(float*, float, Where);
template int atomic_exchange(int*, int, Where);
template unsigned atomic_exchange(unsigned*, unsigned, Where);
template unsigned long long atomic_exchange(unsigned long long*, unsigned long long, Where);
template int atomic_compare_exchange(int*, int, int, Where);
template unsigned atomic_compare_exchange(unsigned*, unsigned, unsigned, Where);
template unsigned long long atomic_compare_exchange(unsigned long long*, unsigned long long, unsigned long long, Where);

}  // namespace drupe::emu
