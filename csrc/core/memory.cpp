#include "core/memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace drupe {
namespace {

// To AddressSanitizer, a block in the pool is out of bounds, and so is what lies past the bytes asked for.
void forbid([[maybe_unused]] void* block, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block, bytes);
#endif
}
void allow([[maybe_unused]] void* block, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block, bytes);
#endif
}

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLargest = std::size_t{1} << 62;

// Classes of four per power of two: at most a quarter of a block is slack.
std::size_t size_class(std::size_t bytes) {
  if (bytes <= kAlignment) return kAlignment;
  if (bytes > kLargest) throw std::bad_alloc();
  const std::size_t step = std::max(kAlignment, std::bit_floor(bytes - 1) / 4);
  return (bytes + step - 1) / step * step;
}

void* system_allocate(std::size_t bytes) {
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}

class Pool {
 public:
  void* take(std::size_t bytes) {
    void* block = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (auto it = free_.find(bytes); it != free_.end() && !it->second.empty()) {
        block = it->second.back();
        it->second.pop_back();
        stats_.cached_bytes -= bytes;
      }
    }
    if (!block) block = system_allocate(bytes);
    if (!block) {
      drop_cached();
      block = system_allocate(bytes);
    }
    if (!block) throw std::bad_alloc();
    std::lock_guard lock(mutex_);
    stats_.in_use_bytes += bytes;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.in_use_bytes);
    return block;
  }

  void give_back(void* block, std::size_t bytes) noexcept {
    std::lock_guard lock(mutex_);
    stats_.in_use_bytes -= bytes;
    try {
      free_[bytes].push_back(block);
      stats_.cached_bytes += bytes;
      forbid(block, bytes);
    } catch (const std::bad_alloc&) {
      std::free(block);
    }
  }

  void drop_cached() {
    std::map<std::size_t, std::vector<void*>> blocks;
    {
      std::lock_guard lock(mutex_);
      blocks.swap(free_);
      stats_.cached_bytes = 0;
    }
    for (auto& [bytes, list] : blocks) {
      for (void* block : list) {
        allow(block, bytes);
        std::free(block);
      }
    }
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.in_use_bytes;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;
  MemoryStats stats_{};
};

// Never destroyed: tensors may outlive static destruction.
Pool& pool() {
  static Pool* instance = [] {
    // A fork while another thread is in here would leave the child with a pool that is locked for good.
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
    return new Pool;
  }();
  return *instance;
}

}  // namespace

void* take_block(std::size_t bytes) {
  const std::size_t size = size_class(bytes);
  void* block = pool().take(size);
  forbid(block, size);
  allow(block, bytes);
  return block;
}
void return_block(void* block, std::size_t bytes) noexcept {
  pool().give_back(block, size_class(bytes));
}

std::shared_ptr<void> allocate(std::size_t bytes) {
  return {take_block(bytes), [bytes](void* block) { return_block(block, bytes); }};
}

MemoryStats memory_stats() {
  return pool().stats();
}
void reset_peak_memory() {
  pool().reset_peak();
}
void empty_cache() {
  pool().drop_cached();
}

}  // namespace drupe
