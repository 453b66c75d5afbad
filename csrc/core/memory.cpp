#include "core/memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>
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

struct Block {
  void* data = nullptr;
  std::size_t bytes = 0;
};

// What a thread's kernels gave back last, for its next ones: threads whose tasks are short would wait for each other at
// the pool. Its lock is there for whoever asks or empties the pool.
class ThreadBlocks {
 public:
  static constexpr std::size_t kMostBytes = std::size_t{128} << 10;
  static constexpr int kCount = 8;

  void* take(std::size_t bytes) {
    std::lock_guard lock(mutex_);
    for (Block& block : blocks_) {
      if (block.bytes == bytes) return replace(block, {}).data;
    }
    return nullptr;
  }

  // Keeps a block, and returns the one that has to make way for it, if any.
  Block keep(Block given) {
    std::lock_guard lock(mutex_);
    for (Block& block : blocks_) {
      if (block.bytes == 0) return replace(block, given);
    }
    return replace(blocks_[next_++ % kCount], given);
  }

  std::size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  // Calls f for each block that is here, and keeps none.
  template <class F>
  void drain(const F& f) {
    std::lock_guard lock(mutex_);
    for (Block& block : blocks_) {
      if (block.bytes != 0) f(replace(block, {}));
    }
  }

 private:
  Block replace(Block& place, Block block) {
    bytes_.store(bytes() + block.bytes - place.bytes, std::memory_order_relaxed);
    return std::exchange(place, block);
  }

  std::mutex mutex_;
  Block blocks_[kCount];
  std::atomic<std::size_t> bytes_{0};
  unsigned next_ = 0;
};

class Pool {
 public:
  void* take(std::size_t bytes) {
    {
      std::lock_guard lock(mutex_);
      if (void* block = pop(free_, bytes)) {
        stats_.cached_bytes -= bytes;
        count_used(bytes);
        return block;
      }
    }
    void* block = make(bytes);
    if (!block) {
      drop_cached();
      block = make(bytes);
    }
    if (!block) throw std::bad_alloc();
    std::lock_guard lock(mutex_);
    count_used(bytes);
    return block;
  }

  void give_back(Block block) noexcept {
    std::lock_guard lock(mutex_);
    put(block);
  }

  void drop_cached() {
    std::lock_guard lock(mutex_);
    for (ThreadBlocks* thread : threads_) {
      thread->drain([this](Block block) { put(block); });
    }
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
    MemoryStats all = stats_;
    const std::size_t kept = kept_bytes();
    all.in_use_bytes -= kept;
    all.cached_bytes += kept;
    return all;
  }

  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.in_use_bytes - kept_bytes();
  }

  void join(ThreadBlocks* thread) {
    std::lock_guard lock(mutex_);
    threads_.push_back(thread);
  }
  void leave(ThreadBlocks* thread) noexcept {
    std::lock_guard lock(mutex_);
    std::erase(threads_, thread);
    thread->drain([this](Block block) { put(block); });
  }

  // Around a fork, from which no other thread may stay away with a lock.
  void lock() {
    mutex_.lock();
    for (ThreadBlocks* thread : threads_) thread->lock();
  }
  void unlock() {
    for (ThreadBlocks* thread : threads_) thread->unlock();
    mutex_.unlock();
  }
  // In the child, where the other threads are gone: takes what they kept.
  void be_alone_with(ThreadBlocks* own) noexcept {
    std::erase_if(threads_, [&](ThreadBlocks* thread) {
      if (thread != own) thread->drain([this](Block block) { put(block); });
      return thread != own;
    });
  }

 private:
  using Blocks = std::map<std::size_t, std::vector<void*>>;  // by size

  static void* pop(Blocks& blocks, std::size_t bytes) {
    const auto it = blocks.find(bytes);
    if (it == blocks.end() || it->second.empty()) return nullptr;
    void* block = it->second.back();
    it->second.pop_back();
    return block;
  }

  std::size_t kept_bytes() const {
    std::size_t bytes = 0;
    for (const ThreadBlocks* thread : threads_) bytes += thread->bytes();
    return bytes;
  }

  void count_used(std::size_t bytes) {
    stats_.in_use_bytes += bytes;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.in_use_bytes - kept_bytes());
  }

  void put(Block block) noexcept {
    stats_.in_use_bytes -= block.bytes;
    try {
      free_[block.bytes].push_back(block.data);
      stats_.cached_bytes += block.bytes;
      forbid(block.data, block.bytes);
    } catch (const std::bad_alloc&) {
      if (!is_of_slab(block.bytes)) std::free(block.data);
    }
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
  std::vector<ThreadBlocks*> threads_;
  MemoryStats stats_{};
};

ThreadBlocks& thread_blocks();

// Never destroyed: tensors may outlive static destruction.
Pool& pool() {
  static Pool* instance = [] {
    // A fork while another thread is in here would leave the child with a pool that is locked for good.
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); },
                   [] {
                     pool().unlock();
                     pool().be_alone_with(&thread_blocks());
                   });
    return new Pool;
  }();
  return *instance;
}

ThreadBlocks& thread_blocks() {
  struct Member {
    ThreadBlocks blocks;
    Member() { pool().join(&blocks); }
    ~Member() { pool().leave(&blocks); }
  };
  thread_local Member member;
  return member.blocks;
}

// To be used up to `bytes`.
void* opened(void* block, std::size_t bytes) {
  forbid(block, size_class(bytes));
  allow(block, bytes);
  return block;
}

}  // namespace

void* take_scratch(std::size_t bytes) {
  const std::size_t size = size_class(bytes);
  void* block = size <= ThreadBlocks::kMostBytes ? thread_blocks().take(size) : nullptr;
  return opened(block ? block : pool().take(size), bytes);
}

void return_scratch(void* data, std::size_t bytes) noexcept {
  Block block{data, size_class(bytes)};
  if (block.bytes <= ThreadBlocks::kMostBytes) {
    forbid(block.data, block.bytes);
    block = thread_blocks().keep(block);
  }
  if (block.bytes != 0) pool().give_back(block);
}

std::shared_ptr<void> allocate(std::size_t bytes) {
  const std::size_t size = size_class(bytes);
  return {opened(pool().take(size), bytes), [size](void* data) { pool().give_back({data, size}); }};
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
