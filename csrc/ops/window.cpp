#include "ops/window.h"

#include <algorithm>

#include "core/check.h"
#include "ops/copy.h"

namespace drupe {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 31;  // of every extent and option: no sum of them overflows

Dims pair(const char* op, const char* name, const Dims& values, std::int64_t least) {
  check(values.size() == 1 || values.size() == 2, op, name, " is ", values, ": expected one or two numbers");
  for (std::int64_t value : values) {
    check(value >= least && value < kLimit, op, name, " is ", values, ": expected at least ", least,
          " and less than 2^31");
  }
  return {values[0], values.back()};
}

std::int64_t same_padding(const WindowAxis& axis) {
  const std::int64_t out = (axis.in + axis.stride - 1) / axis.stride;
  return std::max<std::int64_t>(0, (out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1 - axis.in);
}

void set_padding(const char* op, const std::variant<Dims, std::string>& padding, Window& window) {
  if (const auto* mode = std::get_if<std::string>(&padding)) {
    check(*mode == "same" || *mode == "valid", op, "padding is \"", *mode,
          "\": expected \"same\", \"valid\" or numbers");
    for (WindowAxis* axis : {&window.h, &window.w}) {
      const std::int64_t total = *mode == "same" ? same_padding(*axis) : 0;
      axis->before = total / 2;
      axis->after = total - total / 2;
    }
    return;
  }
  const Dims& values = std::get<Dims>(padding);
  check(values.size() == 1 || values.size() == 2 || values.size() == 4, op, "padding is ", values,
        ": expected one, two or four numbers");
  for (std::int64_t value : values) {
    check(value >= 0 && value < kLimit, op, "padding is ", values, ": expected at least 0 and less than 2^31");
  }
  const bool four = values.size() == 4;
  window.h.before = values[0];
  window.h.after = four ? values[1] : values[0];
  window.w.before = four ? values[2] : values.back();
  window.w.after = values.back();
}

void set_extent(const char* op, const char* name, bool ceil_mode, WindowAxis& axis) {
  const std::int64_t padded = axis.in + axis.before + axis.after;
  const std::int64_t span = axis.dilation * (axis.kernel - 1) + 1;
  check(span <= padded, op, "the window's ", name, " is ", span, " (kernel ", axis.kernel, ", dilation ", axis.dilation,
        "), the padded image's is ", padded, ": the window must fit");
  const std::int64_t room = padded - span;
  axis.out = (ceil_mode ? room + axis.stride - 1 : room) / axis.stride + 1;
  if (ceil_mode && (axis.out - 1) * axis.stride >= axis.in + axis.before) --axis.out;
}

}  // namespace

Window resolve_window(const char* op, const WindowOptions& options, std::int64_t height, std::int64_t width,
                      std::int64_t kernel_h, std::int64_t kernel_w) {
  check(height > 0 && width > 0 && height < kLimit && width < kLimit, op, "the image is ", height, " x ", width,
        ": expected at least 1 x 1 and less than 2^31");
  check(kernel_h > 0 && kernel_w > 0 && kernel_h < kLimit && kernel_w < kLimit, op, "the kernel is ", kernel_h, " x ",
        kernel_w, ": expected at least 1 x 1 and less than 2^31");
  const Dims stride = pair(op, "stride", options.stride, 1);
  const Dims dilation = pair(op, "dilation", options.dilation, 1);
  Window window{.h = {kernel_h, stride[0], dilation[0], 0, 0, height, 0},
                .w = {kernel_w, stride[1], dilation[1], 0, 0, width, 0}};
  set_padding(op, options.padding, window);
  set_extent(op, "height", options.ceil_mode, window.h);
  set_extent(op, "width", options.ceil_mode, window.w);
  return window;
}

Tensor to_nhwc(const char* op, const char* name, const Tensor& image, const std::string& layout) {
  check(layout == "NCHW" || layout == "NHWC", op, "layout is \"", layout, "\": expected \"NCHW\" or \"NHWC\"");
  check_type(is_float(image.dtype()), op, name, " is ", image.dtype(),
             ": expected float32, float64, float16 or bfloat16");
  check(image.ndim() == 4, op, name, " is ", image.shape(), ": expected 4 dimensions, ", layout);
  return ops::contiguous(layout == "NCHW" ? image.permute({0, 2, 3, 1}) : image);
}

Tensor from_nhwc(const Tensor& image, const std::string& layout) {
  return layout == "NCHW" && image.defined() ? image.permute({0, 3, 1, 2}) : image;
}

}  // namespace drupe
