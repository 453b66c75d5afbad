// What kernels are written in: CUDA's keywords, indices and intrinsics. Emulated: plain functions.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "cuda/emu/intrinsics.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (::drupe::emu::thread_index())
#define blockIdx (::drupe::emu::block_index())
#define blockDim (::drupe::emu::block_size())
#define gridDim (::drupe::emu::grid_size())

namespace drupe::cuda {

using emu::Where;

inline constexpr unsigned kFullMask = emu::kFullMask;

inline void __syncthreads(Where where = Where::current()) {
  emu::block_barrier(0, 0, true, where);
}
inline void __syncwarp(unsigned mask = kFullMask, Where where = Where::current()) {
  emu::sync_warp(mask, where);
}
inline void __threadfence() {
  emu::thread_fence();
}

// The value of another lane; lanes outside the segment of `width` give their own.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = emu::kWarpSize, Where where = Where::current()) {
  emu::shuffle("__shfl_sync", mask, &value, sizeof(T), emu::segment_lane(lane, width), where);
  return value;
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = emu::kWarpSize,
                         Where where = Where::current()) {
  emu::shuffle("__shfl_xor_sync", mask, &value, sizeof(T), emu::segment_xor(lanes, width), where);
  return value;
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int by, int width = emu::kWarpSize, Where where = Where::current()) {
  emu::shuffle("__shfl_down_sync", mask, &value, sizeof(T), emu::segment_shift(by, width), where);
  return value;
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int by, int width = emu::kWarpSize, Where where = Where::current()) {
  emu::shuffle("__shfl_up_sync", mask, &value, sizeof(T), emu::segment_shift(-by, width), where);
  return value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return emu::ballot("__ballot_sync", mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return emu::ballot("__any_sync", mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return emu::ballot("__all_sync", mask, predicate == 0, where) == 0;
}

// float, double, int, unsigned, unsigned long long; the old value.
template <class T>
inline T atomicAdd(T* address, T value, Where where = Where::current()) {
  return emu::atomic_add(address, value, where);
}
template <class T>
inline T atomicMax(T* address, T value, Where where = Where::current()) {
  return emu::atomic_max(address, value, where);
}
template <class T>
inline T atomicMin(T* address, T value, Where where = Where::current()) {
  return emu::atomic_min(address, value, where);
}
template <class T>
inline T atomicExch(T* address, T value, Where where = Where::current()) {
  return emu::atomic_exchange(address, value, where);
}
template <class T>
inline T atomicCAS(T* address, T expected, T value, Where where = Where::current()) {
  return emu::atomic_compare_exchange(address, expected, value, where);
}

inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
inline int __ffs(unsigned bits) {
  return __builtin_ffs(static_cast<int>(bits));
}
inline int __clz(unsigned bits) {
  return bits == 0 ? 32 : __builtin_clz(bits);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(std::uint64_t{a} * b >> 32);
}

// Storage formats to and from what arithmetic happens in.
template <class T>
inline Accumulator<T> widen(T value) {
  return static_cast<Accumulator<T>>(value);
}
template <class T>
inline T narrow(Accumulator<T> value) {
  return static_cast<T>(value);
}

// 1 / sqrt(x)
inline float rsqrt(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}

// a / b within 2 units in the last place; for floats 0 where |b| is above 2^126, NaN where a is not finite, too.
inline float fast_divide(float a, float b) {
  return std::fabs(b) > 0x1p126f ? a - a : a / b;
}
inline double fast_divide(double a, double b) {
  return a / b;
}

// The block's shared memory as a struct, uninitialised. Every launch asks for sizeof(Storage) bytes.
template <class Storage>
inline Storage& shared_storage(Where where = Where::current()) {
  return *static_cast<Storage*>(emu::shared_memory(sizeof(Storage), where));
}

}  // namespace drupe::cuda
