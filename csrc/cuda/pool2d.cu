// Pooling on NHWC, one thread a pack of channels (16 bytes where C and the pointers allow, else one channel) of one
// pixel of the result; neighbouring threads own neighbouring channels. The gradients gather: a thread looks at the
// windows that hold its input pixel, in order, so that no element is written twice.
// Bytes: the image once from memory (windows overlap in the caches), the result once; taps once.
#include "ops/pool2d.h"

#include <limits>

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"

namespace drupe::cuda {
namespace {

__device__ __forceinline__ std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

// A pack of channels of one pixel. Extents, and what is counted along them, are below 2^31.
struct Site {
  std::int64_t n, c;
  int h, w;
};

// Item `index` of N images of height x width pixels of `packs` packs.
template <int kPack>
__device__ __forceinline__ Site locate(std::int64_t index, std::int64_t height, std::int64_t width,
                                       std::int64_t packs) {
  const std::int64_t pixel = quotient(index, packs), row = quotient(pixel, width), n = quotient(row, height);
  return {.n = n,
          .c = (index - pixel * packs) * kPack,
          .h = static_cast<int>(row - n * height),
          .w = static_cast<int>(pixel - row * width)};
}

struct Span {
  int begin, end;
};
__device__ __forceinline__ Span span(std::int64_t begin, std::int64_t end) {
  return {.begin = static_cast<int>(begin), .end = static_cast<int>(end)};
}

// The taps of a window that begins at `start` which fall into the image.
__device__ __forceinline__ Span taps_inside(const WindowAxis& axis, std::int64_t start) {
  return span(start >= 0 ? 0 : quotient_up(-start, axis.dilation),
              start >= axis.in ? 0 : smaller(axis.kernel, quotient_up(axis.in - start, axis.dilation)));
}

// The windows that reach over element i; with a dilation not all of them hold it.
__device__ __forceinline__ Span windows_over(const WindowAxis& axis, std::int64_t i) {
  const std::int64_t padded = i + axis.before, reach = padded - axis.dilation * (axis.kernel - 1);
  return span(reach <= 0 ? 0 : quotient_up(reach, axis.stride), smaller(axis.out, quotient(padded, axis.stride) + 1));
}

// The tap at which window p holds element i, or -1.
__device__ __forceinline__ std::int64_t tap_of(const WindowAxis& axis, std::int64_t i, std::int64_t p) {
  const std::int64_t distance = i + axis.before - p * axis.stride;
  if (axis.dilation == 1) return distance;
  const std::int64_t tap = quotient(distance, axis.dilation);
  return tap * axis.dilation == distance ? tap : -1;
}

template <class T, class Index, int kPack>
__global__ __launch_bounds__(kMapThreads) void max_pool2d_kernel(MaxPoolArgs args, std::int64_t items) {
  using A = Accumulator<T>;
  const std::int64_t line = args.w.in * args.C;
  for (std::int64_t item = global_thread(); item < items; item += global_threads()) {
    const Site at = locate<kPack>(item, args.h.out, args.w.out, args.C / kPack);
    const std::int64_t top = at.h * args.h.stride - args.h.before, left = at.w * args.w.stride - args.w.before;
    const Span rows = taps_inside(args.h, top), cols = taps_inside(args.w, left);
    const bool any = rows.begin < rows.end && cols.begin < cols.end;
    A best[kPack];
    Pack<Index, kPack> taps;
    for (int k = 0; k < kPack; ++k) {
      best[k] = -std::numeric_limits<A>::infinity();
      taps.element[k] = static_cast<Index>(any ? rows.begin * args.w.kernel + cols.begin : 0);
    }
    const T* image = static_cast<const T*>(args.x) + at.n * args.h.in * line + at.c;
    for (int r = rows.begin; r < rows.end; ++r) {
      for (int s = cols.begin; s < cols.end; ++s) {
        const auto x =
            load_pack<kPack>(image + (top + r * args.h.dilation) * line + (left + s * args.w.dilation) * args.C);
        const auto tap = static_cast<Index>(r * args.w.kernel + s);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const A value = widen(x.element[k]);
          const bool better = best[k] < value || value != value;
          best[k] = better ? value : best[k];
          taps.element[k] = better ? tap : taps.element[k];
        }
      }
    }
    Pack<T, kPack> y;
    for (int k = 0; k < kPack; ++k) y.element[k] = narrow<T>(best[k]);
    store_pack(static_cast<T*>(args.out) + item * kPack, y);
    if (args.taps) store_pack(static_cast<Index*>(args.taps) + item * kPack, taps);
  }
}

template <class T, class Index, int kPack>
__global__ __launch_bounds__(kMapThreads) void max_pool2d_backward_kernel(MaxPoolArgs args, std::int64_t items) {
  using A = Accumulator<T>;
  for (std::int64_t item = global_thread(); item < items; item += global_threads()) {
    const Site at = locate<kPack>(item, args.h.in, args.w.in, args.C / kPack);
    const Span rows = windows_over(args.h, at.h), cols = windows_over(args.w, at.w);
    A sum[kPack] = {};
    for (int p = rows.begin; p < rows.end; ++p) {
      const std::int64_t r = tap_of(args.h, at.h, p);
      if (r < 0) continue;
      for (int q = cols.begin; q < cols.end; ++q) {
        const std::int64_t s = tap_of(args.w, at.w, q);
        if (s < 0) continue;
        const std::int64_t from = ((at.n * args.h.out + p) * args.w.out + q) * args.C + at.c;
        const auto taps = load_pack<kPack>(static_cast<const Index*>(args.taps) + from);
        const auto dy = load_pack<kPack>(static_cast<const T*>(args.dy) + from);
        const auto tap = static_cast<Index>(r * args.w.kernel + s);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum[k] += taps.element[k] == tap ? widen(dy.element[k]) : A(0);
      }
    }
    Pack<T, kPack> dx;
    for (int k = 0; k < kPack; ++k) dx.element[k] = narrow<T>(sum[k]);
    store_pack(static_cast<T*>(args.out) + item * kPack, dx);
  }
}

template <class T, int kPack>
__global__ __launch_bounds__(kMapThreads) void average_pool2d_kernel(AveragePool<AverageRule> args,
                                                                     std::int64_t items) {
  using A = Accumulator<T>;
  const std::int64_t H = args.h.window.in, W = args.w.window.in;
  for (std::int64_t item = global_thread(); item < items; item += global_threads()) {
    const Site at = locate<kPack>(item, args.h.window.out, args.w.window.out, args.C / kPack);
    const Span rows = span(args.h.begin(at.h), args.h.end(at.h)), cols = span(args.w.begin(at.w), args.w.end(at.w));
    const A scale = A(1) / static_cast<A>(args.h.count(at.h) * args.w.count(at.w));
    A sum[kPack] = {};
    for (int h = rows.begin; h < rows.end; ++h) {
      const T* row = static_cast<const T*>(args.from) + (at.n * H + h) * W * args.C + at.c;
      for (int w = cols.begin; w < cols.end; ++w) {
        const auto x = load_pack<kPack>(row + w * args.C);
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum[k] += widen(x.element[k]);
      }
    }
    Pack<T, kPack> y;
    for (int k = 0; k < kPack; ++k) y.element[k] = narrow<T>(sum[k] * scale);
    store_pack(static_cast<T*>(args.to) + item * kPack, y);
  }
}

template <class T, int kPack>
__global__ __launch_bounds__(kMapThreads) void average_pool2d_backward_kernel(AveragePool<AverageRule> args,
                                                                              std::int64_t items) {
  using A = Accumulator<T>;
  const std::int64_t P = args.h.window.out, Q = args.w.window.out;
  for (std::int64_t item = global_thread(); item < items; item += global_threads()) {
    const Site at = locate<kPack>(item, args.h.window.in, args.w.window.in, args.C / kPack);
    const Span rows = span(args.h.first(at.h), args.h.last(at.h)), cols = span(args.w.first(at.w), args.w.last(at.w));
    A sum[kPack] = {};
    for (int p = rows.begin; p < rows.end; ++p) {
      const std::int64_t height = args.h.count(p);
      const T* row = static_cast<const T*>(args.from) + (at.n * P + p) * Q * args.C + at.c;
      for (int q = cols.begin; q < cols.end; ++q) {
        const auto dy = load_pack<kPack>(row + q * args.C);
        const A scale = A(1) / static_cast<A>(height * args.w.count(q));
#pragma unroll
        for (int k = 0; k < kPack; ++k) sum[k] += scale * widen(dy.element[k]);
      }
    }
    Pack<T, kPack> dx;
    for (int k = 0; k < kPack; ++k) dx.element[k] = narrow<T>(sum[k]);
    store_pack(static_cast<T*>(args.to) + item * kPack, dx);
  }
}

// Launches a kernel over the `pixels` of the result, kPack channels a thread.
template <auto kKernel, int kPack, class Args>
void launch_pixels(const Args& args, std::int64_t pixels, Stream stream) {
  const std::int64_t items = pixels * (args.C / kPack);
  launch<kKernel>({.grid = {blocks_for(items)}, .block = {kMapThreads}}, stream, args, items);
}

// Calls f.operator()<T, Index, kPack>(). Windows of more than 256 elements are rare enough to go without packs.
template <class F>
void dispatch_max(const MaxPoolArgs& args, const void* from, F&& f) {
  dispatch_float(args.dtype, [&]<class T>() {
    constexpr int kPack = kPackSize<T>;
    const auto* bytes = static_cast<const std::byte*>(from);
    if (args.wide_taps) {
      f.template operator()<T, std::int32_t, 1>();
    } else if (args.C % kPack == 0 &&
               is_pack_aligned(bytes, static_cast<std::byte*>(args.out), static_cast<std::byte*>(args.taps))) {
      f.template operator()<T, std::uint8_t, kPack>();
    } else {
      f.template operator()<T, std::uint8_t, 1>();
    }
  });
}

// Calls f.operator()<T, kPack>().
template <class F>
void dispatch_average(const AveragePool<AverageRule>& args, F&& f) {
  dispatch_float(args.dtype, [&]<class T>() {
    constexpr int kPack = kPackSize<T>;
    if (args.C % kPack == 0 && is_pack_aligned(static_cast<const T*>(args.from), static_cast<T*>(args.to))) {
      f.template operator()<T, kPack>();
    } else {
      f.template operator()<T, 1>();
    }
  });
}

}  // namespace

void max_pool2d(const MaxPoolArgs& args, Stream stream) {
  dispatch_max(args, args.x, [&]<class T, class Index, int kPack>() {
    launch_pixels<max_pool2d_kernel<T, Index, kPack>, kPack>(args, args.N * args.h.out * args.w.out, stream);
  });
}

void max_pool2d_backward(const MaxPoolArgs& args, Stream stream) {
  dispatch_max(args, args.dy, [&]<class T, class Index, int kPack>() {
    launch_pixels<max_pool2d_backward_kernel<T, Index, kPack>, kPack>(args, args.N * args.h.in * args.w.in, stream);
  });
}

void average_pool2d(const AveragePool<AverageRule>& args, Stream stream) {
  dispatch_average(args, [&]<class T, int kPack>() {
    launch_pixels<average_pool2d_kernel<T, kPack>, kPack>(args, args.N * args.h.window.out * args.w.window.out, stream);
  });
}

void average_pool2d_backward(const AveragePool<AverageRule>& args, Stream stream) {
  dispatch_average(args, [&]<class T, int kPack>() {
    launch_pixels<average_pool2d_backward_kernel<T, kPack>, kPack>(args, args.N * args.h.window.in * args.w.window.in,
                                                                   stream);
  });
}

}  // namespace drupe::cuda
