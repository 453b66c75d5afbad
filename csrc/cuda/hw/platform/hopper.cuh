// The PTX that came with sm_90, one function an instruction, named after its mnemonic; the tensor cores' is in
// wgmma.cuh. The emulated twin says in full what each does. Compiled for an older device they trap: launchers must not
// get there.
#pragma once

#include <platform/tensor_map.h>
#include <cstdint>
#include <platform/ptx.cuh>

namespace drupe::cuda {

// Whether the code is compiled for a device that has these instructions: wgmma and setmaxnreg are sm_90a's alone.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHopper = true;
#else
inline constexpr bool kHopper = false;
#endif

// ---- mbarrier (PTX ISA 9.7.13.15)
struct alignas(8) Mbarrier {
  std::uint64_t state;
};

__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, unsigned count) {
  if constexpr (kHopper) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(count) : "memory");
  } else {
    __trap();
  }
}
__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier) {
  if constexpr (kHopper) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
  } else {
    __trap();
  }
}
// Arrives at the barrier of this name in another block of the cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(Mbarrier& barrier, unsigned rank) {
  if constexpr (kHopper) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(shared_address(&barrier)),
        "r"(rank)
        : "memory");
  } else {
    __trap();
  }
}
__device__ __forceinline__ void mbarrier_expect_tx(Mbarrier& barrier, unsigned bytes) {
  if constexpr (kHopper) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
  } else {
    __trap();
  }
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Mbarrier& barrier, unsigned bytes) {
  if constexpr (kHopper) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
  } else {
    __trap();
  }
}
__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, unsigned parity) {
  if constexpr (kHopper) {
    const std::uint32_t address = shared_address(&barrier);
    std::uint32_t passed = 0;
    while (!passed) {
      asm volatile(
          "{\n"
          ".reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n"
          "}"
          : "=r"(passed)
          : "r"(address), "r"(parity)
          : "memory");
    }
  } else {
    __trap();
  }
}

// ---- fences
__device__ __forceinline__ void fence_mbarrier_init() {
  if constexpr (kHopper) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void fence_proxy_async() {
  if constexpr (kHopper) asm volatile("fence.proxy.async;" ::: "memory");
}

// ---- clusters
__device__ __forceinline__ unsigned cluster_ctarank() {
  unsigned rank = 0;
  if constexpr (kHopper) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_nctarank() {
  unsigned blocks = 1;
  if constexpr (kHopper) asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
__device__ __forceinline__ void cluster_arrive() {
  if constexpr (kHopper) asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  if constexpr (kHopper) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// What lies at this place of shared memory in another block.
template <class T>
__device__ __forceinline__ T* mapa(T* address, unsigned rank) {
  std::uint64_t mapped = 0;
  if constexpr (kHopper) {
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(reinterpret_cast<std::uint64_t>(address)), "r"(rank));
  }
  return reinterpret_cast<T*>(mapped);
}

// ---- elect.sync
__device__ __forceinline__ bool elect_one(unsigned mask = kFullMask) {
  std::uint32_t elected = 0;
  if constexpr (kHopper) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, %1;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(elected)
        : "r"(mask)
        : "memory");
  }
  return elected != 0;
}

// ---- setmaxnreg
template <int kCount>
__device__ __forceinline__ void setmaxnreg_inc() {
  if constexpr (kHopper) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void setmaxnreg_dec() {
  if constexpr (kHopper) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- stmatrix
template <bool kTransposed = false>
__device__ __forceinline__ void stmatrix_x4(void* row, const std::uint32_t (&registers)[4]) {
  if constexpr (kHopper && kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
  } else if constexpr (kHopper) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
  } else {
    __trap();
  }
}
template <bool kTransposed = false>
__device__ __forceinline__ void stmatrix_x2(void* row, const std::uint32_t (&registers)[2]) {
  if constexpr (kHopper && kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
                 "r"(registers[0]), "r"(registers[1])
                 : "memory");
  } else if constexpr (kHopper) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
                 "r"(registers[0]), "r"(registers[1])
                 : "memory");
  } else {
    __trap();
  }
}

// ---- cp.async.bulk.tensor (9.7.9.25.5.2)
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor(void* to, const TensorMap& map, const int (&at)[kRank],
                                                     Mbarrier& barrier) {
  if constexpr (kHopper && kRank == 1) {
    asm volatile(
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0])
        : "memory");
  } else if constexpr (kHopper && kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1])
        : "memory");
  } else if constexpr (kHopper && kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  } else if constexpr (kHopper && kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  } else if constexpr (kHopper && kRank == 5) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
  } else {
    __trap();
  }
}
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor_multicast(void* to, const TensorMap& map, const int (&at)[kRank],
                                                               Mbarrier& barrier, std::uint16_t mask) {
  if constexpr (kHopper && kRank == 2) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "h"(mask), "r"(at[0]), "r"(at[1])
        : "memory");
  } else if constexpr (kHopper && kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%4, %5, %6}], [%2], %3;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "h"(mask), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  } else if constexpr (kHopper && kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%4, %5, %6, %7}], [%2], %3;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "h"(mask), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  } else if constexpr (kHopper && kRank == 5) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
        "{%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "h"(mask), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
  } else {
    __trap();
  }
}
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor_im2col(void* to, const TensorMap& map, const int (&at)[kRank],
                                                            const std::uint16_t (&offsets)[kRank - 2],
                                                            Mbarrier& barrier) {
  if constexpr (kHopper && kRank == 3) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2], {%6};" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "h"(offsets[0])
        : "memory");
  } else if constexpr (kHopper && kRank == 4) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(offsets[0]),
        "h"(offsets[1])
        : "memory");
  } else if constexpr (kHopper && kRank == 5) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6, %7}], [%2], {%8, %9, %10};" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]),
        "h"(offsets[0]), "h"(offsets[1]), "h"(offsets[2])
        : "memory");
  } else {
    __trap();
  }
}
template <int kRank>
__device__ __forceinline__ void cp_async_bulk_tensor_store(const TensorMap& map, const int (&at)[kRank],
                                                           const void* from) {
  if constexpr (kHopper && kRank == 1) {
    asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(at[0])
                 : "memory");
  } else if constexpr (kHopper && kRank == 2) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(at[0]), "r"(at[1])
                 : "memory");
  } else if constexpr (kHopper && kRank == 3) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2])
                 : "memory");
  } else if constexpr (kHopper && kRank == 4) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
                 : "memory");
  } else if constexpr (kHopper && kRank == 5) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                 : "memory");
  } else {
    __trap();
  }
}
template <int kRank>
__device__ __forceinline__ void cp_reduce_async_bulk_tensor_add(const TensorMap& map, const int (&at)[kRank],
                                                                const void* from) {
  if constexpr (kHopper && kRank == 1) {
    asm volatile("cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%0, {%2}], [%1];" ::"l"(&map),
                 "r"(shared_address(from)), "r"(at[0])
                 : "memory");
  } else if constexpr (kHopper && kRank == 2) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
        "r"(shared_address(from)), "r"(at[0]), "r"(at[1])
        : "memory");
  } else if constexpr (kHopper && kRank == 3) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  } else if constexpr (kHopper && kRank == 4) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
            &map),
        "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  } else if constexpr (kHopper && kRank == 5) {
    asm volatile(
        "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(
            &map),
        "r"(shared_address(from)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
  } else {
    __trap();
  }
}
__device__ __forceinline__ void prefetch_tensormap(const TensorMap& map) {
  if constexpr (kHopper) asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// ---- cp.async.bulk
__device__ __forceinline__ void cp_async_bulk(void* to, const void* from, unsigned bytes, Mbarrier& barrier) {
  if constexpr (kHopper) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
  } else {
    __trap();
  }
}
__device__ __forceinline__ void cp_async_bulk_store(void* to, const void* from, unsigned bytes) {
  if constexpr (kHopper) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)),
                 "r"(bytes)
                 : "memory");
  } else {
    __trap();
  }
}

// ---- groups of the calling thread's bulk stores
__device__ __forceinline__ void cp_async_bulk_commit_group() {
  if constexpr (kHopper) asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void cp_async_bulk_wait_group() {
  if constexpr (kHopper) asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
__device__ __forceinline__ void cp_async_bulk_wait_group_read() {
  if constexpr (kHopper) asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace drupe::cuda
