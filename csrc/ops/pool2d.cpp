#include "ops/pool2d.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
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

// An AveragePoolAxis with the tables that it points to.
class AverageTable {
 public:
  AverageTable(std::int64_t in, std::int64_t out)
      : in_(in), begin_(size(out)), end_(size(out)), count_(size(out)), first_(size(in)), last_(size(in)) {}

  static AverageTable windows(const WindowAxis& axis, bool count_include_pad) {
    AverageTable table(axis.in, axis.out);
    for (std::int64_t i = 0; i < axis.out; ++i) {
      const std::int64_t begin = i * axis.stride - axis.before;
      const std::int64_t end = std::min(begin + axis.kernel, axis.in + axis.after);
      table.set(i, std::max<std::int64_t>(begin, 0), std::min(end, axis.in));
      if (count_include_pad) table.count_[size(i)] = end - begin;
    }
    table.invert();
    return table;
  }

  static AverageTable adaptive(std::int64_t in, std::int64_t out) {
    AverageTable table(in, out);
    for (std::int64_t i = 0; i < out; ++i) table.set(i, i * in / out, ((i + 1) * in + out - 1) / out);
    table.invert();
    return table;
  }

  AveragePoolAxis axis() const {
    return {
        in_,         static_cast<std::int64_t>(begin_.size()), begin_.data(), end_.data(), count_.data(), first_.data(),
        last_.data()};
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  void set(std::int64_t i, std::int64_t begin, std::int64_t end) {
    begin_[size(i)] = begin;
    end_[size(i)] = end;
    count_[size(i)] = end - begin;
  }

  // Both ends of the ranges only ever move up.
  void invert() {
    std::size_t first = 0, last = 0;
    for (std::int64_t i = 0; i < in_; ++i) {
      while (first < end_.size() && end_[first] <= i) ++first;
      while (last < begin_.size() && begin_[last] <= i) ++last;
      first_[size(i)] = static_cast<std::int64_t>(first);
      last_[size(i)] = static_cast<std::int64_t>(std::max(first, last));
    }
  }

  std::int64_t in_;
  std::vector<std::int64_t> begin_, end_, count_, first_, last_;
};

// tables() gives the rows' and the columns' AverageTable; it is called only where there is something to average.
template <class Tables>
Tensor average(const Tensor& image, std::int64_t P, std::int64_t Q, const std::string& layout, const Tables& tables) {
  const Tensor y = empty({image.size(0), P, Q, image.size(3)}, image.dtype(), image.device());
  if (y.numel() > 0) {
    const auto [h, w] = tables();
    const AveragePoolArgs args{.N = image.size(0),
                               .C = image.size(3),
                               .h = h.axis(),
                               .w = w.axis(),
                               .from = image.raw(),
                               .to = y.raw(),
                               .dtype = image.dtype()};
    dispatch_isa([&]<Isa I>() { cpu::average_pool2d<I>(args); });
  }
  return from_nhwc(y, layout);
}

template <class Tables>
Tensor average_backward(const char* op, const Tensor& dy, const Dims& x_shape, std::int64_t P, std::int64_t Q,
                        const Tables& tables) {
  const Dims expected{x_shape[0], P, Q, x_shape[3]};
  check(dy.shape() == expected, op, "dy is ", dy.shape(), ": expected ", expected);
  const Tensor gradient = contiguous(dy);
  Tensor dx = empty(x_shape, dy.dtype(), dy.device());
  if (dx.numel() > 0) {
    const auto [h, w] = tables();
    const AveragePoolArgs args{.N = x_shape[0],
                               .C = x_shape[3],
                               .h = h.axis(),
                               .w = w.axis(),
                               .from = gradient.raw(),
                               .to = dx.raw(),
                               .dtype = dy.dtype()};
    dispatch_isa([&]<Isa I>() { cpu::average_pool2d_backward<I>(args); });
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
  if (y.numel() > 0) dispatch_isa([&]<Isa I>() { cpu::max_pool2d<I>(args); });
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
  common_device(op, {&dy, &taps});
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
  if (dx.numel() > 0) dispatch_isa([&]<Isa I>() { cpu::max_pool2d_backward<I>(args); });
  return dx;
}

Tensor avg_pool2d(const Tensor& x, const Dims& kernel, const WindowOptions& options, bool count_include_pad,
                  const std::string& layout) {
  const char* op = "avg_pool2d";
  const Tensor image = to_nhwc(op, "x", x, layout);
  const Window window = plan(op, image.shape(), kernel, options);
  return average(image, window.h.out, window.w.out, layout, [&] {
    return std::pair(AverageTable::windows(window.h, count_include_pad),
                     AverageTable::windows(window.w, count_include_pad));
  });
}

Tensor avg_pool2d_backward(const Tensor& dy, const Dims& x_shape, const Dims& kernel, const WindowOptions& options,
                           bool count_include_pad) {
  const char* op = "avg_pool2d_backward";
  check_backward(op, dy, x_shape);
  const Window window = plan(op, x_shape, kernel, options);
  return average_backward(op, dy, x_shape, window.h.out, window.w.out, [&] {
    return std::pair(AverageTable::windows(window.h, count_include_pad),
                     AverageTable::windows(window.w, count_include_pad));
  });
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
  return average(image, output_size[0], output_size.back(), layout, [&] {
    return std::pair(AverageTable::adaptive(height, output_size[0]), AverageTable::adaptive(width, output_size.back()));
  });
}

Tensor adaptive_avg_pool2d_backward(const Tensor& dy, const Dims& x_shape) {
  const char* op = "adaptive_avg_pool2d_backward";
  check_backward(op, dy, x_shape);
  check(dy.size(1) > 0 && dy.size(2) > 0, op, "dy is ", dy.shape(), ": expected at least 1 x 1");
  return average_backward(op, dy, x_shape, dy.size(1), dy.size(2), [&] {
    return std::pair(AverageTable::adaptive(x_shape[1], dy.size(1)), AverageTable::adaptive(x_shape[2], dy.size(2)));
  });
}

}  // namespace drupe::ops
