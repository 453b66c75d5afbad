// What the runtime asks of a device: devices, memory, streams. Emulated: one device, whose work is done when it is
// queued.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/stream.h"
#include "cuda/emu/memory.h"

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
  return emu::device_allocate(bytes);
}
inline void release(void* block, int) {
  emu::device_free(block);
}
// A pooled block is handed out again, for `bytes` bytes, or is back in the pool: 0.
inline void reuse(void* block, std::size_t bytes) {
  emu::device_reuse(block, bytes);
}

inline void copy(void* to, const void* from, std::size_t bytes, Stream) {
  const emu::DeviceAccess access;
  std::memcpy(to, from, bytes);
}
inline void zero(void* to, std::size_t bytes, Stream) {
  const emu::DeviceAccess access;
  std::memset(to, 0, bytes);
}
inline void synchronize(Stream) {}
inline void synchronize_device(int) {}
// What goes to `waiter` from now on runs after what `source` has been given so far.
inline void wait_for(Stream, Stream) {}

// -1 for the host's.
inline int device_of(const void* address) {
  return emu::is_device_address(address) ? 0 : -1;
}

}  // namespace drupe::cuda::driver
