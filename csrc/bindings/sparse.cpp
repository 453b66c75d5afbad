// Sparse matrices in compressed rows, and products with them.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/csr.h"
#include "ops/spmm.h"

namespace drupe::bindings {

void bind_sparse(py::module_& m) {
  py::class_<CsrPattern>(m, "CsrPattern")
      .def(py::init<const Tensor&, const Tensor&, std::int64_t, std::int64_t>(), py::arg("indptr"), py::arg("indices"),
           py::arg("rows"), py::arg("cols"), Nogil())
      .def_property_readonly("shape", [](const CsrPattern& p) { return Dims{p.rows(), p.cols()}; })
      .def_property_readonly("size", &CsrPattern::size)
      .def_property_readonly("device", &CsrPattern::device)
      .def_property_readonly("indptr", [](const CsrPattern& p) { return p.indptr(); })
      .def_property_readonly("indices", [](const CsrPattern& p) { return p.indices(); })
      .def("to", &CsrPattern::to, py::arg("device"), Nogil());
  py::class_<RowPlaces>(m, "RowPlaces")
      .def(py::init<const char*, const Tensor&, std::int64_t, Device>(), py::arg("op"), py::arg("rows"), py::arg("n"),
           py::arg("device"), Nogil());
  m.def("csr_from_coo", &ops::csr_from_coo, py::arg("rows"), py::arg("cols"), py::arg("shape"), Nogil());
  m.def("csr_transpose", &ops::csr_transpose, py::arg("pattern"), Nogil());
  m.def("spmm", &ops::spmm, py::arg("a"), py::arg("values"), py::arg("x"), py::arg("alpha"), py::arg("z"),
        py::arg("beta"), py::arg("x_rows") = py::none(), py::arg("z_rows") = py::none(), py::arg("y_rows") = py::none(),
        Nogil());
  m.def("spmm_backward_values", &ops::spmm_backward_values, py::arg("a"), py::arg("dy"), py::arg("x"), Nogil());
}

}  // namespace drupe::bindings
