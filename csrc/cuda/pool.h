// Caching pools of blocks: of a device's memory, of that which belongs to a captured graph, of page-locked memory.
//
// A block goes back to the stream that it was taken for: what that stream runs next comes after its last use there.
// Where other streams have used it, it waits until they are through.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/cuda.h"

namespace drupe::cuda {

enum class Memory { device, graph, pinned };

// Of a device's pools together.
struct Counters {
  std::atomic<std::size_t> in_use_bytes{0}, cached_bytes{0}, peak_bytes{0}, graph_bytes{0}, pinned_bytes{0};
};

class Pool;

// What a block's owner knows of it: the deleter of its shared_ptr.
struct Lease {
  std::shared_ptr<Pool> pool;
  std::size_t bytes;
  Stream stream;
  std::vector<Stream> users;  // other streams that have work with it queued

  void operator()(void* block) noexcept;
};

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  Pool(Memory kind, int device, Counters& counters) : kind_(kind), device_(device), counters_(counters) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  Memory kind() const { return kind_; }
  int device() const { return device_; }

  std::shared_ptr<void> take(std::size_t bytes, Stream stream);
  void give_back(void* block, const Lease& lease) noexcept;
  // To the system: everything that nobody holds.
  void empty();
  // That stream has work with the block queued.
  void add_user(Lease& lease, Stream stream);

 private:
  using Key = std::pair<void*, std::size_t>;  // stream, size
  struct Busy {
    void* block;
    Key key;
    std::vector<void*> events;
  };

  void* find(const Key& key);
  void* allocate(std::size_t size);
  void release(void* block);
  void mark(void* block, std::size_t bytes, Stream stream);
  void shelve(void* block, const Key& key);
  void collect(bool all);
  void drop_cached();

  const Memory kind_;
  const int device_;
  Counters& counters_;
  std::mutex mutex_;
  std::map<Key, std::vector<void*>> free_;
  std::vector<Busy> busy_;
};

Counters& counters_of(int device);

}  // namespace drupe::cuda
