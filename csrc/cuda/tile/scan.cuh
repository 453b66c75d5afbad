// Exclusive prefix sums: across a block, and of the rows of a matrix by one block each.
#pragma once

#include <cstdint>
#include <memory>
#include <platform/launch.cuh>

#include "core/cuda.h"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {

// Uninitialised memory of the device until what is queued then has run; null for no elements.
template <class T>
std::shared_ptr<T> scratch(Stream stream, std::int64_t count) {
  if (count == 0) return nullptr;
  return std::static_pointer_cast<T>(
      allocate(static_cast<std::size_t>(count) * sizeof(T), {DeviceType::cuda, stream.device}));
}

inline constexpr int kScanThreads = 256;

template <class T, int kThreads>
struct ScanStorage {
  T partial[kThreads / kWarp];
};

// The sum of the values of the threads before this one; `total` of all. The storage may be used again after the next
// __syncthreads.
template <int kThreads, class T>
__device__ __forceinline__ T block_scan(T value, T& total, ScanStorage<T, kThreads>& storage) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  T sum = value;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const T below = __shfl_up_sync(kFullMask, sum, by);
    if (lane >= by) sum += below;
  }
  if (lane == kWarp - 1) storage.partial[warp] = sum;
  __syncthreads();
  T before = T(0);
  total = T(0);
#pragma unroll
  for (int k = 0; k < kThreads / kWarp; ++k) {
    if (k == warp) before = total;
    total += storage.partial[k];
  }
  return before + sum - value;
}

// In place; the sum of row r goes to totals[r].
template <class T>
__global__ __launch_bounds__(kScanThreads) void scan_rows_kernel(T* values, std::int64_t length, T* totals) {
  auto& storage = shared_storage<ScanStorage<T, kScanThreads>>();
  T* row = values + blockIdx.x * length;
  T before = T(0);
  for (std::int64_t base = 0; base < length; base += kScanThreads) {
    const std::int64_t i = base + threadIdx.x;
    T total;
    const T sum = block_scan<kScanThreads>(i < length ? row[i] : T(0), total, storage);
    if (i < length) row[i] = before + sum;
    before += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

template <class T>
void scan_rows(Stream stream, T* values, std::int64_t rows, std::int64_t length, T* totals) {
  launch<scan_rows_kernel<T>>({.grid = {static_cast<unsigned>(rows)},
                               .block = {kScanThreads},
                               .shared_bytes = sizeof(ScanStorage<T, kScanThreads>)},
                              stream, values, length, totals);
}

}  // namespace drupe::cuda
