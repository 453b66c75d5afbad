// What a CUDA thread can ask for beside arithmetic. None of it is inline: kernels' objects watch their own memory
// accesses, and these are the emulator's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace drupe::emu {

using Where = std::source_location;

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  std::size_t count() const { return std::size_t{x} * y * z; }
};

Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
int lane_index();

// barrier.sync / barrier.arrive: `threads` of the block meet at a named barrier; 0 means all that are left.
void block_barrier(int id, int threads, bool waits, Where where);
void named_barrier(int id, int threads, bool waits, Where where);
void sync_warp(unsigned mask, Where where);
void thread_fence();

// The lane that a shuffle reads, given the calling one.
int segment_lane(int lane, int width);
int segment_xor(int lanes, int width);
int segment_shift(int by, int width);
// Replaces value by that of another lane; by ones where that lane takes no part.
void shuffle(const char* name, unsigned mask, void* value, std::size_t bytes, int source, Where where);
unsigned ballot(const char* name, unsigned mask, bool predicate, Where where);

// This block's shared memory. Faults unless the launch asked for that much.
void* shared_memory(std::size_t bytes, Where where);

// Defined for float, double, int, unsigned and unsigned long long; each gives the old value.
template <class T>
T atomic_add(T* address, T value, Where where);
template <class T>
T atomic_max(T* address, T value, Where where);
template <class T>
T atomic_min(T* address, T value, Where where);
template <class T>
T atomic_exchange(T* address, T value, Where where);
template <class T>
T atomic_compare_exchange(T* address, T expected, T value, Where where);

}  // namespace drupe::emu
