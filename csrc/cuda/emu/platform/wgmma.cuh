// wgmma.mma_async (PTX ISA 9.7.15): 64 x kN of a warpgroup's accumulators += A B, K = 16, of bf16 or f16. Emulated:
// done at any moment until the wait, with the accumulators poisoned.
#pragma once

#include <cstdint>
#include <platform/hopper.cuh>

#include "cuda/emu/wgmma.h"

namespace drupe::cuda {

// Where a matrix lies in shared memory, in lines of kSwizzleBytes (0, 32, 64, 128) that begin at a multiple of eight of
// them. K-major: `stride` from eight rows to the next eight; `leading` (no swizzle only) from eight columns of k to the
// next. MN-major: `stride` from eight k to the next eight, `leading` from one line of mn to the next (the other way
// round without swizzle). In bytes. K advances by 32 bytes of the address when K-major.
template <int kSwizzleBytes>
inline std::uint64_t wgmma_descriptor(const void* matrix, unsigned leading, unsigned stride,
                                      Where where = Where::current()) {
  constexpr std::uint64_t kMode = kSwizzleBytes == 128 ? 1 : kSwizzleBytes == 64 ? 2 : kSwizzleBytes == 32 ? 3 : 0;
  return std::uint64_t{emu::shared_address(matrix, where) >> 4 & 0x3fffu} |
         std::uint64_t{leading >> 4 & 0x3fffu} << 16 | std::uint64_t{stride >> 4 & 0x3fffu} << 32 | kMode << 62;
}

// Before the first wgmma, and after the registers that it uses were written.
inline void wgmma_fence(Where where = Where::current()) {
  emu::wgmma_fence(where);
}
inline void wgmma_commit_group(Where where = Where::current()) {
  emu::wgmma_commit(where);
}
template <int kPending>
inline void wgmma_wait_group(Where where = Where::current()) {
  emu::wgmma_wait(kPending, where);
}

// Register i of lane 4 g + t in warp w of the four: row 16 w + g + 8 ((i >> 1) & 1), column 8 (i >> 2) + 2 t + (i & 1).
// A and B are K-major, or with kTransposedA, kTransposedB MN-major. Without `accumulate` the sums begin at zero.
template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
inline void wgmma(float (&d)[kN / 2], std::uint64_t a, std::uint64_t b, bool accumulate,
                  Where where = Where::current()) {
  static_assert(kN == 64 || kN == 96 || kN == 128 || kN == 192 || kN == 256);
  emu::wgmma({.half = std::is_same_v<T, Float16>,
              .columns = kN,
              .accumulates = accumulate,
              .d = d,
              .a = nullptr,
              .a_descriptor = a,
              .b_descriptor = b,
              .a_transposed = kTransposedA,
              .b_transposed = kTransposedB},
             where);
}
// A in registers, as mma_m16n8k16's: warp w holds rows 16 w to 16 w + 15.
template <class T, int kN, bool kTransposedB = false>
inline void wgmma(float (&d)[kN / 2], const std::uint32_t (&a)[4], std::uint64_t b, bool accumulate,
                  Where where = Where::current()) {
  static_assert(kN == 64 || kN == 96 || kN == 128 || kN == 192 || kN == 256);
  emu::wgmma({.half = std::is_same_v<T, Float16>,
              .columns = kN,
              .accumulates = accumulate,
              .d = d,
              .a = a,
              .a_descriptor = 0,
              .b_descriptor = b,
              .a_transposed = false,
              .b_transposed = kTransposedB},
             where);
}

}  // namespace drupe::cuda
