// The PTX that kernels use, one function an instruction, named after its mnemonic. Emulated: asynchronous copies land
// at any moment that the hardware allows, with their destination poisoned until then.
#pragma once

#include <cstdint>
#include <platform/device.cuh>

#include "cuda/emu/matrix.h"

namespace drupe::cuda {

// ---- cp.async (PTX ISA 9.7.9.25.3.1): kBytes of 4, 8 or 16 from global to shared memory; what is not `valid` becomes
// zero.
template <int kBytes>
inline void cp_async(void* to, const void* from, bool valid = true, Where where = Where::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emu::copy_async(to, from, kBytes, valid ? kBytes : 0, where);
}
// Closes the group of the copies since the last one.
inline void cp_async_commit_group() {
  emu::commit_copies();
}
// Waits until at most kPending of the calling thread's groups are in flight. Others need a barrier after it.
template <int kPending>
inline void cp_async_wait_group() {
  emu::wait_copies(kPending);
}

// ---- barrier.sync, barrier.arrive (9.7.13.1): `threads` of the block, a multiple of 32, meet at barrier `id` of 1 to
// 15. Those that arrive do not wait.
inline void bar_sync(int id, int threads, Where where = Where::current()) {
  emu::named_barrier(id, threads, true, where);
}
inline void bar_arrive(int id, int threads, Where where = Where::current()) {
  emu::named_barrier(id, threads, false, where);
}

// ---- ldmatrix (9.7.14.5.15): kMatrices 8 x 8 matrices of 16-bit elements. Lane 8 j + i gives the address of row i of
// matrix j; lane 4 g + t receives elements 2 t and 2 t + 1 of row g, of the transposed matrix with kTransposed.
template <bool kTransposed = false>
inline void ldmatrix_x4(std::uint32_t (&registers)[4], const void* row, Where where = Where::current()) {
  emu::load_matrices(registers, row, 4, kTransposed, where);
}
template <bool kTransposed = false>
inline void ldmatrix_x2(std::uint32_t (&registers)[2], const void* row, Where where = Where::current()) {
  emu::load_matrices(registers, row, 2, kTransposed, where);
}

// ---- mma.sync (9.7.14.5): d += a b, row by column. Lane 4 g + t holds of a 16 x K: rows g and g + 8; of b K x 8:
// column g; of d 16 x 8: rows g and g + 8, columns 2 t and 2 t + 1. d keeps its order {(g, 2t), (g, 2t+1), (g+8, 2t),
// (g+8, 2t+1)}.
//
// K = 16, bf16 or f16: a[r] holds row g + 8 (r & 1), columns 2 t + 8 (r >> 1) and the next; b[r] rows 2 t + 8 r and the
// next.
inline void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], BFloat16,
                         Where where = Where::current()) {
  emu::multiply(emu::Operands::bf16, d, a, b, where);
}
inline void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Float16,
                         Where where = Where::current()) {
  emu::multiply(emu::Operands::f16, d, a, b, where);
}
// K = 8, tf32 (float's bits; the low 13 are ignored): a[r] holds row g + 8 (r & 1), column t + 4 (r >> 1); b[r] row t +
// 4 r.
inline void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                             Where where = Where::current()) {
  emu::multiply(emu::Operands::tf32, d, a, b, where);
}
// K = 32, s8: a[r] holds row g + 8 (r & 1), columns 4 t + 16 (r >> 1) and the next three; b[r] rows 4 t + 16 r and on.
inline void mma_m16n8k32_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                            Where where = Where::current()) {
  emu::multiply(emu::Operands::s8, d, a, b, where);
}
// K = 4, f64, d 8 x 8: lane 4 g + t holds row g, column t of a; row t, column g of b; row g, columns 2 t and 2 t + 1 of
// d.
inline void mma_m8n8k4_f64(double (&d)[2], double a, double b, Where where = Where::current()) {
  emu::multiply(d, a, b, where);
}

// ---- cvt.rna.tf32.f32 (9.7.9.22): to the nearest tf32, ties away from zero, in float's bits; the low 13 are for mma
// to ignore.
inline std::uint32_t cvt_rna_tf32(float x) {
  return emu::round_tf32(x);
}

// ---- ex2.approx.ftz.f32 (9.7.3.21): 2^x to about 2 units in the last place; subnormal results are zero.
inline float ex2_approx(float x) {
  return emu::exp2_approx(x);
}

}  // namespace drupe::cuda
