// Matrix products, quantisation for them, and the activations.
#include "ops/gemm.h"
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/activation.h"
#include "ops/gemm_int8.h"
#include "ops/gemm_quantized.h"
#include "ops/quantize_int8.h"

namespace drupe::bindings {

void bind_gemm(py::module_& m) {
  py::class_<PackedMatrix>(m, "PackedMatrix").def_readonly("transpose", &PackedMatrix::transpose);
  m.def(
      "gemm",
      [](const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
         bool transpose_a, bool transpose_b, double alpha, const std::string& activation, bool keep_pre_activation,
         const std::optional<PackedMatrix>& packed, const std::optional<Tensor>& saved, bool sum_columns) {
        return ops::gemm(a, b, bias, residual,
                         {.transpose_a = transpose_a,
                          .transpose_b = transpose_b,
                          .alpha = alpha,
                          .activation = activation,
                          .keep_pre_activation = keep_pre_activation,
                          .packed = packed,
                          .saved = saved,
                          .sum_columns = sum_columns});
      },
      py::arg("a"), py::arg("b"), py::arg("bias") = py::none(), py::arg("residual") = py::none(),
      py::arg("transpose_a") = false, py::arg("transpose_b") = false, py::arg("alpha") = 1.0,
      py::arg("activation") = "", py::arg("keep_pre_activation") = false, py::arg("packed") = py::none(),
      py::arg("saved") = py::none(), py::arg("sum_columns") = false, Nogil());
  m.def("pack_weight", &ops::pack_weight, py::arg("b"), py::arg("transpose"), Nogil());
  m.def("float32_matmul_precision", &ops::float32_matmul_precision);
  m.def("set_float32_matmul_precision", &ops::set_float32_matmul_precision, py::arg("name"));
  m.def("gemm_int8", &ops::gemm_int8, py::arg("a"), py::arg("b"), py::arg("scale_a"), py::arg("scale_b"),
        py::arg("bias"), py::arg("transpose_b"), py::arg("activation"), py::arg("dtype"), Nogil());
  py::class_<QuantizedMatrix>(m, "QuantizedMatrix")
      .def_readonly("N", &QuantizedMatrix::N)
      .def_readonly("K", &QuantizedMatrix::K)
      .def_readonly("transpose", &QuantizedMatrix::transpose)
      .def_readonly("bits", &QuantizedMatrix::bits)
      .def_readonly("group", &QuantizedMatrix::group)
      .def_readonly("values", &QuantizedMatrix::values)
      .def_readonly("scales", &QuantizedMatrix::scales);
  m.def("quantize_weight", &ops::quantize_weight, py::arg("b"), py::arg("transpose"), py::arg("bits"), py::arg("group"),
        Nogil());
  m.def("gemm_quantized", &ops::gemm_quantized, py::arg("a"), py::arg("weight"), py::arg("bias"), py::arg("residual"),
        py::arg("activation"), Nogil());
  m.def("quantize_int8", &ops::quantize_int8, py::arg("x"), py::arg("axis"), Nogil());
  m.def("activation", &ops::activation, py::arg("x"), py::arg("name"), Nogil());
  m.def("activation_backward", &ops::activation_backward, py::arg("dy"), py::arg("saved"), py::arg("name"), Nogil());
}

}  // namespace drupe::bindings
