// What core and the ops need of the CUDA backend: cuda/runtime.cpp, or in a build without it cuda/absent.cpp, where
// whatever needs a device throws std::runtime_error and says why there is none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace drupe::cuda {

// Whether this build's GPU is the emulated one.
#if defined(DRUPE_CUDA_EMULATED)
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

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
// Whatever waits for a device throws what its kernels have reported (see defer_check), and std::runtime_error while a
// graph is captured there.
void synchronize(int device);
void synchronize(Stream stream);
// What goes to `waiter` from now on runs after what `source` has been given so far. Both are of source's device.
void wait_for(Stream waiter, Stream source);

// A stream of one's own. It does not wait for the default one, nor the other way round.
class OwnedStream {
 public:
  explicit OwnedStream(int device);
  ~OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  Stream get() const { return stream_; }

 private:
  Stream stream_;
};

// A point in a stream's work: that which it was recorded at last.
class Event {
 public:
  explicit Event(bool timed) : timed_(timed) {}
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  // What goes to the stream from now on runs after it. Nothing to wait for before it is recorded.
  void hold(Stream stream) const;
  void synchronize() const;
  bool query() const;
  float elapsed_ms(const Event& end) const;

 private:
  const bool timed_;
  void* handle_ = nullptr;
  int device_ = -1;
};

// A stream's work, captured once and replayed as a whole. Memory that is allocated during the capture is the graph's,
// and stays where it is; so does what was let go of meanwhile.
class Graph {
 public:
  Graph();
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  // From now on, what goes to the stream, or to one that waits for its events, is recorded instead of run.
  void begin(Stream stream);
  void end();
  void abort() noexcept;
  // Once more, with random streams from (seed, offset) on.
  void replay(Stream stream, std::uint64_t seed, std::uint64_t offset);
  // (2,) int64 on the device: the seed and the offset that captured kernels draw from.
  Tensor random_state() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Whether what goes to the current stream is being captured.
bool is_capturing(Device device);

// What a kernel of a graph found wrong: it cannot throw.
struct ErrorRecord {
  unsigned long long state;  // 0: nothing, 1: being written, 2: written
  std::int64_t check, index, position;
};
using Raise = std::function<void(std::int64_t index, std::int64_t position)>;
struct DeferredCheck {
  ErrorRecord* record;  // in the device's memory
  std::int64_t id;
};
// For a check that the graph being captured makes: once it has reported, the next call that waits for the device calls
// `raise`, which throws.
DeferredCheck defer_check(Device device, Raise raise);

// The device whose memory an address lies in; -1 for the host's.
int device_of(const void* address);

// Uninitialised memory for work on the current stream; its last owner returns it to the device's pool, whose next user
// on that stream runs after what was queued before. Throws OutOfMemory.
std::shared_ptr<void> allocate(std::size_t bytes, Device device);

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(std::string text) : message(std::move(text)) {}
  const char* what() const noexcept override { return message.c_str(); }
  std::string message;
};

struct DeviceMemoryStats : MemoryStats {
  std::size_t graph_bytes;   // reserved by captured graphs, in use or not
  std::size_t pinned_bytes;  // of the host's page-locked memory, in use or not
};
DeviceMemoryStats memory_stats(int device);
void empty_cache();

// Page-locked memory of the host, from a pool of its own: copies between it and a device need not be waited for.
std::shared_ptr<void> allocate_pinned(std::size_t bytes, int device);
bool is_pinned(const std::shared_ptr<void>& owner);
// The stream has work with a block of `allocate` or `allocate_pinned` queued: it is not reused before that is done.
void record_use(const std::shared_ptr<void>& owner, Stream stream);

// Copies bytes on the current stream. Where either side is host memory, it has happened on return.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes);
// Copies between page-locked memory, that of `host`, and a device's. It may happen later.
void copy_pinned(void* to, const void* from, std::size_t bytes, const std::shared_ptr<void>& host, int device);
void zero_bytes(void* to, std::size_t bytes, Device device);

}  // namespace drupe::cuda
