// Philox4x32-10 (Salmon et al. 2011) on vectors: each 64-bit lane works on one counter. The multiplications take the
// lower half of a lane and fill all of it, so a word is what its lane's lower half holds, and the upper half is of no
// account. Words<Isa> is the register, with the few operations that this needs; kGroups registers run at once to hide
// their latency.
#pragma once

#include "cpu/simd.h"

namespace drupe::cpu {

template <Isa I>
struct Words {
  static constexpr int kLanes = 1;
  std::uint64_t v;

  DRUPE_INLINE static Words set(std::uint32_t x) { return {x}; }
  // The words of `from` + the place that each lane's block takes in interleave()'s output, lower half or upper.
  DRUPE_INLINE static Words counter_low(std::uint64_t from) { return {from}; }
  DRUPE_INLINE static Words counter_high(std::uint64_t from) { return {from >> 32}; }
  DRUPE_INLINE friend Words multiply(Words a, Words b) { return {(a.v & 0xffffffffu) * (b.v & 0xffffffffu)}; }
  DRUPE_INLINE friend Words high(Words a) { return {a.v >> 32}; }
  DRUPE_INLINE friend Words operator^(Words a, Words b) { return {a.v ^ b.v}; }
  // Writes the four words of all lanes, block after block, or (word >> 8) 2^-24 of them.
  DRUPE_INLINE static void interleave(const Words (&words)[4], std::uint32_t* w) {
    for (int k = 0; k < 4; ++k) w[k] = static_cast<std::uint32_t>(words[k].v);
  }
  DRUPE_INLINE static void interleave(const Words (&words)[4], float* u) {
    for (int k = 0; k < 4; ++k) u[k] = static_cast<float>((words[k].v & 0xffffffffu) >> 8) * 0x1p-24f;
  }
};

#if defined(__AVX2__)
template <>
struct Words<Isa::avx2> {
  static constexpr int kLanes = 4;
  __m256i v;

  DRUPE_INLINE static Words set(std::uint32_t x) { return {_mm256_set1_epi64x(x)}; }
  DRUPE_INLINE static Words counter_low(std::uint64_t from) {
    return {_mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(from)), _mm256_setr_epi64x(0, 2, 1, 3))};
  }
  DRUPE_INLINE static Words counter_high(std::uint64_t from) { return high(counter_low(from)); }
  DRUPE_INLINE friend Words multiply(Words a, Words b) { return {_mm256_mul_epu32(a.v, b.v)}; }
  DRUPE_INLINE friend Words high(Words a) { return {_mm256_srli_epi64(a.v, 32)}; }
  DRUPE_INLINE friend Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
  template <class T>
  DRUPE_INLINE static void interleave(const Words (&words)[4], T* to) {
    const __m256i w01 = _mm256_blend_epi32(words[0].v, _mm256_slli_epi64(words[1].v, 32), 0xaa);
    const __m256i w23 = _mm256_blend_epi32(words[2].v, _mm256_slli_epi64(words[3].v, 32), 0xaa);
    store(_mm256_unpacklo_epi64(w01, w23), to);
    store(_mm256_unpackhi_epi64(w01, w23), to + 8);
  }

 private:
  DRUPE_INLINE static void store(__m256i bits, std::uint32_t* w) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(w), bits);
  }
  DRUPE_INLINE static void store(__m256i bits, float* u) {
    const __m256 value = _mm256_cvtepi32_ps(_mm256_srli_epi32(bits, 8));
    _mm256_storeu_ps(u, _mm256_mul_ps(value, _mm256_set1_ps(0x1p-24f)));
  }
};
#endif

#if defined(__AVX512F__)
template <>
struct Words<Isa::avx512> {
  static constexpr int kLanes = 8;
  __m512i v;

  DRUPE_INLINE static Words set(std::uint32_t x) { return {_mm512_set1_epi64(x)}; }
  DRUPE_INLINE static Words counter_low(std::uint64_t from) {
    const __m512i places = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return {_mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(from)), places)};
  }
  DRUPE_INLINE static Words counter_high(std::uint64_t from) { return high(counter_low(from)); }
  DRUPE_INLINE friend Words multiply(Words a, Words b) { return {_mm512_mul_epu32(a.v, b.v)}; }
  DRUPE_INLINE friend Words high(Words a) { return {_mm512_srli_epi64(a.v, 32)}; }
  DRUPE_INLINE friend Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
  template <class T>
  DRUPE_INLINE static void interleave(const Words (&words)[4], T* to) {
    const __m512i w01 = _mm512_mask_blend_epi32(0xaaaa, words[0].v, _mm512_slli_epi64(words[1].v, 32));
    const __m512i w23 = _mm512_mask_blend_epi32(0xaaaa, words[2].v, _mm512_slli_epi64(words[3].v, 32));
    store(_mm512_unpacklo_epi64(w01, w23), to);
    store(_mm512_unpackhi_epi64(w01, w23), to + 16);
  }

 private:
  DRUPE_INLINE static void store(__m512i bits, std::uint32_t* w) { _mm512_storeu_si512(w, bits); }
  DRUPE_INLINE static void store(__m512i bits, float* u) {
    const __m512 value = _mm512_cvtepi32_ps(_mm512_srli_epi32(bits, 8));
    _mm512_storeu_ps(u, _mm512_mul_ps(value, _mm512_set1_ps(0x1p-24f)));
  }
};
#endif

#if defined(__aarch64__)
template <>
struct Words<Isa::neon> {
  static constexpr int kLanes = 2;
  uint64x2_t v;

  DRUPE_INLINE static Words set(std::uint32_t x) { return {vdupq_n_u64(x)}; }
  DRUPE_INLINE static Words counter_low(std::uint64_t from) {
    return {vaddq_u64(vdupq_n_u64(from), vcombine_u64(vcreate_u64(0), vcreate_u64(1)))};
  }
  DRUPE_INLINE static Words counter_high(std::uint64_t from) { return high(counter_low(from)); }
  DRUPE_INLINE friend Words multiply(Words a, Words b) { return {vmull_u32(vmovn_u64(a.v), vmovn_u64(b.v))}; }
  DRUPE_INLINE friend Words high(Words a) { return {vshrq_n_u64(a.v, 32)}; }
  DRUPE_INLINE friend Words operator^(Words a, Words b) { return {veorq_u64(a.v, b.v)}; }
  template <class T>
  DRUPE_INLINE static void interleave(const Words (&words)[4], T* to) {
    const uint64x2_t w01 = vsliq_n_u64(words[0].v, words[1].v, 32), w23 = vsliq_n_u64(words[2].v, words[3].v, 32);
    store(vreinterpretq_u32_u64(vzip1q_u64(w01, w23)), to);
    store(vreinterpretq_u32_u64(vzip2q_u64(w01, w23)), to + 4);
  }

 private:
  DRUPE_INLINE static void store(uint32x4_t bits, std::uint32_t* w) { vst1q_u32(w, bits); }
  DRUPE_INLINE static void store(uint32x4_t bits, float* u) {
    vst1q_f32(u, vmulq_f32(vcvtq_f32_u32(vshrq_n_u32(bits, 8)), vdupq_n_f32(0x1p-24f)));
  }
};
#endif

template <Isa I, int Groups = 4>
struct Philox {
  static constexpr int kGroups = Groups;
  static constexpr int kBlocks = kGroups * Words<I>::kLanes;  // of one call
  static constexpr int kUniforms = 4 * kBlocks;

  std::uint64_t seed, offset;

  // u[4 j + k] = uniform k, in [0, 1), of block first + j; or, of uint32, the word.
  template <class T>
  DRUPE_INLINE void operator()(std::uint64_t first, T* u) const {
    using W = Words<I>;
    constexpr std::uint32_t kMultiplier0 = 0xd2511f53u, kMultiplier1 = 0xcd9e8d57u;
    constexpr std::uint32_t kWeyl0 = 0x9e3779b9u, kWeyl1 = 0xbb67ae85u;
    W c[kGroups][4];
    for (int g = 0; g < kGroups; ++g) {
      const std::uint64_t from = first + static_cast<std::uint64_t>(g * W::kLanes);
      c[g][0] = W::counter_low(from);
      c[g][1] = W::counter_high(from);
      c[g][2] = W::set(static_cast<std::uint32_t>(offset));
      c[g][3] = W::set(static_cast<std::uint32_t>(offset >> 32));
    }
    std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        const W p0 = multiply(c[g][0], W::set(kMultiplier0));
        const W p1 = multiply(c[g][2], W::set(kMultiplier1));
        c[g][0] = high(p1) ^ c[g][1] ^ W::set(key0);
        c[g][1] = p1;
        c[g][2] = high(p0) ^ c[g][3] ^ W::set(key1);
        c[g][3] = p0;
      }
      key0 += kWeyl0;
      key1 += kWeyl1;
    }
    for (int g = 0; g < kGroups; ++g) W::interleave(c[g], u + g * 4 * W::kLanes);
  }
};

}  // namespace drupe::cpu
