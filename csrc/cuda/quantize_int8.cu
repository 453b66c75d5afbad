// quantize_int8: a warp owns a short row, a block of threads a long one; it is swept twice, the second time from L2.
// Bytes: x once, q once.
#include "ops/quantize_int8.h"

#include <platform/launch.cuh>

#include "core/dispatch.h"
#include "cuda/tile/map.cuh"
#include "cuda/tile/row.cuh"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kLongRow = 2048;  // from here on a block's

struct QuantizePlan {
  std::int64_t rows, size;
  int lanes;     // of a row
  bool aligned;  // x's and q's packs
};

template <class T>
__global__ __launch_bounds__(kThreads) void quantize_int8_kernel(QuantizePlan plan, const T* x, std::int8_t* q,
                                                                 float* scales) {
  constexpr int kPack = kPackSize<T>;
  auto& storage = shared_storage<ReduceStorage<float, kThreads>>();
  const int lane = static_cast<int>(threadIdx.x) % plan.lanes;
  const std::int64_t row = std::int64_t{blockIdx.x} * (kThreads / plan.lanes) + threadIdx.x / plan.lanes;
  const std::int64_t size = row < plan.rows ? plan.size : 0;
  x += row * plan.size;
  q += row * plan.size;
  const std::int64_t first = std::int64_t{lane} * kPack, step = std::int64_t{plan.lanes} * kPack;
  float values[kPack], most = 0;
  for (std::int64_t begin = first; begin < size; begin += step) {
    load_block<kPack>(x, begin, size, plan.aligned, 0.0f, values);
#pragma unroll
    for (int k = 0; k < kPack; ++k) most = Maximum{}(most, std::fabs(values[k]));
  }
  most = group_reduce(most, Maximum{}, plan.lanes, storage);
  const float scale = (most - most) + most / 127;  // NaN where most is not finite
  if (row < plan.rows && lane == 0) scales[row] = scale;
  for (std::int64_t begin = first; begin < size; begin += step) {
    load_block<kPack>(x, begin, size, plan.aligned, 0.0f, values);
    Pack<std::int8_t, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      const float steps = scale > 0 ? std::rint(values[k] / scale) : 0;
      pack.element[k] = static_cast<std::int8_t>(static_cast<int>(std::fmax(std::fmin(steps, 127.0f), -127.0f)));
    }
    if (plan.aligned && begin + kPack <= size) {
      store_pack(q + begin, pack);
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (begin + k < size) q[begin + k] = pack.element[k];
      }
    }
  }
}

template <class T>
void launch_rows(const QuantizeInt8Args& args, Stream stream) {
  const auto* x = static_cast<const T*>(args.x);
  const QuantizePlan plan{.rows = args.rows,
                          .size = args.size,
                          .lanes = args.size < kLongRow ? kWarp : kThreads,
                          .aligned = args.size % kPackSize<T> == 0 && is_pack_aligned(x, args.q)};
  launch<quantize_int8_kernel<T>>({.grid = {blocks_for(args.rows, 1, kThreads / plan.lanes)},
                                   .block = {kThreads},
                                   .shared_bytes = sizeof(ReduceStorage<float, kThreads>)},
                                  stream, plan, x, args.q, args.scale);
}

}  // namespace

void quantize_int8(const QuantizeInt8Args& args, Stream stream) {
  switch (args.dtype) {
    case Dtype::f32:
      return launch_rows<float>(args, stream);
    case Dtype::f16:
      return launch_rows<Float16>(args, stream);
    case Dtype::bf16:
      return launch_rows<BFloat16>(args, stream);
    default:
      unexpected_dtype(args.dtype);
  }
}

}  // namespace drupe::cuda
