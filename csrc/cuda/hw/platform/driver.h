// What the runtime asks of a device: devices, memory, copies.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <stdexcept>
#include <string>

#include "core/stream.h"

namespace drupe::cuda::driver {

inline constexpr bool kEmulated = false;

inline void check_status(cudaError_t status, std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // or the next launch would report it
  throw std::runtime_error(std::string("[cuda] ") + where.function_name() + ": " + cudaGetErrorString(status));
}

// Makes a device the calling thread's, and the one before it again at scope exit.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check_status(cudaGetDevice(&before_));
    if (device != before_) check_status(cudaSetDevice(device));
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// The number of devices; where there is none, `reason` says why.
inline int device_count(std::string& reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  static_cast<void>(cudaGetLastError());
  reason = status == cudaErrorInsufficientDriver ? "no NVIDIA driver, or one older than the CUDA toolkit needs"
           : status == cudaSuccess               ? "the driver reports no device"
                                                 : cudaGetErrorString(status);
  return 0;
}

struct Properties {
  std::string name;
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  std::size_t memory_bytes;
};
inline Properties properties(int device) {
  cudaDeviceProp found{};
  check_status(cudaGetDeviceProperties(&found, device));
  return {.name = found.name,
          .compute_capability = 10 * found.major + found.minor,
          .multiprocessors = found.multiProcessorCount,
          .memory_bytes = found.totalGlobalMem};
}

// Null where the device has no more.
inline void* allocate(std::size_t bytes, int device) {
  const OnDevice on(device);
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  check_status(status);
  return block;
}
inline void release(void* block, int device) {
  const OnDevice on(device);
  static_cast<void>(cudaFree(block));  // at interpreter exit the driver may be gone
}
// A pooled block is handed out again, for `bytes` bytes, or is back in the pool: 0.
inline void reuse(void*, std::size_t) {}
// The same at each replay of the graph that is being captured.
inline void record_reuse(void*, std::size_t, Stream) {}

// Page-locked memory of the host. Null where there is no more.
inline void* allocate_pinned(std::size_t bytes, int device) {
  const OnDevice on(device);
  void* block = nullptr;
  const cudaError_t status = cudaHostAlloc(&block, bytes, cudaHostAllocPortable);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  check_status(status);
  return block;
}
inline void release_pinned(void* block) {
  static_cast<void>(cudaFreeHost(block));
}

inline void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
  check_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream.handle)));
}
inline void zero(void* to, std::size_t bytes, Stream stream) {
  check_status(cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(stream.handle)));
}
inline void synchronize(Stream stream) {
  check_status(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)));
}
inline void synchronize_device(int device) {
  const OnDevice on(device);
  check_status(cudaDeviceSynchronize());
}
// -1 for the host's.
inline int device_of(const void* address) {
  cudaPointerAttributes found{};
  if (cudaPointerGetAttributes(&found, address) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return -1;
  }
  return found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged ? found.device : -1;
}

}  // namespace drupe::cuda::driver
