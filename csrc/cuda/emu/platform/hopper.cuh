// The PTX that came with sm_90, one function an instruction, named after its mnemonic; the tensor cores' is in
// wgmma.cuh. Emulated: bytes move at any moment between issue and wait, through the asynchronous proxy.
#pragma once

#include <platform/tensor_map.h>
#include <cstdint>
#include <platform/ptx.cuh>

#include "cuda/emu/async.h"
#include "cuda/emu/wgmma.h"

namespace drupe::cuda {

// Whether the code is compiled for a device that has these instructions.
inline constexpr bool kHopper = true;

// ---- mbarrier (PTX ISA 9.7.13.15): a phase ends once `count` threads have arrived and all expected bytes have come.
// A thread waits for the phase of a parity: 0 is the first; waiting for 1 on a fresh barrier passes.
struct alignas(8) Mbarrier {
  std::uint64_t state;
};

inline void mbarrier_init(Mbarrier& barrier, unsigned count, Where where = Where::current()) {
  emu::mbarrier_init(&barrier, count, where);
}
inline void mbarrier_arrive(Mbarrier& barrier, Where where = Where::current()) {
  emu::mbarrier_arrive(&barrier, false, 0, where);
}
// Arrives at the barrier of this name in another block of the cluster.
inline void mbarrier_arrive_cluster(Mbarrier& barrier, unsigned rank, Where where = Where::current()) {
  emu::mbarrier_arrive(&barrier, true, rank, where);
}
inline void mbarrier_expect_tx(Mbarrier& barrier, unsigned bytes, Where where = Where::current()) {
  emu::mbarrier_expect(&barrier, bytes, false, where);
}
inline void mbarrier_arrive_expect_tx(Mbarrier& barrier, unsigned bytes, Where where = Where::current()) {
  emu::mbarrier_expect(&barrier, bytes, true, where);
}
inline void mbarrier_wait(Mbarrier& barrier, unsigned parity, Where where = Where::current()) {
  emu::mbarrier_wait(&barrier, parity, where);
}

// ---- fences: initialised mbarriers towards the copy engine and the cluster; ordinary stores to shared memory towards
// bulk copies and wgmma.
inline void fence_mbarrier_init() {
  emu::fence_mbarrier_init();
}
inline void fence_proxy_async() {
  emu::fence_proxy_async();
}

// ---- clusters
inline unsigned cluster_ctarank() {
  return emu::cluster_rank();
}
inline unsigned cluster_nctarank() {
  return emu::cluster_blocks();
}
inline void cluster_arrive(Where where = Where::current()) {
  emu::cluster_arrive(where);
}
inline void cluster_wait(Where where = Where::current()) {
  emu::cluster_wait(where);
}
// What lies at this place of shared memory in another block.
template <class T>
inline T* mapa(T* address, unsigned rank, Where where = Where::current()) {
  return static_cast<T*>(emu::map_shared(address, rank, where));
}

// ---- elect.sync: true in one lane of those that come, the same each time.
inline bool elect_one(unsigned mask = kFullMask, Where where = Where::current()) {
  return emu::elect(mask, where);
}

// ---- setmaxnreg: by all warps of a warpgroup. A block's warps share the registers that it was launched with.
template <int kCount>
inline void setmaxnreg_inc(Where where = Where::current()) {
  emu::set_registers(kCount, true, where);
}
template <int kCount>
inline void setmaxnreg_dec(Where where = Where::current()) {
  emu::set_registers(kCount, false, where);
}

// ---- stmatrix: ldmatrix the other way.
template <bool kTransposed = false>
inline void stmatrix_x4(void* row, const std::uint32_t (&registers)[4], Where where = Where::current()) {
  emu::store_matrices(registers, row, 4, kTransposed, where);
}
template <bool kTransposed = false>
inline void stmatrix_x2(void* row, const std::uint32_t (&registers)[2], Where where = Where::current()) {
  emu::store_matrices(registers, row, 2, kTransposed, where);
}

// ---- cp.async.bulk.tensor (9.7.9.25.5.2): the box at `at`, innermost coordinate first, to shared memory, whose bytes
// the barrier counts. Elements out of bounds are zero, and count. One thread issues it.
template <int kRank>
inline void cp_async_bulk_tensor(void* to, const TensorMap& map, const int (&at)[kRank], Mbarrier& barrier,
                                 Where where = Where::current()) {
  emu::bulk_load(to, map, kRank, at, nullptr, &barrier, 0, where);
}
// To the same place of each block in the mask, where the barrier of the same place counts.
template <int kRank>
inline void cp_async_bulk_tensor_multicast(void* to, const TensorMap& map, const int (&at)[kRank], Mbarrier& barrier,
                                           std::uint16_t mask, Where where = Where::current()) {
  emu::bulk_load(to, map, kRank, at, nullptr, &barrier, mask, where);
}
// By an im2col map: pixels from `at` on, each shifted by the offsets.
template <int kRank>
inline void cp_async_bulk_tensor_im2col(void* to, const TensorMap& map, const int (&at)[kRank],
                                        const std::uint16_t (&offsets)[kRank - 2], Mbarrier& barrier,
                                        Where where = Where::current()) {
  emu::bulk_load(to, map, kRank, at, offsets, &barrier, 0, where);
}
template <int kRank>
inline void cp_async_bulk_tensor_store(const TensorMap& map, const int (&at)[kRank], const void* from,
                                       Where where = Where::current()) {
  emu::bulk_store(map, kRank, at, from, false, where);
}
template <int kRank>
inline void cp_reduce_async_bulk_tensor_add(const TensorMap& map, const int (&at)[kRank], const void* from,
                                            Where where = Where::current()) {
  emu::bulk_store(map, kRank, at, from, true, where);
}
inline void prefetch_tensormap(const TensorMap&) {}

// ---- cp.async.bulk: plain bytes, a multiple of 16.
inline void cp_async_bulk(void* to, const void* from, unsigned bytes, Mbarrier& barrier,
                          Where where = Where::current()) {
  emu::bulk_load(to, from, bytes, &barrier, where);
}
inline void cp_async_bulk_store(void* to, const void* from, unsigned bytes, Where where = Where::current()) {
  emu::bulk_store(to, from, bytes, where);
}

// ---- groups of the calling thread's bulk stores. The `_read` form waits until shared memory was read, the other until
// global memory was written.
inline void cp_async_bulk_commit_group() {
  emu::bulk_commit();
}
template <int kPending>
inline void cp_async_bulk_wait_group(Where where = Where::current()) {
  emu::bulk_wait(kPending, false, where);
}
template <int kPending>
inline void cp_async_bulk_wait_group_read(Where where = Where::current()) {
  emu::bulk_wait(kPending, true, where);
}

}  // namespace drupe::cuda
