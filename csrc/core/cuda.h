// What core and the ops need of the CUDA backend: cuda/runtime.cpp, or in a build without it cuda/absent.cpp, where
// whatever needs a device throws std::runtime_error and says why there is none.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/memory.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace drupe::cuda {

struct Status {
  bool available;
  std::string reason;  // why, or why not
  int devices;
};
Status status();

// Of a device that can be used.
int multiprocessors(int device);

// Throws std::runtime_error unless that device can be used.
void check_available(Device device);

// The stream that this thread's ops go to.
Stream current_stream(int device);
void set_current_stream(Stream stream);
void synchronize(int device);

// Uninitialised memory for work on the current stream; its last owner returns it to the device's pool, whose next user
// on that stream runs after what was queued before. Throws OutOfMemory.
std::shared_ptr<void> allocate(std::size_t bytes, Device device);

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(std::string text) : message(std::move(text)) {}
  const char* what() const noexcept override { return message.c_str(); }
  std::string message;
};

MemoryStats memory_stats(int device);
void empty_cache();

// Copies bytes on the current stream. Where either side is host memory, it has happened on return.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes);
void zero_bytes(void* to, std::size_t bytes, Device device);

}  // namespace drupe::cuda
