// Convolution and its gradients, pooling.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/conv2d.h"
#include "ops/pool2d.h"

namespace drupe::bindings {
namespace {

using Padding = std::variant<Dims, std::string>;

Conv2dOptions conv_options(const Dims& stride, const Padding& padding, const Dims& dilation, std::int64_t groups,
                           const std::string& algorithm) {
  return {.window = {.stride = stride, .padding = padding, .dilation = dilation},
          .groups = groups,
          .algorithm = algorithm,
          .activation = "",
          .layout = "NHWC",
          .packed = {}};
}

}  // namespace

void bind_conv(py::module_& m) {
  py::class_<PackedFilters>(m, "PackedFilters").def_readonly("weight", &PackedFilters::weight);
  m.def(
      "conv2d",
      [](const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const Dims& stride, const Padding& padding, const Dims& dilation,
         std::int64_t groups, const std::string& algorithm, const std::string& activation, bool keep_pre_activation,
         const std::string& layout, const std::optional<PackedFilters>& packed) {
        Conv2dOptions options = conv_options(stride, padding, dilation, groups, algorithm);
        options.activation = activation;
        options.keep_pre_activation = keep_pre_activation;
        options.layout = layout;
        options.packed = packed;
        return ops::conv2d(x, weight, bias, residual, options);
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("algorithm"), py::arg("activation"),
      py::arg("keep_pre_activation"), py::arg("layout"), py::arg("packed") = py::none(), Nogil());
  m.def(
      "pack_filters",
      [](const Tensor& weight, const Dims& stride, const Padding& padding, const Dims& dilation, std::int64_t groups,
         const std::string& algorithm) {
        return ops::pack_filters(weight, conv_options(stride, padding, dilation, groups, algorithm));
      },
      py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
      py::arg("algorithm"), Nogil());
  m.def(
      "conv2d_backward_input",
      [](const Tensor& dy, const Tensor& weight, const Dims& x_shape, const Dims& stride, const Padding& padding,
         const Dims& dilation, std::int64_t groups, const std::string& algorithm) {
        return ops::conv2d_backward_input(dy, weight, x_shape,
                                          conv_options(stride, padding, dilation, groups, algorithm));
      },
      py::arg("dy"), py::arg("weight"), py::arg("x_shape"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("algorithm"), Nogil());
  m.def(
      "conv2d_backward_weight",
      [](const Tensor& dy, const Tensor& x, const Dims& weight_shape, const Dims& stride, const Padding& padding,
         const Dims& dilation, std::int64_t groups, const std::string& algorithm) {
        return ops::conv2d_backward_weight(dy, x, weight_shape,
                                           conv_options(stride, padding, dilation, groups, algorithm));
      },
      py::arg("dy"), py::arg("x"), py::arg("weight_shape"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), py::arg("algorithm"), Nogil());
  m.def("conv2d_backward_bias", &ops::conv2d_backward_bias, py::arg("dy"), Nogil());
  m.def(
      "max_pool2d",
      [](const Tensor& x, const Dims& kernel, const Dims& stride, const Padding& padding, const Dims& dilation,
         bool ceil_mode, bool keep_taps, const std::string& layout) {
        return ops::max_pool2d(x, kernel, {stride, padding, dilation, ceil_mode}, keep_taps, layout);
      },
      py::arg("x"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("ceil_mode"),
      py::arg("keep_taps"), py::arg("layout"), Nogil());
  m.def(
      "max_pool2d_backward",
      [](const Tensor& dy, const Tensor& taps, const Dims& x_shape, const Dims& kernel, const Dims& stride,
         const Padding& padding, const Dims& dilation, bool ceil_mode) {
        return ops::max_pool2d_backward(dy, taps, x_shape, kernel, {stride, padding, dilation, ceil_mode});
      },
      py::arg("dy"), py::arg("taps"), py::arg("x_shape"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("ceil_mode"), Nogil());
  m.def(
      "avg_pool2d",
      [](const Tensor& x, const Dims& kernel, const Dims& stride, const Padding& padding, bool ceil_mode,
         bool count_include_pad, const std::string& layout) {
        return ops::avg_pool2d(x, kernel, {stride, padding, Dims{1}, ceil_mode}, count_include_pad, layout);
      },
      py::arg("x"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
      py::arg("count_include_pad"), py::arg("layout"), Nogil());
  m.def(
      "avg_pool2d_backward",
      [](const Tensor& dy, const Dims& x_shape, const Dims& kernel, const Dims& stride, const Padding& padding,
         bool ceil_mode, bool count_include_pad) {
        return ops::avg_pool2d_backward(dy, x_shape, kernel, {stride, padding, Dims{1}, ceil_mode}, count_include_pad);
      },
      py::arg("dy"), py::arg("x_shape"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
      py::arg("count_include_pad"), Nogil());
  m.def("adaptive_avg_pool2d", &ops::adaptive_avg_pool2d, py::arg("x"), py::arg("output_size"), py::arg("layout"),
        Nogil());
  m.def("adaptive_avg_pool2d_backward", &ops::adaptive_avg_pool2d_backward, py::arg("dy"), py::arg("x_shape"), Nogil());
}

}  // namespace drupe::bindings
