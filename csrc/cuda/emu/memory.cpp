#include "cuda/emu/memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "cuda/emu/asan.h"

namespace drupe::emu {
namespace {

constexpr std::size_t kReserved = std::size_t{64} << 30;
constexpr std::size_t kGranule = 256;
constexpr std::size_t kDefaultCapacity = std::size_t{8} << 30;
// Opening and closing takes time for each page that was ever touched: large ones keep it short.
constexpr std::size_t kPage = std::size_t{2} << 20;

std::size_t round_up(std::size_t bytes) {
  return (bytes + kGranule - 1) / kGranule * kGranule;
}

void* reserve(std::size_t bytes, int protection) {
  void* range = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) throw std::bad_alloc();
  madvise(range, bytes, MADV_HUGEPAGE);
  return range;
}

// Blocks are cut off the range one after the other, each followed by an unused granule, and reused by size.
class Memory {
 public:
  void* allocate(std::size_t bytes) {
    const std::size_t size = round_up(bytes == 0 ? 1 : bytes);
    std::byte* block = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (size > capacity_ || in_use_ > capacity_ - size) return nullptr;
      auto& reusable = free_[size];
      if (!reusable.empty()) {
        block = reusable.back();
        reusable.pop_back();
      } else {
        if (size + kGranule > kReserved - end_) return nullptr;
        block = base_ + end_;
        end_ += size + kGranule;
        if (open_ > 0) protect(PROT_READ | PROT_WRITE);
      }
      in_use_ += size;
      sizes_[block] = size;
    }
    reuse(block, bytes);
    return block;
  }

  void release(void* pointer) {
    auto* block = static_cast<std::byte*>(pointer);
    const std::lock_guard lock(mutex_);
    const auto found = sizes_.find(block);
    if (found == sizes_.end()) std::abort();
    set_valid(block, found->second, 0);
    in_use_ -= found->second;
    free_[found->second].push_back(block);
    sizes_.erase(found);
  }

  void reuse(void* pointer, std::size_t bytes) {
    auto* block = static_cast<std::byte*>(pointer);
    std::size_t size = 0;
    {
      const std::lock_guard lock(mutex_);
      size = sizes_.at(block);
    }
    set_valid(block, size, bytes);
    if (bytes == 0) return;
    const DeviceAccess access;
    std::memset(block, 0xff, bytes);
  }

  bool contains(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= base_ && byte < base_ + kReserved;
  }

  bool is_valid(const void* address, std::size_t bytes) const {
    if (!contains(address)) return false;
    auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(address) - base_);
    while (bytes > 0) {
      const std::size_t within = offset % kGranule, valid = valid_[offset / kGranule];
      const std::size_t part = bytes < kGranule - within ? bytes : kGranule - within;
      if (within + part > valid) return false;
      offset += part;
      bytes -= part;
    }
    return true;
  }

  void open() {
    const std::lock_guard lock(mutex_);
    if (open_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::lock_guard lock(mutex_);
    if (--open_ == 0) protect(PROT_NONE);
  }
  std::size_t capacity() const { return capacity_; }

 private:
  static std::size_t read_capacity() {
    const char* text = std::getenv("DRUPE_EMU_MEMORY_BYTES");
    const std::size_t bytes = text ? std::strtoull(text, nullptr, 10) : 0;
    return bytes ? bytes : kDefaultCapacity;
  }

  void protect(int protection) {
    if (end_ > 0) mprotect(base_, (end_ + kPage - 1) / kPage * kPage, protection);
  }

  void set_valid(const std::byte* block, std::size_t size, std::size_t bytes) {
    permit(block, bytes);
    forbid(block + bytes, size + kGranule - bytes);
    std::uint16_t* valid = valid_ + static_cast<std::size_t>(block - base_) / kGranule;
    for (std::size_t at = 0; at < size; at += kGranule) {
      *valid++ = static_cast<std::uint16_t>(at >= bytes ? 0 : bytes - at < kGranule ? bytes - at : kGranule);
    }
  }

  std::byte* base_ = static_cast<std::byte*>(reserve(kReserved, PROT_NONE));
  std::uint16_t* valid_ =
      static_cast<std::uint16_t*>(reserve(kReserved / kGranule * sizeof(std::uint16_t), PROT_READ | PROT_WRITE));
  const std::size_t capacity_ = read_capacity();
  std::mutex mutex_;
  std::map<std::size_t, std::vector<std::byte*>> free_;
  std::map<std::byte*, std::size_t> sizes_;
  std::size_t end_ = 0, in_use_ = 0;
  int open_ = 0;
};

struct Pinned {
  std::mutex mutex;
  std::map<const std::byte*, std::size_t> sizes;
};

// Never destroyed: tensors may outlive static destruction.
Pinned& pinned() {
  static Pinned* instance = new Pinned;
  return *instance;
}
Memory& memory() {
  static Memory* instance = new Memory;
  return *instance;
}

}  // namespace

void* device_allocate(std::size_t bytes) {
  return memory().allocate(bytes);
}
void device_free(void* block) {
  memory().release(block);
}
void device_reuse(void* block, std::size_t bytes) {
  memory().reuse(block, bytes);
}
bool is_device_address(const void* address) {
  return memory().contains(address);
}
bool is_device_range(const void* address, std::size_t bytes) {
  return memory().is_valid(address, bytes);
}
std::size_t device_capacity() {
  return memory().capacity();
}
void* pinned_allocate(std::size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, kGranule, round_up(bytes)) != 0) return nullptr;
  std::memset(block, 0xff, bytes);
  const std::lock_guard lock(pinned().mutex);
  pinned().sizes[static_cast<std::byte*>(block)] = bytes;
  return block;
}
void pinned_free(void* block) {
  const std::lock_guard lock(pinned().mutex);
  if (pinned().sizes.erase(static_cast<std::byte*>(block)) == 0) std::abort();
  std::free(block);
}
bool is_pinned_address(const void* address) {
  const auto* byte = static_cast<const std::byte*>(address);
  const std::lock_guard lock(pinned().mutex);
  const auto after = pinned().sizes.upper_bound(byte);
  return after != pinned().sizes.begin() && byte < std::prev(after)->first + std::prev(after)->second;
}
DeviceAccess::DeviceAccess() {
  memory().open();
}
DeviceAccess::~DeviceAccess() {
  memory().close();
}

}  // namespace drupe::emu
