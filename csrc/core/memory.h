// Host memory: a caching pool of 64-byte-aligned blocks, large ones on huge pages.
#pragma once

#include <cstddef>
#include <memory>

namespace drupe {

inline constexpr std::size_t kAlignment = 64;

// A block of at least `bytes` bytes, uninitialised; its last owner returns it to the pool.
// Throws std::bad_alloc when neither the pool nor the system has that much.
std::shared_ptr<void> allocate(std::size_t bytes);

struct MemoryStats {
  std::size_t in_use_bytes;  // held by live tensors
  std::size_t cached_bytes;  // kept for reuse
  std::size_t peak_bytes;    // highest in_use_bytes since the last reset, as of each block that the pool gave
};
MemoryStats memory_stats();
void reset_peak_memory();

// Gives every cached block back to the system.
void empty_cache();

// A raw block for this thread alone, from the same pool; it goes back on the same thread with the same size.
void* take_scratch(std::size_t bytes);
void return_scratch(void* block, std::size_t bytes) noexcept;

// A typed scratch array for kernels, uninitialised, freed at scope exit.
template <class T>
class Scratch {
 public:
  [[gnu::always_inline]] explicit Scratch(std::size_t count)
      : bytes_(count * sizeof(T)), data_(static_cast<T*>(take_scratch(bytes_))) {}
  [[gnu::always_inline]] ~Scratch() { return_scratch(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[gnu::always_inline]] T* data() const { return data_; }
  [[gnu::always_inline]] T& operator[](std::size_t i) const { return data_[i]; }

 private:
  std::size_t bytes_;
  T* data_;
};

}  // namespace drupe
