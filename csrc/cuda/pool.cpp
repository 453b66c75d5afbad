#include "cuda/pool.h"

#include <platform/driver.h>
#include <platform/stream.h>
#include <algorithm>
#include <bit>
#include <sstream>

#include "core/check.h"
#include "cuda/graph.h"

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

void raise_to(std::atomic<std::size_t>& peak, std::size_t value) {
  std::size_t before = peak;
  while (before < value && !peak.compare_exchange_weak(before, value)) {
  }
}

}  // namespace

void Lease::operator()(void* block) noexcept {
  // A graph's kernels may read what is let go of during its capture: the graph keeps it.
  Capture* const capture = pool->kind() == Memory::pinned ? nullptr : capture_of_thread();
  if (!capture || device_of(*capture) != pool->device() || &pool_of(*capture) == pool.get()) {
    return pool->give_back(block, *this);
  }
  try {
    keep(*capture, block, *this);
  } catch (const std::bad_alloc&) {  // the block is lost, which is better than reused
  }
}

Pool::~Pool() {
  collect(true);
  for (auto& [key, blocks] : free_) {
    for (void* block : blocks) release(block);
    if (kind_ == Memory::graph) counters_.graph_bytes -= key.second * blocks.size();
  }
}

std::shared_ptr<void> Pool::take(std::size_t bytes, Stream stream) {
  const std::size_t size = size_class(bytes);
  const std::lock_guard lock(mutex_);
  void* block = find({stream.handle, size});
  if (!block) block = allocate(size);
  if (!block && kind_ != Memory::graph) {
    refuse_while_capturing(device_, "making room for an allocation");
    drop_cached();
    block = allocate(size);
  }
  if (!block) {
    std::ostringstream text;
    text << "[cuda] out of " << (kind_ == Memory::pinned ? "page-locked memory" : "memory") << " on cuda:" << device_
         << ": asked for " << bytes << " bytes while tensors hold " << counters_.in_use_bytes << " of "
         << driver::properties(device_).memory_bytes;
    throw OutOfMemory(text.str());
  }
  if (kind_ != Memory::pinned) {
    mark(block, bytes, stream);
    raise_to(counters_.peak_bytes, counters_.in_use_bytes += size);
  }
  return {block, Lease{.pool = shared_from_this(), .bytes = bytes, .stream = stream, .users = {}}};
}

void Pool::give_back(void* block, const Lease& lease) noexcept {
  const Key key{lease.stream.handle, size_class(lease.bytes)};
  const std::lock_guard lock(mutex_);
  if (kind_ != Memory::pinned) {
    counters_.in_use_bytes -= key.second;
    mark(block, 0, lease.stream);
  }
  Busy busy{.block = block, .key = key, .events = {}};
  try {
    const bool of_graph = kind_ == Memory::graph;  // its events would be part of the capture: it is not used again
    for (const Stream& user : of_graph ? std::vector<Stream>() : lease.users) {
      busy.events.push_back(driver::create_event(device_, false));
      driver::record_event(busy.events.back(), user);
    }
    if (lease.users.empty()) {
      shelve(block, key);
    } else {
      busy_.push_back(busy);
    }
  } catch (const std::exception&) {  // at interpreter exit the driver may be gone: the block is lost with it
    for (void* event : busy.events) driver::destroy_event(event);
  }
}

void Pool::empty() {
  const std::lock_guard lock(mutex_);
  if (free_.empty() && busy_.empty()) return;  // leave a device alone that nobody has used
  refuse_while_capturing(device_, "emptying the cache");
  drop_cached();
}

void Pool::drop_cached() {
  driver::synchronize_device(device_);
  collect(true);
  for (auto& [key, blocks] : free_) {
    for (void* block : blocks) release(block);
    (kind_ == Memory::pinned ? counters_.pinned_bytes : counters_.cached_bytes) -= key.second * blocks.size();
  }
  free_.clear();
}

void Pool::add_user(Lease& lease, Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto same = [&](const Stream& other) { return other.handle == stream.handle; };
  if (kind_ != Memory::pinned && same(lease.stream)) return;
  if (std::none_of(lease.users.begin(), lease.users.end(), same)) lease.users.push_back(stream);
}

void* Pool::find(const Key& key) {
  collect(false);
  const auto found = free_.find(key);
  if (found == free_.end() || found->second.empty()) return nullptr;
  void* block = found->second.back();
  found->second.pop_back();
  if (kind_ == Memory::device) counters_.cached_bytes -= key.second;
  return block;
}

void* Pool::allocate(std::size_t size) {
  void* block = nullptr;
  if (kind_ == Memory::device) {
    if (capture_of_thread()) refuse_while_capturing(device_, "allocating memory on a stream that is not captured");
    block = driver::allocate(size, device_);
  } else {
    const driver::AllowInCapture allow;
    block = kind_ == Memory::graph ? driver::allocate(size, device_) : driver::allocate_pinned(size, device_);
    if (block) (kind_ == Memory::graph ? counters_.graph_bytes : counters_.pinned_bytes) += size;
  }
  return block;
}

void Pool::release(void* block) {
  const driver::AllowInCapture allow;
  if (kind_ == Memory::pinned) {
    driver::release_pinned(block);
  } else {
    driver::release(block, device_);
  }
}

// For the emulator: so many bytes of the block may be used from now on.
void Pool::mark(void* block, std::size_t bytes, Stream stream) {
  driver::reuse(block, bytes);
  if (kind_ != Memory::graph) return;
  Capture* const capture = capture_of(stream);
  if (capture && &pool_of(*capture) == this) driver::record_reuse(block, bytes, stream);
}

void Pool::shelve(void* block, const Key& key) {
  free_[key].push_back(block);
  if (kind_ == Memory::device) counters_.cached_bytes += key.second;
}

// Takes back what other streams are through with; of all of it they are.
void Pool::collect(bool all) {
  if (busy_.empty() || (!all && (kind_ == Memory::graph || capture_of_thread()))) return;  // a capture forbids to ask
  std::erase_if(busy_, [&](const Busy& busy) {
    const auto done = [](void* event) { return driver::query_event(event); };
    if (!all && !std::all_of(busy.events.begin(), busy.events.end(), done)) return false;
    for (void* event : busy.events) driver::destroy_event(event);
    shelve(busy.block, busy.key);
    return true;
  });
}

}  // namespace drupe::cuda
