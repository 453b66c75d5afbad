// Convolution and its gradients, pooling.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/conv2d.h"

namespace drupe::bindings {
namespace {

using Padding = std::variant<Dims, std::string>;

Conv2dOptions conv_options(const Dims& stride, const Padding& padding, const Dims& dilation, std::int64_t groups) {
  return {.window = {.stride = stride, .padding = padding, .dilation = dilation},
          .groups = groups,
          .activation = "",
          .layout = "NHWC"};
}

}  // namespace

void bind_conv(py::module_& m) {
  m.def(
      "conv2d",
      [](const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
         const std::optional<Tensor>& residual, const Dims& stride, const Padding& padding, const Dims& dilation,
         std::int64_t groups, const std::string& activation, bool keep_pre_activation, const std::string& layout) {
        Conv2dOptions options = conv_options(stride, padding, dilation, groups);
        options.activation = activation;
        options.keep_pre_activation = keep_pre_activation;
        options.layout = layout;
        return ops::conv2d(x, weight, bias, residual, options);
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("activation"), py::arg("keep_pre_activation"), py::arg("layout"),
      Nogil());
  m.def(
      "conv2d_backward_input",
      [](const Tensor& dy, const Tensor& weight, const Dims& x_shape, const Dims& stride, const Padding& padding,
         const Dims& dilation, std::int64_t groups) {
        return ops::conv2d_backward_input(dy, weight, x_shape, conv_options(stride, padding, dilation, groups));
      },
      py::arg("dy"), py::arg("weight"), py::arg("x_shape"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), Nogil());
  m.def(
      "conv2d_backward_weight",
      [](const Tensor& dy, const Tensor& x, const Dims& weight_shape, const Dims& stride, const Padding& padding,
         const Dims& dilation, std::int64_t groups) {
        return ops::conv2d_backward_weight(dy, x, weight_shape, conv_options(stride, padding, dilation, groups));
      },
      py::arg("dy"), py::arg("x"), py::arg("weight_shape"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("groups"), Nogil());
  m.def("conv2d_backward_bias", &ops::conv2d_backward_bias, py::arg("dy"), Nogil());
}

}  // namespace drupe::bindings
