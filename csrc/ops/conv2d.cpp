#include "ops/conv2d.h"

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 31;  // of channels and padded extents: positions fit 32 bits

Conv2dAlgorithm parse_algorithm(const char* op, const std::string& name, const Conv2dArgs& args, Device device) {
  if (name == "auto") return Conv2dAlgorithm::automatic;
  if (name == "direct") return Conv2dAlgorithm::direct;
  check(name == "winograd", op, "algorithm is \"", name, "\": expected \"auto\", \"direct\" or \"winograd\"");
  check(device.type == DeviceType::cpu, op, "algorithm is winograd, the operands lie on ", device,
        ": it is for the CPU");
  const auto fits = [](const WindowAxis& axis) { return axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1; };
  check(fits(args.h) && fits(args.w) && args.groups == 1, op, "algorithm is winograd, the window ", args.h.kernel,
        " x ", args.w.kernel, ", stride (", args.h.stride, ", ", args.w.stride, "), dilation (", args.h.dilation, ", ",
        args.w.dilation, "), groups ", args.groups, ": it is for 3 x 3 windows of stride and dilation 1, one group");
  return Conv2dAlgorithm::winograd;
}

// The sizes, from x as (N, H, W, C) and the weight's shape.
Conv2dArgs plan(const char* op, const Dims& x, const Dims& weight, Dtype dtype, const Conv2dOptions& options) {
  check(weight.size() == 4, op, "weight is ", weight, ": expected 4 dimensions, (K, C / groups, R, S)");
  const std::int64_t groups = options.groups;
  check(groups > 0, op, "groups is ", groups, ": expected at least 1");
  check(x[3] % groups == 0, op, "x has ", x[3], " channels: groups ", groups, " does not divide them");
  check(weight[0] % groups == 0, op, "weight is ", weight, ": groups ", groups, " does not divide its ", weight[0],
        " output channels");
  check(weight[1] == x[3] / groups, op, "x has ", x[3], " channels, weight is ", weight, ": expected ", x[3] / groups,
        " input channels", groups > 1 ? " a group" : "");
  check(x[3] < kLimit && weight[0] < kLimit, op, "x has ", x[3], " channels, the result ", weight[0],
        ": expected less than 2^31");
  const Window window = resolve_window(op, options.window, x[1], x[2], weight[2], weight[3]);
  for (const WindowAxis& axis : {window.h, window.w}) {
    const std::int64_t padded = axis.in + axis.before + axis.after;
    check(padded < kLimit, op, "the padded image is ", padded, " high or wide: expected less than 2^31");
  }
  return {.N = x[0], .C = x[3], .K = weight[0], .groups = groups, .h = window.h, .w = window.w, .dtype = dtype};
}

void check_dtype(const char* op, const char* name, const Tensor& tensor, Dtype dtype) {
  check_type(tensor.dtype() == dtype, op, "x is ", dtype, ", ", name, " is ", tensor.dtype(), ": expected one dtype");
}

Dims output_shape(const Conv2dArgs& args) {
  return {args.N, args.h.out, args.w.out, args.K};
}

void check_dy(const char* op, const Tensor& dy, const Conv2dArgs& args) {
  check(dy.shape() == output_shape(args), op, "dy is ", dy.shape(), ": expected ", output_shape(args));
}

}  // namespace

std::pair<Tensor, Tensor> conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                 const std::optional<Tensor>& residual, const Conv2dOptions& options) {
  const char* op = "conv2d";
  const std::string& layout = options.layout;
  const Tensor image = to_nhwc(op, "x", x, layout);
  check_dtype(op, "weight", weight, x.dtype());
  const Device device = common_device(op, {&x, &weight, bias ? &*bias : nullptr, residual ? &*residual : nullptr});
  Conv2dArgs args = plan(op, image.shape(), weight.shape(), x.dtype(), options);
  args.activation = parse_activation(options.activation, op);
  args.algorithm = parse_algorithm(op, options.algorithm, args, device);
  Tensor row, added;
  if (bias) {
    check_dtype(op, "bias", *bias, x.dtype());
    check(bias->shape() == Dims{args.K}, op, "bias is ", bias->shape(), ": expected (", args.K, ",)");
    row = contiguous(*bias);
  }
  const std::optional<PackedFilters>& packed = options.packed;
  check(!packed || (packed->weight.raw() == weight.raw() && packed->weight.shape() == weight.shape()), op, "weight is ",
        weight.shape(), ", what was packed is another weight");
  const Dims shape = output_shape(args);
  if (residual) {
    check_dtype(op, "residual", *residual, x.dtype());
    const Dims expected = layout == "NCHW" ? Dims{shape[0], shape[3], shape[1], shape[2]} : shape;
    check(residual->shape() == expected, op, "residual is ", residual->shape(), ": expected ", expected);
    added = to_nhwc(op, "residual", *residual, layout);
  }
  if (args.pointwise()) {
    const Dims flat{checked_numel(shape, op) / std::max<std::int64_t>(1, args.K), args.K};
    const auto [y, pre] =
        gemm(reshape(image, {flat[0], args.C}), reshape(weight, {args.K, args.C}), bias,
             residual ? std::optional(reshape(added, flat)) : std::nullopt,
             {.transpose_b = true,
              .activation = options.activation,
              .keep_pre_activation = options.keep_pre_activation,
              .packed = packed && packed->matrix.matrix.defined() ? std::optional(packed->matrix) : std::nullopt});
    return {from_nhwc(reshape(y, shape), layout), pre.defined() ? from_nhwc(reshape(pre, shape), layout) : Tensor()};
  }
  const Tensor filters = contiguous(weight);
  const Tensor y = empty(shape, x.dtype(), device);
  const Tensor pre = options.keep_pre_activation ? empty(shape, x.dtype(), device) : Tensor();
  args.x = image.raw();
  args.weight = filters.raw();
  args.out = y.raw();
  args.bias = row.raw();
  args.residual = added.raw();
  args.pre_activation = pre.raw();
  if (packed) {
    args.panels = packed->matrix.readable_panels();
    args.form = packed->form;
  }
  if (y.numel() > 0) {
    dispatch(device, [&]<Isa I>() { cpu::conv2d<I>(args); }, [&](auto stream) { cuda::conv2d(args, stream); });
  }
  return {from_nhwc(y, layout), from_nhwc(pre, layout)};
}

PackedFilters pack_filters(const Tensor& weight, const Conv2dOptions& options) {
  const char* op = "pack_filters";
  check_type(is_float(weight.dtype()), op, "weight is ", weight.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check(weight.ndim() == 4, op, "weight is ", weight.shape(), ": expected 4 dimensions, (K, C / groups, R, S)");
  constexpr std::int64_t kSide = 64;  // of an image that is neither small nor large
  const auto reach = [&](int axis, std::int64_t dilation) { return kSide + dilation * weight.size(axis); };
  PackedFilters packed{.weight = contiguous(weight),
                       .matrix = {.matrix = {}, .transpose = true, .isa = current_isa(), .panels = {}}};
  if (weight.device().type != DeviceType::cpu || weight.numel() == 0) return packed;
  const Dims& dilation = options.window.dilation;
  const Dims image{1, reach(2, dilation[0]), reach(3, dilation.back()), weight.size(1) * options.groups};
  Conv2dArgs args = plan(op, image, weight.shape(), weight.dtype(), options);
  args.algorithm = parse_algorithm(op, options.algorithm, args, weight.device());
  args.weight = packed.weight.raw();
  dispatch_isa([&]<Isa I>() {
    packed.form = cpu::conv2d_reads<I>(args);
    if (packed.form != FilterForm::transformed) return;
    packed.matrix.panels = empty({cpu::transform_filters<I>(args, nullptr)}, Dtype::u8);
    cpu::transform_filters<I>(args, packed.matrix.panels.raw());
  });
  if (packed.form != FilterForm::matrix) return packed;
  const Dims matrix{args.K, args.C * args.h.kernel * args.w.kernel};
  packed.matrix = pack_weight(reshape(contiguous(packed.weight.permute({0, 2, 3, 1})), matrix), true);
  if (args.pointwise()) {
    packed.matrix.matrix = reshape(packed.weight, matrix);
  } else {
    packed.matrix.matrix = {};
  }
  return packed;
}

Tensor conv2d_backward_input(const Tensor& dy, const Tensor& weight, const Dims& x_shape,
                             const Conv2dOptions& options) {
  const char* op = "conv2d_backward_input";
  const Tensor gradient = to_nhwc(op, "dy", dy, "NHWC");
  check_dtype(op, "weight", weight, dy.dtype());
  const Device device = common_device(op, {&dy, &weight});
  check(x_shape.size() == 4, op, "x is ", x_shape, ": expected 4 dimensions, NHWC");
  Conv2dArgs args = plan(op, x_shape, weight.shape(), dy.dtype(), options);
  args.algorithm = parse_algorithm(op, options.algorithm, args, device);
  check_dy(op, dy, args);
  if (args.pointwise()) {
    const std::int64_t rows = args.N * args.h.in * args.w.in;
    return reshape(gemm(reshape(gradient, {rows, args.K}), reshape(weight, {args.K, args.C}), {}, {}, {}).first,
                   x_shape);
  }
  const Tensor filters = contiguous(weight);
  Tensor dx = empty(x_shape, dy.dtype(), device);
  args.dy = gradient.raw();
  args.weight = filters.raw();
  args.out = dx.raw();
  if (dx.numel() > 0) {
    dispatch(
        device, [&]<Isa I>() { cpu::conv2d_backward_input<I>(args); },
        [&](auto stream) { cuda::conv2d_backward_input(args, stream); });
  }
  return dx;
}

Tensor conv2d_backward_weight(const Tensor& dy, const Tensor& x, const Dims& weight_shape,
                              const Conv2dOptions& options) {
  const char* op = "conv2d_backward_weight";
  const Tensor gradient = to_nhwc(op, "dy", dy, "NHWC");
  const Tensor image = to_nhwc(op, "x", x, "NHWC");
  check_dtype(op, "dy", dy, x.dtype());
  const Device device = common_device(op, {&dy, &x});
  Conv2dArgs args = plan(op, x.shape(), weight_shape, x.dtype(), options);
  args.algorithm = parse_algorithm(op, options.algorithm, args, device);
  check_dy(op, dy, args);
  Tensor dw = empty(weight_shape, x.dtype(), device);
  args.dy = gradient.raw();
  args.x = image.raw();
  args.out = dw.raw();
  if (dw.numel() > 0) {
    dispatch(
        device, [&]<Isa I>() { cpu::conv2d_backward_weight<I>(args); },
        [&](auto stream) { cuda::conv2d_backward_weight(args, stream); });
  }
  return dw;
}

Tensor conv2d_backward_bias(const Tensor& dy) {
  const char* op = "conv2d_backward_bias";
  const Tensor gradient = to_nhwc(op, "dy", dy, "NHWC");
  const Device device = dy.device();
  Tensor db = empty({dy.size(-1)}, dy.dtype(), device);
  const std::int64_t rows = dy.size(0) * dy.size(1) * dy.size(2);
  const Conv2dArgs args{.N = rows,
                        .C = 0,
                        .K = dy.size(-1),
                        .groups = 1,
                        .h = {},
                        .w = {},
                        .dy = gradient.raw(),
                        .out = db.raw(),
                        .dtype = dy.dtype()};
  if (db.numel() > 0) {
    dispatch(
        device, [&]<Isa I>() { cpu::conv2d_backward_bias<I>(args); },
        [&](auto stream) { cuda::conv2d_backward_bias(args, stream); });
  }
  return db;
}

}  // namespace drupe::ops
