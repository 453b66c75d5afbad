#include "ops/gemm.h"

#include <atomic>
#include <cmath>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"
#include "ops/reduce.h"

namespace drupe {

const void* PackedMatrix::readable_panels() const {
  return panels.defined() && isa == current_isa() ? panels.raw() : nullptr;
}

namespace ops {
namespace {

std::atomic<bool> allow_tf32 = false;
constexpr std::int64_t kMostSummed = 64 << 20;  // elements of y, since its tiles' sums take up to half its bytes

Dims leading(const Dims& shape) {
  return Dims(std::span(shape.begin(), shape.begin() + shape.size() - 2));
}

// Where b has no batch of its own and a's rows follow one another through the batch, the batch is more rows.
void fold_batch_into_rows(GemmArgs& args) {
  while (!args.batch_shape.empty()) {
    const int last = args.batch_shape.size() - 1;
    const std::int64_t extent = args.batch_shape[last];
    const bool foldable = args.b_batch[last] == 0 && args.a_batch[last] == args.M * args.a_row &&
                          (!args.residual || args.residual_batch[last] == args.M * args.residual_row);
    if (!foldable && extent != 1) return;
    args.M *= extent;
    args.batch_shape.pop_back();
    args.a_batch.pop_back();
    args.b_batch.pop_back();
    args.residual_batch.pop_back();
  }
}

void take_panels(GemmArgs& args, const PackedMatrix& packed, const Tensor& b, bool transpose) {
  check(packed.matrix.raw() == b.raw() && packed.matrix.shape() == b.shape() && packed.transpose == transpose, "gemm",
        "b is ", b.shape(), transpose ? " transposed" : "", ", what was packed is another matrix, ",
        packed.matrix.shape(), packed.transpose ? " transposed" : "");
  args.b_panels = packed.readable_panels();
}

// Over all dimensions but the last.
Tensor sum_rows(const Tensor& y) {
  Dims axes;
  for (int i = 0; i + 1 < y.ndim(); ++i) axes.push_back(i);
  return reduce("sum", y, axes, false);
}

}  // namespace

void set_float32_matmul_precision(const std::string& name) {
  check(name == "highest" || name == "high", "float32_matmul_precision", "precision is \"", name,
        "\": expected highest or high");
  allow_tf32 = name == "high";
}
const char* float32_matmul_precision() {
  return allow_tf32 ? "high" : "highest";
}

std::pair<Tensor, Tensor> gemm(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& residual, const GemmOptions& options) {
  check_type(is_float(a.dtype()), "gemm", "a is ", a.dtype(), ": expected float32, float64, float16 or bfloat16");
  check_type(a.dtype() == b.dtype(), "gemm", "a is ", a.dtype(), ", b is ", b.dtype(), ": expected one dtype");
  check(a.ndim() >= 2, "gemm", "a is ", a.shape(), ": expected at least 2 dimensions");
  check(b.ndim() >= 2, "gemm", "b is ", b.shape(), ": expected at least 2 dimensions");
  check(std::isfinite(options.alpha), "gemm", "alpha is ", options.alpha, ": expected a finite number");
  const Device device = common_device("gemm", {&a, &b, bias ? &*bias : nullptr, residual ? &*residual : nullptr,
                                               options.saved ? &*options.saved : nullptr});

  const Tensor at = options.transpose_a ? a.transpose(-1, -2) : a;
  const Tensor bt = options.transpose_b ? b.transpose(-1, -2) : b;
  GemmArgs args{.M = at.size(-2),
                .N = bt.size(-1),
                .K = at.size(-1),
                .a = a.raw(),
                .a_row = at.stride(-2),
                .a_col = at.stride(-1),
                .b = b.raw(),
                .b_row = bt.stride(-2),
                .b_col = bt.stride(-1),
                .y = nullptr,
                .batch_shape = {},
                .a_batch = {},
                .b_batch = {},
                .residual_batch = {},
                .alpha = options.alpha,
                .activation = parse_activation(options.activation, "gemm"),
                .dtype = a.dtype(),
                .tf32 = allow_tf32};
  check(bt.size(-2) == args.K, "gemm", "a is ", a.shape(), options.transpose_a ? " transposed" : "", ", b is ",
        b.shape(), options.transpose_b ? " transposed" : "", ": inner dimensions ", args.K, " and ", bt.size(-2),
        " differ");

  args.batch_shape = broadcast_shapes(leading(a.shape()), leading(b.shape()), "gemm");
  const auto batch_strides = [&](const Tensor& t) {
    Dims shape = args.batch_shape;
    shape.push_back(t.size(-2));
    shape.push_back(t.size(-1));
    const Dims strides = t.broadcast_to(shape).strides();
    return leading(strides);
  };
  args.a_batch = batch_strides(at);
  args.b_batch = batch_strides(bt);
  args.residual_batch = Dims::filled(args.batch_shape.size(), 0);

  Dims shape = args.batch_shape;
  shape.push_back(args.M);
  shape.push_back(args.N);
  Tensor row;
  if (bias) {
    check_type(bias->dtype() == a.dtype(), "gemm", "a is ", a.dtype(), ", bias is ", bias->dtype());
    check(bias->shape() == Dims{args.N}, "gemm", "bias is ", bias->shape(), ": expected (", args.N, ",)");
    row = contiguous(*bias);
    args.bias = row.raw();
  }
  if (residual) {
    check_type(residual->dtype() == a.dtype(), "gemm", "a is ", a.dtype(), ", residual is ", residual->dtype());
    check(broadcast_shapes(residual->shape(), shape, "gemm") == shape, "gemm", "residual is ", residual->shape(),
          ": does not broadcast to ", shape);
    const Dims strides = residual->broadcast_to(shape).strides();
    args.residual = residual->raw();
    args.residual_batch = leading(strides);
    args.residual_row = strides[strides.size() - 2];
    args.residual_col = strides.back();
  }

  Tensor saved;
  check(options.saved || !options.sum_columns, "gemm", "columns are summed beside `saved` alone");
  if (options.saved) {
    check(!bias && !options.keep_pre_activation, "gemm", "there is no derivative beside a bias or a kept input");
    check_type(options.saved->dtype() == a.dtype(), "gemm", "a is ", a.dtype(), ", saved is ", options.saved->dtype());
    check(options.saved->shape() == shape, "gemm", "saved is ", options.saved->shape(), ": expected ", shape);
    saved = contiguous(*options.saved);
  }
  const bool derive_after = saved.defined() && device.type != DeviceType::cpu;
  if (derive_after) args.activation = Activation::none;

  Tensor y = empty(shape, a.dtype(), device);
  Tensor second;
  if (options.keep_pre_activation) second = empty(shape, a.dtype(), device);
  args.y = y.raw();
  args.pre_activation = second.raw();
  if (!derive_after) args.saved = saved.raw();
  if (options.packed) take_panels(args, *options.packed, b, options.transpose_b);
  fold_batch_into_rows(args);
  Tensor parts;  // of the columns' sums
  if (options.sum_columns && y.numel() > 0 && y.numel() <= kMostSummed && args.batch_shape.empty() && !derive_after) {
    dispatch_isa([&]<Isa I>() { parts = empty({cpu::gemm_parts<I>(args), args.N}, accumulator_of(a.dtype())); });
    args.column_sums = parts.raw();
  }
  if (y.numel() > 0) {
    dispatch(device, [&]<Isa I>() { cpu::gemm<I>(args); }, [&](auto stream) { cuda::gemm(args, stream); });
  }
  if (derive_after && !options.activation.empty()) y = activation_backward(y, saved, options.activation);
  if (options.sum_columns) second = cast(sum_rows(parts.defined() ? parts : y), a.dtype());
  return {y, second};
}

PackedMatrix pack_weight(const Tensor& b, bool transpose) {
  check_type(is_float(b.dtype()), "pack_weight", "b is ", b.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check(b.ndim() == 2, "pack_weight", "b is ", b.shape(), ": expected 2 dimensions");
  PackedMatrix packed{.matrix = b, .transpose = transpose, .isa = current_isa(), .panels = {}};
  if (b.device().type != DeviceType::cpu || b.numel() == 0) return packed;
  const Tensor bt = transpose ? b.transpose(-1, -2) : b;
  const GemmArgs args{.M = 0,
                      .N = bt.size(1),
                      .K = bt.size(0),
                      .a = nullptr,
                      .a_row = 0,
                      .a_col = 0,
                      .b = b.raw(),
                      .b_row = bt.stride(0),
                      .b_col = bt.stride(1),
                      .y = nullptr,
                      .batch_shape = {},
                      .a_batch = {},
                      .b_batch = {},
                      .residual_batch = {},
                      .dtype = b.dtype()};
  dispatch_isa([&]<Isa I>() {
    packed.panels = empty({cpu::pack_gemm<I>(args, nullptr)}, Dtype::u8);
    cpu::pack_gemm<I>(args, packed.panels.raw());
  });
  return packed;
}

}  // namespace ops
}  // namespace drupe
