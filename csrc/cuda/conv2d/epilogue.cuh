// What happens to a finished sum: y = activation(sum + bias + residual), 16 bytes of a row at a time where they are
// aligned.
#pragma once

#include "cuda/conv2d/gather.cuh"
#include "cuda/tile/activation.cuh"

namespace drupe::cuda::conv {

template <int kSize, class A>
__device__ __forceinline__ void activate_all(Activation activation, A (&x)[kSize]) {
  const auto apply = [&]<Activation kA>() {
#pragma unroll
    for (int e = 0; e < kSize; ++e) x[e] = activate<kA>(x[e]);
  };
  switch (activation) {
    case Activation::none:
      return;
    case Activation::relu:
      return apply.template operator()<Activation::relu>();
    case Activation::gelu:
      return apply.template operator()<Activation::gelu>();
    case Activation::gelu_tanh:
      return apply.template operator()<Activation::gelu_tanh>();
    case Activation::silu:
      return apply.template operator()<Activation::silu>();
    case Activation::sigmoid:
      return apply.template operator()<Activation::sigmoid>();
    case Activation::tanh:
      return apply.template operator()<Activation::tanh>();
  }
}

// The rows (n, i, j) of a product are pixels of an image: those at first + i * step, and alike for j.
template <class T>
struct Epilogue {
  T* out;
  const T* bias;
  const T* residual;
  T* pre;
  std::int64_t pitch;           // channels of a pixel
  std::int64_t height, width;   // of the image
  std::int64_t rows_h, rows_w;  // of the product
  std::int64_t first_h, first_w;
  std::int64_t step_h, step_w;
  bool packed;  // whether 16 bytes of a group's channels are aligned everywhere
  Activation activation;

  // Of the pixel's first channel.
  __device__ __forceinline__ std::int64_t offset_of(std::int64_t row) const {
    if (step_h == 1 && step_w == 1) return row * pitch;
    const std::int64_t line = row / rows_w, image = line / rows_h;
    const std::int64_t h = first_h + (line - image * rows_h) * step_h;
    const std::int64_t w = first_w + (row - line * rows_w) * step_w;
    return ((image * height + h) * width + w) * pitch;
  }

  // The first `count` of kSize neighbours.
  template <int kSize>
  __device__ __forceinline__ Pack<T, kSize> read(const T* from, int count) const {
    if (packed && count == kSize) return load_pack<kSize>(from);
    Pack<T, kSize> result;
#pragma unroll
    for (int e = 0; e < kSize; ++e) result.element[e] = e < count ? from[e] : narrow<T>(0);
    return result;
  }
  template <int kSize>
  __device__ __forceinline__ void write(T* to, const Accumulator<T> (&sum)[kSize], int count) const {
    Pack<T, kSize> result;
#pragma unroll
    for (int e = 0; e < kSize; ++e) result.element[e] = narrow<T>(sum[e]);
    if (packed && count == kSize) return store_pack(to, result);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if (e < count) to[e] = result.element[e];
    }
  }
  template <int kSize>
  __device__ __forceinline__ void add(Accumulator<T> (&sum)[kSize], const T* from, int count) const {
    const Pack<T, kSize> more = read<kSize>(from, count);
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum[e] += widen(more.element[e]);
  }

  // Channels [channel, channel + min(kSize, left)) of the pixel at `offset`. kSize elements make 16 bytes.
  template <int kSize>
  __device__ __forceinline__ void finish(Accumulator<T> (&sum)[kSize], std::int64_t offset, std::int64_t channel,
                                         std::int64_t left) const {
    static_assert(kSize == kPackSize<T>);
    if (left <= 0) return;
    const int count = left < kSize ? static_cast<int>(left) : kSize;
    if (bias) add(sum, bias + channel, count);
    if (residual) add(sum, residual + offset + channel, count);
    if (pre) write(pre + offset + channel, sum, count);
    activate_all(activation, sum);
    write(out + offset + channel, sum, count);
  }
};

// A depthwise convolution is one group whose columns are the channels.
inline bool is_depthwise(const Conv2dArgs& args) {
  return args.C == args.groups && args.K == args.groups;
}
inline std::int64_t group_channels(const Conv2dArgs& args, std::int64_t channels) {
  return is_depthwise(args) ? channels : channels / args.groups;
}

template <class T>
Epilogue<T> forward_epilogue(const Conv2dArgs& args) {
  auto* out = static_cast<T*>(args.out);
  const auto* bias = static_cast<const T*>(args.bias);
  const auto* residual = static_cast<const T*>(args.residual);
  auto* pre = static_cast<T*>(args.pre_activation);
  const bool packed = group_channels(args, args.K) % kPackSize<T> == 0 && is_pack_aligned(out, bias, residual, pre);
  return {.out = out,
          .bias = bias,
          .residual = residual,
          .pre = pre,
          .pitch = args.K,
          .height = args.h.out,
          .width = args.w.out,
          .rows_h = args.h.out,
          .rows_w = args.w.out,
          .first_h = 0,
          .first_w = 0,
          .step_h = 1,
          .step_w = 1,
          .packed = packed,
          .activation = args.activation};
}

// One phase of the input's gradient.
template <class T>
Epilogue<T> backward_epilogue(const Conv2dArgs& args, const GatherAxis& h, const GatherAxis& w) {
  auto* out = static_cast<T*>(args.out);
  return {.out = out,
          .bias = nullptr,
          .residual = nullptr,
          .pre = nullptr,
          .pitch = args.C,
          .height = args.h.in,
          .width = args.w.in,
          .rows_h = h.rows,
          .rows_w = w.rows,
          .first_h = h.first_out,
          .first_w = w.first_out,
          .step_h = h.out_step,
          .step_w = w.out_step,
          .packed = group_channels(args, args.C) % kPackSize<T> == 0 && is_pack_aligned(out),
          .activation = Activation::none};
}

}  // namespace drupe::cuda::conv
