// What the runtime asks of a device: devices, memory, copies. Emulated: one device, whose work is done when it is
// queued, but for copies of page-locked memory, which come late.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/stream.h"
#include "cuda/emu/memory.h"
#include "cuda/emu/stream.h"

namespace drupe::cuda::driver {

inline constexpr bool kEmulated = true;

// The number of devices; where there is none, `reason` says why.
inline int device_count(std::string& reason) {
  reason = "emulated on the CPU";
  return 1;
}

struct Properties {
  std::string name;
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  std::size_t memory_bytes;
};
inline Properties properties(int) {
  return {.name = "emulated", .compute_capability = 90, .multiprocessors = 4, .memory_bytes = emu::device_capacity()};
}

// Null where the device has no more.
inline void* allocate(std::size_t bytes, int) {
  emu::refuse_in_capture("cudaMalloc");
  return emu::device_allocate(bytes);
}
inline void release(void* block, int) {
  emu::land_copies();
  emu::device_free(block);
}
// A pooled block is handed out again, for `bytes` bytes, or is back in the pool: 0.
inline void reuse(void* block, std::size_t bytes) {
  emu::land_copies();
  emu::device_reuse(block, bytes);
}
// The same at each replay of the graph that is being captured.
inline void record_reuse(void* block, std::size_t bytes, Stream stream) {
  emu::enqueue(stream.handle, [=] { emu::device_reuse(block, bytes); });
}

// Page-locked memory of the host. Null where there is no more.
inline void* allocate_pinned(std::size_t bytes, int) {
  emu::refuse_in_capture("cudaHostAlloc");
  return emu::pinned_allocate(bytes);
}
inline void release_pinned(void* block) {
  emu::land_copies();
  emu::pinned_free(block);
}

inline void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
  const auto work = [=] {
    const emu::DeviceAccess access;
    std::memcpy(to, from, bytes);
  };
  const bool between = emu::is_device_address(to) && emu::is_device_address(from);
  const void* host = emu::is_device_address(to) ? from : to;
  if (between) return emu::enqueue(stream.handle, work);
  if (emu::is_pinned_address(host)) {
    if (host == to && emu::capture_id(stream.handle) == 0) std::memset(to, 0xff, bytes);  // until it has arrived
    return emu::enqueue_late(stream.handle, work);
  }
  emu::refuse_captured(stream.handle, "cudaMemcpyAsync of pageable memory");
  emu::enqueue(stream.handle, work);
}
inline void zero(void* to, std::size_t bytes, Stream stream) {
  emu::enqueue(stream.handle, [=] {
    const emu::DeviceAccess access;
    std::memset(to, 0, bytes);
  });
}
inline void synchronize(Stream stream) {
  emu::synchronize_stream(stream.handle);
}
inline void synchronize_device(int) {
  emu::synchronize_device();
}

// -1 for the host's.
inline int device_of(const void* address) {
  return emu::is_device_address(address) ? 0 : -1;
}

}  // namespace drupe::cuda::driver
