// Devices, their memory, and the streams that ops go to.
#include <platform/driver.h>
#include <platform/stream.h>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/cuda.h"
#include "cuda/graph.h"
#include "cuda/pool.h"

namespace drupe::cuda {
namespace {

struct DeviceState {
  Counters counters;
  std::shared_ptr<Pool> memory, pinned;
  int multiprocessors;
  std::mutex mutex;
  std::vector<Stream> idle_streams;  // without an owner
};

struct Devices {
  std::string reason;
  std::vector<std::unique_ptr<DeviceState>> each;
};

// Never destroyed: tensors may outlive static destruction.
Devices& devices() {
  static Devices* instance = [] {
    auto* found = new Devices;
    const int count = driver::device_count(found->reason);
    for (int i = 0; i < count; ++i) {
      auto state = std::make_unique<DeviceState>();
      state->memory = std::make_shared<Pool>(Memory::device, i, state->counters);
      state->pinned = std::make_shared<Pool>(Memory::pinned, i, state->counters);
      state->multiprocessors = driver::properties(i).multiprocessors;
      found->each.push_back(std::move(state));
    }
    return found;
  }();
  return *instance;
}

DeviceState& state_of(int device) {
  check_available({DeviceType::cuda, device});
  return *devices().each[static_cast<std::size_t>(device)];
}

thread_local std::map<int, Stream> streams;

}  // namespace

Status status() {
  const Devices& found = devices();
  return {.available = !found.each.empty(), .reason = found.reason, .devices = static_cast<int>(found.each.size())};
}

void check_available(Device device) {
  const Devices& found = devices();
  if (found.each.empty()) throw std::runtime_error("[cuda] no device can be used: " + found.reason);
  if (device.index < 0 || static_cast<std::size_t>(device.index) >= found.each.size()) {
    throw std::runtime_error("[cuda] there is no cuda:" + std::to_string(device.index) + ": the machine has " +
                             std::to_string(found.each.size()) + " device(s)");
  }
}

int multiprocessors(int device) {
  return state_of(device).multiprocessors;
}

int device_of(const void* address) {
  check_available({DeviceType::cuda, 0});
  return driver::device_of(address);
}

// ---- streams and events

Stream current_stream(int device) {
  const auto found = streams.find(device);
  return found == streams.end() ? Stream{.handle = nullptr, .device = device} : found->second;
}

void set_current_stream(Stream stream) {
  check_available({DeviceType::cuda, stream.device});
  streams[stream.device] = stream;
}

void synchronize(int device) {
  check_available({DeviceType::cuda, device});
  refuse_while_capturing(device, "waiting for the device");
  driver::synchronize_device(device);
  raise_reports(current_stream(device), true);
}

void synchronize(Stream stream) {
  refuse_capturing(stream, "waiting for the stream");
  driver::synchronize(stream);
  raise_reports(stream, false);
}

void wait_for(Stream waiter, Stream source) {
  check_available({DeviceType::cuda, source.device});
  if (waiter.handle == source.handle) return;
  Event event(false);
  event.record(source);
  event.hold(waiter);
}

// Streams are never destroyed: a block that a pool keeps for one stays ordered with whatever its next owner queues.
OwnedStream::OwnedStream(int device) {
  DeviceState& state = state_of(device);
  {
    const std::lock_guard lock(state.mutex);
    if (!state.idle_streams.empty()) {
      stream_ = state.idle_streams.back();
      state.idle_streams.pop_back();
      return;
    }
  }
  stream_ = driver::create_stream(device);
}

OwnedStream::~OwnedStream() {
  DeviceState& state = state_of(stream_.device);
  const std::lock_guard lock(state.mutex);
  state.idle_streams.push_back(stream_);
}

Event::~Event() {
  if (handle_) driver::destroy_event(handle_);
}

void Event::record(Stream stream) {
  check_available({DeviceType::cuda, stream.device});
  if (handle_ && device_ != stream.device) {
    throw std::runtime_error("[cuda] the event is of cuda:" + std::to_string(device_) +
                             ", the stream of cuda:" + std::to_string(stream.device));
  }
  if (!handle_) handle_ = driver::create_event(stream.device, timed_);
  device_ = stream.device;
  driver::record_event(handle_, stream);
}

void Event::hold(Stream stream) const {
  if (handle_) driver::wait_event(stream, handle_);
}

void Event::synchronize() const {
  if (!handle_) return;
  if (capture_of_thread()) refuse_while_capturing(device_, "waiting for an event");
  driver::synchronize_event(handle_);
  raise_reports(current_stream(device_), false);
}

bool Event::query() const {
  if (!handle_) return true;
  if (capture_of_thread()) refuse_while_capturing(device_, "asking for an event");
  return driver::query_event(handle_);
}

float Event::elapsed_ms(const Event& end) const {
  if (!handle_ || !end.handle_) throw std::runtime_error("[cuda] an event has not been recorded");
  if (!timed_ || !end.timed_) throw std::runtime_error("[cuda] an event was made without enable_timing");
  if (!query() || !end.query()) throw std::runtime_error("[cuda] an event has not happened yet: synchronize first");
  return driver::elapsed_ms(handle_, end.handle_);
}

// ---- memory

Counters& counters_of(int device) {
  return state_of(device).counters;
}

std::shared_ptr<void> allocate(std::size_t bytes, Device device) {
  DeviceState& state = state_of(device.index);
  const Stream stream = current_stream(device.index);
  if (Capture* const capture = capture_of(stream)) return pool_of(*capture).take(bytes, stream);
  return state.memory->take(bytes, stream);
}

std::shared_ptr<void> allocate_pinned(std::size_t bytes, int device) {
  return state_of(device).pinned->take(bytes, {.handle = nullptr, .device = device});
}

bool is_pinned(const std::shared_ptr<void>& owner) {
  const Lease* lease = std::get_deleter<Lease>(owner);
  return lease && lease->pool->kind() == Memory::pinned;
}

void record_use(const std::shared_ptr<void>& owner, Stream stream) {
  if (Lease* lease = std::get_deleter<Lease>(owner)) lease->pool->add_user(*lease, stream);
}

DeviceMemoryStats memory_stats(int device) {
  const Counters& counters = state_of(device).counters;
  DeviceMemoryStats stats{};
  stats.in_use_bytes = counters.in_use_bytes;
  stats.cached_bytes = counters.cached_bytes;
  stats.peak_bytes = counters.peak_bytes;
  stats.graph_bytes = counters.graph_bytes;
  stats.pinned_bytes = counters.pinned_bytes;
  return stats;
}

void empty_cache() {
  for (const auto& state : devices().each) {
    state->memory->empty();
    state->pinned->empty();
  }
}

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes) {
  if (bytes == 0) return;
  const Device device = to_device.type == DeviceType::cuda ? to_device : from_device;
  const Stream stream = current_stream(device.index);
  if (to_device.type == DeviceType::cpu) {
    refuse_capturing(stream, "reading a device's memory on the host");
  } else if (from_device.type == DeviceType::cpu) {
    refuse_capturing(stream, "copying to a device from memory that is not page-locked, or without non_blocking,");
  }
  driver::copy(to, from, bytes, stream);
  if (to_device.type == DeviceType::cuda && from_device.type == DeviceType::cuda) return;
  driver::synchronize(stream);
  raise_reports(stream, false);
}

void copy_pinned(void* to, const void* from, std::size_t bytes, const std::shared_ptr<void>& host, int device) {
  if (bytes == 0) return;
  const Stream stream = current_stream(device);
  driver::copy(to, from, bytes, stream);
  if (Capture* const capture = capture_of(stream)) {
    keep(*capture, host);
  } else {
    record_use(host, stream);
  }
}

void zero_bytes(void* to, std::size_t bytes, Device device) {
  if (bytes > 0) driver::zero(to, bytes, current_stream(device.index));
}

}  // namespace drupe::cuda
