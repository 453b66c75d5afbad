// A convolution's image as the rows of an implicit matrix product, row (n, i, j) and depth (tap_h, tap_w, channel),
// read where it lies in NHWC memory: what all its kernels share.
#pragma once

#include <cstdint>
#include <platform/device.cuh>
#include <platform/ptx.cuh>

#include "cuda/conv2d/tiles.h"
#include "cuda/tile/vec.cuh"
#include "ops/conv2d.h"
#include "ops/conv2d_gather.h"

namespace drupe::cuda::conv {

// What a kernel needs of a GatherAxis; the op has checked that positions fit 32 bits.
struct Axis {
  int rows, taps, source;
  int step, base, spread;

  Axis() = default;
  explicit Axis(const GatherAxis& axis)
      : rows(static_cast<int>(axis.rows)),
        taps(static_cast<int>(axis.taps)),
        source(static_cast<int>(axis.source)),
        step(static_cast<int>(axis.step)),
        base(static_cast<int>(axis.base)),
        spread(static_cast<int>(axis.spread)) {}
};

template <class T>
struct Gather {
  Axis h, w;
  const T* source;
  std::int64_t pitch;  // channels of a pixel
  int channels;        // of them, a group's
  bool packed;         // whether chunks of 16 bytes lie in one pixel, aligned

  std::int64_t rows(std::int64_t images) const { return images * h.rows * w.rows; }
  std::int64_t depth() const { return static_cast<std::int64_t>(h.taps) * w.taps * channels; }
};

template <class T>
Gather<T> make_gather(const GatherAxis& h, const GatherAxis& w, const void* source, std::int64_t pitch,
                      std::int64_t groups) {
  const auto* from = static_cast<const T*>(source);
  const std::int64_t channels = pitch / groups;
  const bool packed = channels % kPackSize<T> == 0 && is_pack_aligned(from);
  return {Axis(h), Axis(w), from, pitch, static_cast<int>(channels), packed};
}

// Where the first tap of a row reads. The offset counts elements and means nothing outside of the image.
struct Position {
  int h, w;
  std::int64_t offset;
};

template <class T>
__device__ __forceinline__ Position position_of(const Gather<T>& gather, std::int64_t row) {
  const std::int64_t line = row / gather.w.rows;
  const std::int64_t image = line / gather.h.rows;
  const int h = static_cast<int>(line - image * gather.h.rows) * gather.h.step + gather.h.base;
  const int w = static_cast<int>(row - line * gather.w.rows) * gather.w.step + gather.w.base;
  return {h, w, ((image * gather.h.source + h) * gather.w.source + w) * gather.pitch};
}

// A place along the depth: a tap and a channel. Walks on, past the last tap too.
struct Depth {
  int tap_h = 0, tap_w = 0, channel = 0;
  int h = 0, w = 0;         // from the first tap's position
  std::int64_t offset = 0;  // of the same, and of the channel, in elements

  template <class T>
  __device__ __forceinline__ void seek(const Gather<T>& gather, std::int64_t at) {
    const std::int64_t tap = at / gather.channels;
    channel = static_cast<int>(at - tap * gather.channels);
    tap_h = static_cast<int>(tap / gather.w.taps);
    tap_w = static_cast<int>(tap - static_cast<std::int64_t>(tap_h) * gather.w.taps);
    place(gather);
  }
  template <class T>
  __device__ __forceinline__ void advance(const Gather<T>& gather, int by) {
    channel += by;
    offset += by;
    if (channel < gather.channels) return;
    do {
      channel -= gather.channels;
      if (++tap_w == gather.w.taps) {
        tap_w = 0;
        ++tap_h;
      }
    } while (channel >= gather.channels);
    place(gather);
  }
  template <class T>
  __device__ __forceinline__ bool ended(const Gather<T>& gather) const {
    return tap_h >= gather.h.taps;
  }

 private:
  template <class T>
  __device__ __forceinline__ void place(const Gather<T>& gather) {
    if (ended(gather)) return;
    h = tap_h * gather.h.spread;
    w = tap_w * gather.w.spread;
    offset = (static_cast<std::int64_t>(h) * gather.w.source + w) * gather.pitch + channel;
  }
};

// Whether the image has that element; it is zero otherwise.
template <class T>
__device__ __forceinline__ bool is_inside(const Gather<T>& gather, const Position& row, const Depth& depth) {
  return !depth.ended(gather) && static_cast<unsigned>(row.h + depth.h) < static_cast<unsigned>(gather.h.source) &&
         static_cast<unsigned>(row.w + depth.w) < static_cast<unsigned>(gather.w.source);
}

// Neighbours along the depth, from `depth` on, to a chunk in shared memory: kPackSize of one row.
template <class T>
__device__ __forceinline__ void gather_chunk(T* to, const Gather<T>& gather, const T* source, const Position& row,
                                             Depth depth, bool wanted) {
  constexpr int kPack = kPackSize<T>;
  if (gather.packed) {
    const bool valid = wanted && is_inside(gather, row, depth);
    cp_async<16>(to, valid ? source + row.offset + depth.offset : source, valid);
    return;
  }
  Pack<T, kPack> chunk;  // asynchronous copies begin at 4 bytes
#pragma unroll
  for (int e = 0; e < kPack; ++e) {
    const bool valid = wanted && is_inside(gather, row, depth);
    chunk.element[e] = valid ? source[row.offset + depth.offset] : narrow<T>(0);
    depth.advance(gather, 1);
  }
  store_pack(to, chunk);
}

// `count` (or fewer, down to none) neighbours in memory to a chunk in shared memory, zeros after them.
template <class T>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, int count, bool packed, const T* somewhere) {
  constexpr int kPack = kPackSize<T>;
  if (packed) {  // then count is 0 or kPack
    cp_async<16>(to, count > 0 ? from : somewhere, count > 0);
    return;
  }
  Pack<T, kPack> chunk;
#pragma unroll
  for (int e = 0; e < kPack; ++e) chunk.element[e] = e < count ? from[e] : narrow<T>(0);
  store_pack(to, chunk);
}

// The depth in slices: load(stage) brings the next one to a stage of shared memory, compute(stage) takes it, kStages -
// 1 slices later. On return all that was asked for has arrived and no thread reads a stage.
template <int kStages, class Count, class Load, class Compute>
__device__ __forceinline__ void pipeline(Count slices, const Load& load, const Compute& compute) {
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < slices) load(s);
    cp_async_commit_group();
  }
  int here = 0, ahead = kStages - 1;
  for (Count slice = 0; slice < slices; ++slice) {
    cp_async_wait_group<kStages - 2>();
    __syncthreads();
    if (slice + kStages - 1 < slices) load(ahead);
    cp_async_commit_group();
    compute(here);
    here = here + 1 == kStages ? 0 : here + 1;
    ahead = ahead + 1 == kStages ? 0 : ahead + 1;
  }
  cp_async_wait_group<0>();
  __syncthreads();
}

}  // namespace drupe::cuda::conv
