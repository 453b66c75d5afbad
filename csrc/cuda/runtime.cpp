// Devices, the stream that ops go to, and a caching pool of device memory for each device and stream.
#include <platform/driver.h>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/cuda.h"

namespace drupe::cuda {
namespace {

constexpr std::size_t kSmallest = 512;

// Classes of four per power of two, as the host's pool.
std::size_t size_class(std::size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  check(bytes <= std::size_t{1} << 62, "cuda", bytes, " bytes are more than any device has");
  const std::size_t step = std::max(kSmallest, std::bit_floor(bytes - 1) / 4);
  return (bytes + step - 1) / step * step;
}

// Blocks go back to the stream that they were taken for: what that stream runs next comes after their last use there.
class Pool {
 public:
  void* take(std::size_t bytes, Stream stream) {
    const std::size_t size = size_class(bytes);
    const std::lock_guard lock(mutex_);
    auto& reusable = free_[{stream.handle, size}];
    void* block = nullptr;
    if (!reusable.empty()) {
      block = reusable.back();
      reusable.pop_back();
      stats_.cached_bytes -= size;
    } else {
      block = driver::allocate(size, stream.device);
      if (!block) {
        drop_cached(stream.device);
        block = driver::allocate(size, stream.device);
      }
      if (!block) {
        std::ostringstream text;
        text << "[cuda] out of memory on cuda:" << stream.device << ": asked for " << bytes
             << " bytes while tensors hold " << stats_.in_use_bytes << " of "
             << driver::properties(stream.device).memory_bytes;
        throw OutOfMemory(text.str());
      }
    }
    driver::reuse(block, bytes);
    stats_.in_use_bytes += size;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.in_use_bytes);
    return block;
  }

  void give_back(void* block, std::size_t bytes, Stream stream) noexcept {
    const std::size_t size = size_class(bytes);
    const std::lock_guard lock(mutex_);
    stats_.in_use_bytes -= size;
    try {
      free_[{stream.handle, size}].push_back(block);
      stats_.cached_bytes += size;
    } catch (const std::bad_alloc&) {
      driver::release(block, stream.device);
    }
  }

  void empty(int device) {
    const std::lock_guard lock(mutex_);
    drop_cached(device);
  }

  MemoryStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  void drop_cached(int device) {
    driver::synchronize_device(device);
    for (auto& [key, blocks] : free_) {
      for (void* block : blocks) driver::release(block, device);
    }
    free_.clear();
    stats_.cached_bytes = 0;
  }

  std::mutex mutex_;
  std::map<std::pair<void*, std::size_t>, std::vector<void*>> free_;
  MemoryStats stats_{};
};

struct Devices {
  int count = 0;
  std::string reason;
  std::vector<std::unique_ptr<Pool>> pools;
  std::vector<int> multiprocessors;
};

// Never destroyed: tensors may outlive static destruction.
Devices& devices() {
  static Devices* instance = [] {
    auto* found = new Devices;
    found->count = driver::device_count(found->reason);
    for (int i = 0; i < found->count; ++i) {
      found->pools.push_back(std::make_unique<Pool>());
      found->multiprocessors.push_back(driver::properties(i).multiprocessors);
    }
    return found;
  }();
  return *instance;
}

Pool& pool(int device) {
  check_available({DeviceType::cuda, device});
  return *devices().pools[static_cast<std::size_t>(device)];
}

thread_local std::map<int, Stream> streams;

}  // namespace

Status status() {
  const Devices& found = devices();
  return {.available = found.count > 0, .reason = found.reason, .devices = found.count};
}

void check_available(Device device) {
  const Devices& found = devices();
  if (found.count == 0) throw std::runtime_error("[cuda] no device can be used: " + found.reason);
  if (device.index < 0 || device.index >= found.count) {
    throw std::runtime_error("[cuda] there is no cuda:" + std::to_string(device.index) + ": the machine has " +
                             std::to_string(found.count) + " device(s)");
  }
}

int multiprocessors(int device) {
  check_available({DeviceType::cuda, device});
  return devices().multiprocessors[static_cast<std::size_t>(device)];
}

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
  driver::synchronize_device(device);
}

std::shared_ptr<void> allocate(std::size_t bytes, Device device) {
  Pool& from = pool(device.index);
  const Stream stream = current_stream(device.index);
  return {from.take(bytes, stream), [&from, bytes, stream](void* block) { from.give_back(block, bytes, stream); }};
}

MemoryStats memory_stats(int device) {
  return pool(device).stats();
}

void empty_cache() {
  for (int i = 0; i < devices().count; ++i) pool(i).empty(i);
}

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, std::size_t bytes) {
  if (bytes == 0) return;
  const Device device = to_device.type == DeviceType::cuda ? to_device : from_device;
  const Stream stream = current_stream(device.index);
  driver::copy(to, from, bytes, stream);
  if (to_device.type == DeviceType::cpu || from_device.type == DeviceType::cpu) driver::synchronize(stream);
}

void zero_bytes(void* to, std::size_t bytes, Device device) {
  if (bytes > 0) driver::zero(to, bytes, current_stream(device.index));
}

}  // namespace drupe::cuda
