// Loops that do nothing but what they measure. In registers: more independent sums than latency times issue slots,
// whose value stays near 1. In memory: 16 bytes a thread, the grid striding over the arrays.
#include "ops/limits.h"

#include <platform/ptx.cuh>

#include "cuda/tile/map.cuh"
#include "cuda/tile/reduce.cuh"

namespace drupe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSums = 16;
constexpr float kStart = 1.0f, kFactor = 0.875f, kTerm = 0.125f;

__global__ __launch_bounds__(kThreads) void fma_f32_kernel(std::int64_t repeats, float* sink) {
  float sums[kSums];
#pragma unroll
  for (int j = 0; j < kSums; ++j) sums[j] = kStart + 0.01f * static_cast<float>(j);
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma unroll
    for (int j = 0; j < kSums; ++j) sums[j] = fmaf(sums[j], kFactor, kTerm);
  }
  float total = 0;
#pragma unroll
  for (int j = 0; j < kSums; ++j) total += sums[j];
  sink[global_thread()] = total;
}

__global__ __launch_bounds__(kThreads) void dot_bf16_kernel(std::int64_t repeats, float* sink) {
  constexpr int kTiles = 8;
  const std::uint32_t one = 0x3f803f80, tiny = 0x30803080;
  const std::uint32_t a[4] = {one, one, one, one}, b[2] = {tiny, tiny};
  float sums[kTiles][4] = {};
  for (std::int64_t i = 0; i < repeats; ++i) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) mma_m16n8k16(sums[j], a, b, BFloat16{});
  }
  float total = 0;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) total += sums[j][0] + sums[j][1] + sums[j][2] + sums[j][3];
  sink[global_thread()] = total;
}

__global__ __launch_bounds__(kThreads) void read_kernel(std::int64_t size, const float* src, float* sink) {
  float total = 0;
  for (std::int64_t i = 4 * global_thread(); i < size; i += 4 * global_threads()) {
    const Pack<float, 4> pack = load_pack<4>(src + i);
    total += pack.element[0] + pack.element[1] + pack.element[2] + pack.element[3];
  }
  sink[global_thread()] = total;
}

struct Same {
  __device__ __forceinline__ float operator()(float x) const { return x; }
};

}  // namespace

double run_limit(const LimitArgs& args, Stream stream) {
  const LaunchConfig config{.grid = {static_cast<unsigned>(args.tasks)}, .block = {kThreads}};
  const auto threads = static_cast<double>(args.tasks * kThreads);
  const auto repeats = static_cast<double>(args.repeats), size = static_cast<double>(args.size);
  switch (args.limit) {
    case Limit::fma_f32:
      launch<fma_f32_kernel>(config, stream, args.repeats, args.sink);
      return 2.0 * kSums * threads * repeats;
    case Limit::dot_bf16:
      launch<dot_bf16_kernel>(config, stream, args.repeats, args.sink);
      return 8.0 * 2 * 16 * 8 * 16 * threads / kWarp * repeats;
    case Limit::read:
      for (std::int64_t i = 0; i < args.repeats; ++i)
        launch<read_kernel>(config, stream, args.size, args.src, args.sink);
      return 4.0 * size * repeats;
    default:
      for (std::int64_t i = 0; i < args.repeats; ++i) map(stream, Same{}, args.size, args.dst, args.src);
      return 8.0 * size * repeats;
  }
}

}  // namespace drupe::cuda
