// Table lookups, and gradients made of rows.
#include "ops/embedding.h"
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/sparse_rows.h"

namespace drupe::bindings {

void bind_embedding(py::module_& m) {
  m.def("embedding", &ops::embedding, py::arg("weight"), py::arg("indices"), py::arg("padding_idx") = py::none(),
        Nogil());
  m.def("embedding_backward", &ops::embedding_backward, py::arg("dy"), py::arg("indices"), py::arg("num_rows"),
        py::arg("padding_idx") = py::none(), Nogil());
  m.def("embedding_backward_sparse", &ops::embedding_backward_sparse, py::arg("dy"), py::arg("indices"),
        py::arg("num_rows"), py::arg("padding_idx") = py::none(), Nogil());
  m.def("merge_rows", &ops::merge_rows, py::arg("indices"), py::arg("values"), Nogil());
  m.def("add_rows", &ops::add_rows, py::arg("dense"), py::arg("indices"), py::arg("values"), Nogil());
}

}  // namespace drupe::bindings
