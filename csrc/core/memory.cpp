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
// Blocks of these sizes, which would not fill huge pages alone, are cut from slabs of several.
constexpr std::size_t kLeastOfSlab = std::size_t{256} << 10, kMostOfSlab = kHugePage - 1, kSlabBlocks = 8;

// Classes of four per power of two: at most a quarter of a block is slack.
std::size_t size_class(std::size_t bytes) {
  if (bytes <= kAlignment) return kAlignment;
  if (bytes > kLargest) throw std::bad_alloc();
  const std::size_t step = std::max(kAlignment, std::bit_floor(bytes - 1) / 4);
  return (bytes + step - 1) / step * step;
}

bool is_of_slab(std::size_t bytes) {
  return bytes >= kLeastOfSlab && bytes <= kMostOfSlab;
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
    void* block = take_cached(bytes);
    if (!block) block = make(bytes);
    if (!block) {
      drop_cached();
      block = make(bytes);
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
      if (!is_of_slab(bytes)) std::free(block);
    }
  }

  void drop_cached() {
    std::lock_guard lock(mutex_);
    for (auto& [bytes, list] : free_) {
      std::vector<void*>& fresh = fresh_[bytes];
      fresh.reserve(fresh.size() + list.size());
      while (void* block = pop(free_, bytes)) {
        stats_.cached_bytes -= bytes;
        allow(block, bytes);
        if (is_of_slab(bytes)) {
          madvise(block, bytes, MADV_DONTNEED);
          fresh.push_back(block);
        } else {
          std::free(block);
        }
      }
    }
    std::erase_if(slabs_, [this](const auto& slab) { return drop_slab(static_cast<char*>(slab.first), slab.second); });
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
  using Blocks = std::map<std::size_t, std::vector<void*>>;  // by size

  static void* pop(Blocks& blocks, std::size_t bytes) {
    const auto it = blocks.find(bytes);
    if (it == blocks.end() || it->second.empty()) return nullptr;
    void* block = it->second.back();
    it->second.pop_back();
    return block;
  }

  void* take_cached(std::size_t bytes) {
    std::lock_guard lock(mutex_);
    void* block = pop(free_, bytes);
    if (block) stats_.cached_bytes -= bytes;
    return block;
  }

  // A block that was not in use before, or null.
  void* make(std::size_t bytes) {
    if (!is_of_slab(bytes)) return system_allocate(bytes);
    std::lock_guard lock(mutex_);
    if (void* block = pop(fresh_, bytes)) return block;
    std::vector<void*>& fresh = fresh_[bytes];
    fresh.reserve(kSlabBlocks);
    auto* slab = static_cast<char*>(system_allocate(kSlabBlocks * bytes));
    if (!slab) return nullptr;
    slabs_[slab] = bytes;
    for (std::size_t i = kSlabBlocks - 1; i > 0; --i) fresh.push_back(slab + i * bytes);
    return slab;
  }

  // Gives a slab back to the system if none of its blocks is in use.
  bool drop_slab(char* slab, std::size_t bytes) {
    const auto is_in_slab = [&](const void* block) { return block >= slab && block < slab + kSlabBlocks * bytes; };
    std::vector<void*>& fresh = fresh_[bytes];
    if (std::count_if(fresh.begin(), fresh.end(), is_in_slab) < static_cast<std::ptrdiff_t>(kSlabBlocks)) return false;
    std::erase_if(fresh, is_in_slab);
    std::free(slab);
    return true;
  }

  std::mutex mutex_;
  Blocks free_;                         // given back
  Blocks fresh_;                        // of slabs, with nothing in them
  std::map<void*, std::size_t> slabs_;  // and the size of their blocks
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
