#include "ops/pool2d.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

Window plan(const char* op, const Dims& x, const Dims& kernel, const WindowOptions& options) {
  check(kernel.size() == 1 || kernel.size() == 2, op, "the kernel is ", kernel, ": expected one or two numbers");
  const Window window = resolve_window(op, options, x[1], x[2], kernel[0], kernel.back());
  for (const WindowAxis* axis : {&window.h, &window.w}) {
    const std::int64_t span = axis->dilation * (axis->kernel - 1) + 1;
    check(std::max(axis->before, axis->after) < span, op, "the padding is ", axis->before, " and ", axis->after,
          ", the window ", span, ": the padding must be smaller, or a window would lie in it as a whole");
  }
  return window;
}

bool needs_wide_taps(const char* op, const Window& window) {
  constexpr std::int64_t kMost = std::int64_t{1} << 24;  // float32 counts that far
  const bool fits = window.h.kernel <= kMost && window.h.kernel * window.w.kernel <= kMost;
  check(fits, op, "the kernel is ", window.h.kernel, " x ", window.w.kernel, ": expected at most 2^24 positions");
  return window.h.kernel * window.w.kernel > 256;
}

AverageRule adaptive_rule(std::int64_t in, std::int64_t out) {
  AverageRule rule{.window = {}, .adaptive = true, .count_include_pad = false};
  rule.window.in = in;
  rule.window.out = out;
  return rule;
}

// An AveragePoolAxis with the tables that it points to.
class AverageTable {
 public:
  explicit AverageTable(const AverageRule& rule) : in_(rule.window.in), out_(rule.window.out) {
    for (std::int64_t i = 0; i < out_; ++i) {
      begin_.push_back(rule.begin(i));
      end_.push_back(rule.end(i));
      count_.push_back(rule.count(i));
    }
    for (std::int64_t i = 0; i < in_; ++i) {
      first_.push_back(rule.first(i));
      last_.push_back(rule.last(i));
    }
  }

  AveragePoolAxis axis() const {
    return {in_, out_, begin_.data(), end_.data(), count_.data(), first_.data(), last_.data()};
  }

 private:
  std::int64_t in_, out_;
  std::vector<std::int64_t> begin_, end_, count_, first_, last_;
};

AveragePool<AverageRule> average_args(const Tensor& from, const Tensor& to, const AverageRule& h,
                                      const AverageRule& w) {
  return {.N = to.size(0), .C = to.size(3), .h = h, .w = w, .from = from.raw(), .to = to.raw(), .dtype = to.dtype()};
}

AveragePoolArgs with_tables(const AveragePool<AverageRule>& args, const AverageTable& h, const AverageTable& w) {
  return {
      .N = args.N, .C = args.C, .h = h.axis(), .w = w.axis(), .from = args.from, .to = args.to, .dtype = args.dtype};
}

Tensor average(const Tensor& image, const AverageRule& h, const AverageRule& w, const std::string& layout) {
  const Tensor y = empty({image.size(0), h.window.out, w.window.out, image.size(3)}, image.dtype(), image.device());
  if (y.numel() > 0) {
    const AveragePool<AverageRule> args = average_args(image, y, h, w);
    dispatch(
        y.device(),
        [&]<Isa I>() {
          const AverageTable rows(h), cols(w);
          cpu::average_pool2d<I>(with_tables(args, rows, cols));
        },
        [&](auto stream) { cuda::average_pool2d(args, stream); });
  }
  return from_nhwc(y, layout);
}

Tensor average_backward(const char* op, const Tensor& dy, const Dims& x_shape, const AverageRule& h,
                        const AverageRule& w) {
  const Dims expected{x_shape[0], h.window.out, w.window.out, x_shape[3]};
  check(dy.shape() == expected, op, "dy is ", dy.shape(), ": expected ", expected);
  const Tensor gradient = contiguous(dy);
  Tensor dx = empty(x_shape, dy.dtype(), dy.device());
  if (dx.numel() > 0) {
    const AveragePool<AverageRule> args = average_args(gradient, dx, h, w);
    dispatch(
        dx.device(),
        [&]<Isa I>() {
          const AverageTable rows(h), cols(w);
          cpu::average_pool2d_backward<I>(with_tables(args, rows, cols));
        },
        [&](auto stream) { cuda::average_pool2d_backward(args, stream); });
  }
  return dx;
}

void check_backward(const char* op, const Tensor& dy, const Dims& x_shape) {
  check_type(is_float(dy.dtype()), op, "dy is ", dy.dtype(), ": expected a float dtype");
  check(dy.ndim() == 4 && x_shape.size() == 4, op, "dy is ", dy.shape(), ", x is ", x_shape,
        ": expected 4 dimensions, NHWC");
}

}  // namespace

std::pair<Tensor, Tensor> max_pool2d(const Tensor& x, const Dims& kernel, const WindowOptions& options, bool keep_taps,
                                     const std::string& layout) {
  const char* op = "max_pool2d";
  const Tensor image = to_nhwc(op, "x", x, layout);
  const Window window = plan(op, image.shape(), kernel, options);
  const bool wide = needs_wide_taps(op, window);
  const Dims shape{image.size(0), window.h.out, window.w.out, image.size(3)};
  const Tensor y = empty(shape, x.dtype(), x.device());
  Tensor taps;
  if (keep_taps) taps = empty(shape, wide ? Dtype::i32 : Dtype::u8, x.device());
  const MaxPoolArgs args{.N = shape[0],
                         .C = shape[3],
                         .h = window.h,
                         .w = window.w,
                         .x = image.raw(),
                         .dy = nullptr,
                         .out = y.raw(),
                         .taps = taps.raw(),
                         .wide_taps = wide,
                         .dtype = x.dtype()};
  if (y.numel() > 0) {
    dispatch(
        x.device(), [&]<Isa I>() { cpu::max_pool2d<I>(args); }, [&](auto stream) { cuda::max_pool2d(args, stream); });
  }
  return {from_nhwc(y, layout), taps};
}

Tensor max_pool2d_backward(const Tensor& dy, const Tensor& taps, const Dims& x_shape, const Dims& kernel,
                           const WindowOptions& options) {
  const char* op = "max_pool2d_backward";
  check_backward(op, dy, x_shape);
  const Window window = plan(op, x_shape, kernel, options);
  const bool wide = needs_wide_taps(op, window);
  const Dims expected{x_shape[0], window.h.out, window.w.out, x_shape[3]};
  check(dy.shape() == expected && taps.shape() == expected, op, "dy is ", dy.shape(), ", taps is ", taps.shape(),
        ": expected ", expected);
  check_type(taps.dtype() == (wide ? Dtype::i32 : Dtype::u8), op, "taps is ", taps.dtype(), ": expected ",
             wide ? Dtype::i32 : Dtype::u8);
  const Device device = common_device(op, {&dy, &taps});
  const Tensor gradient = contiguous(dy), positions = contiguous(taps);
  Tensor dx = empty(x_shape, dy.dtype(), dy.device());
  const MaxPoolArgs args{.N = x_shape[0],
                         .C = x_shape[3],
                         .h = window.h,
                         .w = window.w,
                         .x = nullptr,
                         .dy = gradient.raw(),
                         .out = dx.raw(),
                         .taps = positions.raw(),
                         .wide_taps = wide,
                         .dtype = dy.dtype()};
  if (dx.numel() > 0) {
    dispatch(
        device, [&]<Isa I>() { cpu::max_pool2d_backward<I>(args); },
        [&](auto stream) { cuda::max_pool2d_backward(args, stream); });
  }
  return dx;
}

Tensor avg_pool2d(const Tensor& x, const Dims& kernel, const WindowOptions& options, bool count_include_pad,
                  const std::string& layout) {
  const char* op = "avg_pool2d";
  const Tensor image = to_nhwc(op, "x", x, layout);
  const Window window = plan(op, image.shape(), kernel, options);
  return average(image, {window.h, false, count_include_pad}, {window.w, false, count_include_pad}, layout);
}

Tensor avg_pool2d_backward(const Tensor& dy, const Dims& x_shape, const Dims& kernel, const WindowOptions& options,
                           bool count_include_pad) {
  const char* op = "avg_pool2d_backward";
  check_backward(op, dy, x_shape);
  const Window window = plan(op, x_shape, kernel, options);
  return average_backward(op, dy, x_shape, {window.h, false, count_include_pad}, {window.w, false, count_include_pad});
}

Tensor adaptive_avg_pool2d(const Tensor& x, const Dims& output_size, const std::string& layout) {
  const char* op = "adaptive_avg_pool2d";
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  const Tensor image = to_nhwc(op, "x", x, layout);
  check(output_size.size() == 1 || output_size.size() == 2, op, "output_size is ", output_size,
        ": expected one or two numbers");
  for (std::int64_t extent : output_size) {
    check(extent > 0 && extent < kLimit, op, "output_size is ", output_size,
          ": expected at least 1 and less than 2^31");
  }
  const std::int64_t height = image.size(1), width = image.size(2);
  check(height > 0 && width > 0 && height < kLimit && width < kLimit, op, "the image is ", height, " x ", width,
        ": expected at least 1 x 1 and less than 2^31");
  checked_numel({image.size(0), output_size[0], output_size.back(), image.size(3)}, op);
  return average(image, adaptive_rule(height, output_size[0]), adaptive_rule(width, output_size.back()), layout);
}

Tensor adaptive_avg_pool2d_backward(const Tensor& dy, const Dims& x_shape) {
  const char* op = "adaptive_avg_pool2d_backward";
  check_backward(op, dy, x_shape);
  check(dy.size(1) > 0 && dy.size(2) > 0, op, "dy is ", dy.shape(), ": expected at least 1 x 1");
  return average_backward(op, dy, x_shape, adaptive_rule(x_shape[1], dy.size(1)),
                          adaptive_rule(x_shape[2], dy.size(2)));
}

}  // namespace drupe::ops
