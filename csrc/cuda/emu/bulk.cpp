// Bulk copies between global and shared memory, by tensor map or plain (PTX ISA 9.7.9.25.5).
#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/emu/async.h"
#include "cuda/emu/grid.h"
#include "cuda/emu/memory.h"

namespace drupe::emu {
namespace {

std::uint32_t steps(std::uint32_t extent, std::uint32_t stride) {
  return (extent + stride - 1) / stride;
}

std::size_t box_bytes(const TensorMap& map) {
  std::size_t bytes = size_of(map.dtype);
  if (map.im2col) return bytes * map.channels * map.pixels;
  for (int d = 0; d < map.rank; ++d) bytes *= steps(map.box[d], map.element_strides[d]);
  return bytes;
}

// Calls f(element of the box in order, its address or null where it is out of bounds).
template <class F>
void for_each_tiled(const TensorMap& map, const int* at, const F& f) {
  std::uint32_t count[kMaxRank], index[kMaxRank] = {};
  std::size_t total = 1;
  for (int d = 0; d < map.rank; ++d) total *= count[d] = steps(map.box[d], map.element_strides[d]);
  for (std::size_t i = 0; i < total; ++i) {
    std::int64_t offset = 0;
    bool inside = true;
    for (int d = 0; d < map.rank; ++d) {
      const std::int64_t x = at[d] + static_cast<std::int64_t>(index[d]) * map.element_strides[d];
      inside &= x >= 0 && x < static_cast<std::int64_t>(map.sizes[d]);
      offset += x * static_cast<std::int64_t>(map.strides[d]);
    }
    f(i, inside ? map.base + offset : nullptr);
    for (int d = 0; d < map.rank && ++index[d] == count[d]; ++d) index[d] = 0;
  }
}

// Pixels walk through the bounding box, from at, row by row and image by image; offsets shift where each one is read.
template <class F>
void for_each_im2col(const TensorMap& map, const int* at, const int* offsets, const F& f) {
  const int spatial = map.rank - 2;
  std::int64_t pixel[4];
  for (int d = 0; d <= spatial; ++d) pixel[d] = at[d + 1];
  std::size_t element = 0;
  for (std::uint32_t p = 0; p < map.pixels; ++p) {
    std::int64_t offset = pixel[spatial] * static_cast<std::int64_t>(map.strides[map.rank - 1]);
    bool inside = pixel[spatial] >= 0 && pixel[spatial] < static_cast<std::int64_t>(map.sizes[map.rank - 1]);
    for (int d = 0; d < spatial; ++d) {
      const std::int64_t x = pixel[d] + offsets[d];
      inside &= x >= 0 && x < static_cast<std::int64_t>(map.sizes[d + 1]);
      offset += x * static_cast<std::int64_t>(map.strides[d + 1]);
    }
    for (std::uint32_t c = 0; c < map.channels; ++c) {
      const std::int64_t x = at[0] + static_cast<std::int64_t>(c);
      const bool within = inside && x >= 0 && x < static_cast<std::int64_t>(map.sizes[0]);
      f(element++, within ? map.base + offset + x * static_cast<std::int64_t>(map.strides[0]) : nullptr);
    }
    for (int d = 0; d <= spatial; ++d) {
      pixel[d] += d < spatial ? map.element_strides[d + 1] : 1;
      if (d == spatial || pixel[d] < static_cast<std::int64_t>(map.sizes[d + 1]) + map.upper[d]) break;
      pixel[d] = map.lower[d];
    }
  }
}

template <class F>
void for_each(const Transfer& transfer, const F& f) {
  if (transfer.map.im2col) {
    for_each_im2col(transfer.map, transfer.at, transfer.offsets, f);
  } else {
    for_each_tiled(transfer.map, transfer.at, f);
  }
}

// An element of a box in shared memory: dense, its address swizzled.
std::byte* shared_element(const Transfer& transfer, Block& block, std::size_t element) {
  const std::size_t address = transfer.offset + element * size_of(transfer.map.dtype);
  return block.shared + swizzle(address, transfer.map.swizzle_bytes);
}

void load(Transfer& transfer) {
  for (Block* block : transfer.to) {
    if (transfer.map.rank == 0) {
      std::memcpy(block->shared + transfer.offset, transfer.source, transfer.bytes);
    } else {
      const std::size_t size = size_of(transfer.map.dtype);
      for_each(transfer, [&](std::size_t element, const std::byte* from) {
        std::byte* to = shared_element(transfer, *block, element);
        if (from) {
          std::memcpy(to, from, size);
        } else {
          std::memset(to, 0, size);
        }
      });
    }
    const int agent = block->agent(0);
    const std::uint32_t count = ++block->agent_clocks[0];
    end_async_write(*block, transfer.offset, transfer.bytes, agent, count);
    complete_transaction(*block, transfer.barrier, transfer.bytes, agent, count);
  }
}

void read_staged(Transfer& transfer) {
  transfer.staged.resize(transfer.bytes);
  if (transfer.map.rank == 0) {
    std::memcpy(transfer.staged.data(), transfer.from->shared + transfer.offset, transfer.bytes);
    return;
  }
  const std::size_t size = size_of(transfer.map.dtype);
  for (std::size_t i = 0; i < transfer.bytes / size; ++i) {
    std::memcpy(transfer.staged.data() + i * size, shared_element(transfer, *transfer.from, i), size);
  }
}

template <class T>
void add(std::byte* to, const std::byte* from) {
  T sum, more;
  std::memcpy(&sum, to, sizeof(T));
  std::memcpy(&more, from, sizeof(T));
  sum = static_cast<T>(sum + more);
  std::memcpy(to, &sum, sizeof(T));
}

void write_staged(Transfer& transfer) {
  if (transfer.map.rank == 0) {
    std::memcpy(transfer.destination, transfer.staged.data(), transfer.bytes);
    return;
  }
  const std::size_t size = size_of(transfer.map.dtype);
  // Blocks of other clusters add on other threads: one at a time.
  static std::mutex adding;
  std::unique_lock lock(adding, std::defer_lock);
  if (transfer.add) lock.lock();
  for_each(transfer, [&](std::size_t element, std::byte* to) {
    if (!to) return;
    const std::byte* from = transfer.staged.data() + element * size;
    if (!transfer.add) {
      std::memcpy(to, from, size);
    } else if (transfer.map.dtype == Dtype::f32) {
      add<float>(to, from);
    } else if (transfer.map.dtype == Dtype::bf16) {
      add<BFloat16>(to, from);
    } else {
      add<Float16>(to, from);
    }
  });
}

void advance(Transfer& transfer) {
  using Step = Transfer::Step;
  if (!transfer.store) {
    load(transfer);
    transfer.step = Step::done;
  } else if (transfer.step == Step::issued) {
    read_staged(transfer);
    transfer.step = Step::read;
  } else if (transfer.step == Step::read) {
    write_staged(transfer);
    transfer.step = Step::done;
  }
}

// Checks what both directions ask for, and fills in the box.
Transfer prepare_tensor(const TensorMap& map, int rank, const int* at, const std::uint16_t* offsets, const void* shared,
                        Where where) {
  if (map.rank != rank)
    fault("a tensor map of rank " + std::to_string(map.rank) + " used with " + std::to_string(rank), where);
  Thread& thread = *current();
  if (!is_shared(thread, shared)) fault("a bulk copy whose box is not in the block's shared memory", where);
  Transfer transfer;
  transfer.map = map;
  std::copy(at, at + rank, transfer.at);
  if (offsets) std::copy(offsets, offsets + rank - 2, transfer.offsets);
  transfer.bytes = box_bytes(map);
  transfer.offset = static_cast<std::size_t>(static_cast<const std::byte*>(shared) - thread.block->shared);
  if (transfer.offset % 128 != 0) fault("a bulk tensor copy's box must be aligned to 128 bytes", where);
  if (!is_device_range(map.base, 1)) fault("a tensor map of memory that is not the device's", where);
  for_each(transfer, [&](std::size_t, const std::byte* address) {
    if (address && !is_device_range(address, size_of(map.dtype))) {
      fault("a tensor map that reaches outside any live block of device memory", where);
    }
  });
  return transfer;
}

Transfer prepare_plain(const void* shared, const void* global, std::size_t bytes, Where where) {
  Thread& thread = *current();
  if (!is_shared(thread, shared)) fault("a bulk copy from or to what is not the block's shared memory", where);
  Transfer transfer;
  transfer.bytes = bytes;
  transfer.offset = static_cast<std::size_t>(static_cast<const std::byte*>(shared) - thread.block->shared);
  if (bytes == 0 || bytes % 16 != 0 || transfer.offset % 16 != 0 ||
      reinterpret_cast<std::uintptr_t>(global) % 16 != 0) {
    fault("a bulk copy of " + std::to_string(bytes) + " bytes: size and addresses must be multiples of 16", where);
  }
  if (!is_device_range(global, bytes)) fault("a bulk copy of device memory outside any live block", where);
  return transfer;
}

void issue_load(Transfer transfer, void* barrier, unsigned mask, Where where) {
  Thread& thread = *current();
  Cluster& cluster = *thread.block->cluster;
  if (!is_shared(thread, barrier)) fault("a bulk copy with an mbarrier outside the block's shared memory", where);
  transfer.barrier = static_cast<std::size_t>(static_cast<std::byte*>(barrier) - thread.block->shared);
  if (mask >> cluster.blocks.size()) fault("a multicast to blocks outside the cluster", where);
  for (Block& block : cluster.blocks) {
    if (mask ? !(mask >> block.rank & 1u) : &block != thread.block) continue;
    require_transaction(thread, block, transfer.barrier, where);
    begin_async_write(thread, block.shared + transfer.offset, transfer.bytes, where);
    transfer.to.push_back(&block);
  }
  cluster.transfers.push_back(std::make_shared<Transfer>(std::move(transfer)));
  maybe_yield();
}

void issue_store(Transfer transfer, Where where) {
  Thread& thread = *current();
  transfer.store = true;
  transfer.from = thread.block;
  begin_async_read(thread, thread.block->shared + transfer.offset, transfer.bytes, where);
  auto shared = std::make_shared<Transfer>(std::move(transfer));
  thread.block->cluster->transfers.push_back(shared);
  if (thread.bulk_groups.empty()) thread.bulk_groups.emplace_back();
  thread.bulk_groups.back().transfers.push_back(std::move(shared));
  maybe_yield();
}

void end_reads(Thread& thread, BulkGroup& group) {
  if (group.read) return;
  group.read = true;
  for (const std::shared_ptr<Transfer>& transfer : group.transfers) {
    if (transfer->step == Transfer::Step::issued) advance(*transfer);
    end_async_read(*transfer->from, transfer->offset, transfer->bytes, thread.id(), thread.clock.own);
  }
}

}  // namespace

void check_tensor_map(const TensorMap& map) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("[cuda] a tensor map needs ") + what);
  };
  const std::size_t size = size_of(map.dtype);
  require(map.rank >= (map.im2col ? 3 : 1) && map.rank <= kMaxRank, "1 to 5 dimensions, 3 to 5 for im2col");
  require(reinterpret_cast<std::uintptr_t>(map.base) % 16 == 0, "an address that is a multiple of 16");
  for (int d = 0; d < map.rank; ++d) {
    require(map.sizes[d] >= 1 && map.sizes[d] <= std::uint64_t{1} << 32, "sizes from 1 to 2^32");
    require(d == 0 || (map.strides[d] % 16 == 0 && map.strides[d] < std::uint64_t{1} << 40),
            "strides that are multiples of 16 bytes below 2^40");
    require(map.element_strides[d] >= 1 && map.element_strides[d] <= 8, "element strides from 1 to 8");
    require(map.im2col || (map.box[d] >= 1 && map.box[d] <= 256), "box dimensions from 1 to 256");
  }
  require(!map.im2col || (map.channels >= 1 && map.channels <= 256 && map.pixels >= 1 && map.pixels <= 1024),
          "1 to 256 channels and 1 to 1024 pixels a box");
  const std::size_t inner = (map.im2col ? map.channels : map.box[0]) * size;
  require(inner % 16 == 0, "an inner box that is a multiple of 16 bytes");
  require(map.swizzle_bytes == 0 || inner == static_cast<std::size_t>(map.swizzle_bytes),
          "an inner box as wide as the swizzle (a narrower one is legal, but not emulated)");
}

void bulk_load(void* to, const TensorMap& map, int rank, const int* at, const std::uint16_t* offsets, void* barrier,
               unsigned mask, Where where) {
  const Inside inside("cp.async.bulk.tensor");
  if (map.im2col != (offsets != nullptr)) fault("an im2col map used for tiles, or the other way round", where);
  Transfer transfer = prepare_tensor(map, rank, at, offsets, to, where);
  issue_load(std::move(transfer), barrier, mask, where);
}

void bulk_load(void* to, const void* from, std::size_t bytes, void* barrier, Where where) {
  const Inside inside("cp.async.bulk");
  Transfer transfer = prepare_plain(to, from, bytes, where);
  transfer.source = static_cast<const std::byte*>(from);
  issue_load(std::move(transfer), barrier, 0, where);
}

void bulk_store(const TensorMap& map, int rank, const int* at, const void* from, bool add, Where where) {
  const Inside inside("cp.async.bulk.tensor");
  if (map.im2col) fault("a store by an im2col map", where);
  Transfer transfer = prepare_tensor(map, rank, at, nullptr, from, where);
  transfer.add = add;
  if (add && map.dtype != Dtype::f32 && map.dtype != Dtype::bf16 && map.dtype != Dtype::f16) {
    fault("a bulk reduction of a type other than float32, float16 and bfloat16", where);
  }
  issue_store(std::move(transfer), where);
}

void bulk_store(void* to, const void* from, std::size_t bytes, Where where) {
  const Inside inside("cp.async.bulk");
  Transfer transfer = prepare_plain(from, to, bytes, where);
  transfer.destination = static_cast<std::byte*>(to);
  issue_store(std::move(transfer), where);
}

void bulk_commit() {
  const Inside inside("cp.async.bulk.commit_group");
  std::vector<BulkGroup>& groups = inside.thread.bulk_groups;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void bulk_wait(int pending, bool read, Where) {
  const Inside inside("cp.async.bulk.wait_group");
  Thread& thread = inside.thread;
  const int ended = static_cast<int>(thread.bulk_groups.size()) - 1 - pending;
  for (int i = 0; i < ended; ++i) {
    BulkGroup& group = thread.bulk_groups[static_cast<std::size_t>(i)];
    end_reads(thread, group);
    if (read) continue;
    for (const std::shared_ptr<Transfer>& transfer : group.transfers) {
      if (transfer->step == Transfer::Step::read) advance(*transfer);
    }
    group.transfers.clear();
  }
}

bool advance_transfers(Cluster& cluster) {
  std::vector<std::shared_ptr<Transfer>>& transfers = cluster.transfers;
  std::erase_if(transfers, [](const auto& transfer) { return transfer->step == Transfer::Step::done; });
  if (transfers.empty()) return false;
  advance(*transfers[cluster.random() % transfers.size()]);
  return true;
}

void check_transfers(Thread& last) {
  const Block* block = last.block;
  for (const std::shared_ptr<Transfer>& transfer : block->cluster->transfers) {
    if (transfer->step == Transfer::Step::done) continue;
    if (transfer->store) {
      if (transfer->from == block && transfer->step == Transfer::Step::issued) {
        fault("a block ends while a bulk store reads its shared memory", "its end");
      }
    } else if (std::find(transfer->to.begin(), transfer->to.end(), block) != transfer->to.end()) {
      fault("a block ends while a bulk copy to its shared memory is in flight", "its end");
    }
  }
}

}  // namespace drupe::emu
