// gemm_int8 on any GPU from sm_80 on: gemm's kernel for 16-bit operands (kernel.cuh) on bytes, 64 of k a stage, by
// mma.m16n8k32, with int32 sums; both operands lie along k. The epilogue scales, adds the bias and activates in
// float32. Bytes: a N / block times, b M / block times (mostly from L2), y written once.
#include "ops/gemm_int8.h"

#include "cuda/gemm/kernel.cuh"
#include "cuda/gemm/tensor_core.cuh"

namespace drupe::cuda {
namespace {

// As kernel.cuh expects it.
struct GemmInt8Problem {
  using Sum = std::int32_t;
  static constexpr int kRun = 8;  // 16 bytes of a 16-bit y

  GemmGrid grid;
  GemmOperand<std::int8_t> a, b;
  Sum* partial;
  const float* scale_a;
  const float* scale_b;
  const float* bias;
  void* y;
  Activation activation;
  Dtype dtype;
  bool y_vectors, column_vectors;

  __device__ __forceinline__ void finish(const GemmPlace&, std::int64_t row, std::int64_t col,
                                         const Sum (&sums)[kRun]) const {
    const int count = grid.N - col < kRun ? static_cast<int>(grid.N - col) : kRun;
    const float scale = scale_a[row];
    float run[kRun], more[kRun];
    load_run(more, scale_b + col, 1, count, column_vectors);
#pragma unroll
    for (int e = 0; e < kRun; ++e) run[e] = static_cast<float>(sums[e]) * scale * more[e];
    if (bias) {
      load_run(more, bias + col, 1, count, column_vectors);
#pragma unroll
      for (int e = 0; e < kRun; ++e) run[e] += more[e];
    }
    activate_run(activation, run);
    const std::int64_t index = row * grid.N + col;
    if (dtype == Dtype::f32) {
      store_run(static_cast<float*>(y) + index, run, count, y_vectors);
    } else if (dtype == Dtype::bf16) {
      store_run(static_cast<BFloat16*>(y) + index, run, count, y_vectors);
    } else {
      store_run(static_cast<Float16*>(y) + index, run, count, y_vectors);
    }
  }
};

template <int kBlock>
void launch_blocks(const GemmInt8Args& args, const GemmSchedule& schedule, Stream stream) {
  using C = GemmTensorCore<std::int8_t, kBlock>;
  const auto operand = [&](const std::int8_t* data) {
    return GemmOperand<std::int8_t>{.data = data,
                                    .outer_stride = args.K,
                                    .k_stride = 1,
                                    .k_major = true,
                                    .vectors = args.K % kPackSize<std::int8_t> == 0 && is_pack_aligned(data)};
  };
  const bool whole_runs = args.N % GemmInt8Problem::kRun == 0;
  launch_gemm<C>(GemmInt8Problem{.grid = GemmGrid(args.M, args.N, args.K, Loops{}, schedule, C::kDepth),
                                 .a = operand(args.a),
                                 .b = operand(args.b),
                                 .partial = nullptr,
                                 .scale_a = args.scale_a,
                                 .scale_b = args.scale_b,
                                 .bias = args.bias,
                                 .y = args.y,
                                 .activation = args.activation,
                                 .dtype = args.dtype,
                                 .y_vectors = whole_runs && is_pack_aligned(static_cast<char*>(args.y)),
                                 .column_vectors = whole_runs && is_pack_aligned(args.scale_b, args.bias)},
                 stream);
}

}  // namespace

void gemm_int8(const GemmInt8Args& args, Stream stream) {
  // A step of k is half as long as of 16-bit formats.
  const GemmSchedule schedule = schedule_gemm(args.M, args.N, args.K / 2, 1, multiprocessors(stream.device));
  if (schedule.block == kLargeBlock) {
    launch_blocks<kLargeBlock>(args, schedule, stream);
  } else {
    launch_blocks<kSmallBlock>(args, schedule, stream);
  }
}

}  // namespace drupe::cuda
