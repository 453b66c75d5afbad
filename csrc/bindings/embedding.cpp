// Table lookups, and gradients made of rows.
#include "ops/embedding.h"
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/embedding_bag.h"
#include "ops/sparse_rows.h"

namespace drupe::bindings {
namespace {

using OptionalTensor = std::optional<Tensor>;
using OptionalIndex = std::optional<std::int64_t>;

void bind_embedding_bag(py::module_& m) {
  m.def(
      "embedding_bag",
      [](const Tensor& weight, const Tensor& indices, const OptionalTensor& offsets, const OptionalTensor& scale,
         const std::string& mode, OptionalIndex padding_idx, bool keep_argmax) {
        return ops::embedding_bag(weight, indices, offsets, scale, {.mode = mode, .padding_idx = padding_idx},
                                  keep_argmax);
      },
      py::arg("weight"), py::arg("indices"), py::arg("offsets"), py::arg("scale"), py::arg("mode"),
      py::arg("padding_idx"), py::arg("keep_argmax"), Nogil());
  m.def(
      "embedding_bag_backward",
      [](const Tensor& dy, const Tensor& indices, const OptionalTensor& offsets, const OptionalTensor& scale,
         const OptionalTensor& argmax, std::int64_t num_rows, const std::string& mode, OptionalIndex padding_idx) {
        return ops::embedding_bag_backward(dy, indices, offsets, scale, argmax, num_rows,
                                           {.mode = mode, .padding_idx = padding_idx});
      },
      py::arg("dy"), py::arg("indices"), py::arg("offsets"), py::arg("scale"), py::arg("argmax"), py::arg("num_rows"),
      py::arg("mode"), py::arg("padding_idx"), Nogil());
  m.def(
      "embedding_bag_backward_sparse",
      [](const Tensor& dy, const Tensor& indices, const OptionalTensor& offsets, const OptionalTensor& scale,
         const OptionalTensor& argmax, std::int64_t num_rows, const std::string& mode, OptionalIndex padding_idx) {
        return ops::embedding_bag_backward_sparse(dy, indices, offsets, scale, argmax, num_rows,
                                                  {.mode = mode, .padding_idx = padding_idx});
      },
      py::arg("dy"), py::arg("indices"), py::arg("offsets"), py::arg("scale"), py::arg("argmax"), py::arg("num_rows"),
      py::arg("mode"), py::arg("padding_idx"), Nogil());
  m.def(
      "embedding_bag_backward_scale",
      [](const Tensor& dy, const Tensor& weight, const Tensor& indices, const OptionalTensor& offsets,
         OptionalIndex padding_idx) {
        return ops::embedding_bag_backward_scale(dy, weight, indices, offsets,
                                                 {.mode = "sum", .padding_idx = padding_idx});
      },
      py::arg("dy"), py::arg("weight"), py::arg("indices"), py::arg("offsets"), py::arg("padding_idx"), Nogil());
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embedding", &ops::embedding, py::arg("weight"), py::arg("indices"), py::arg("padding_idx") = py::none(),
        Nogil());
  m.def("embedding_backward", &ops::embedding_backward, py::arg("dy"), py::arg("indices"), py::arg("num_rows"),
        py::arg("padding_idx") = py::none(), Nogil());
  m.def("embedding_backward_sparse", &ops::embedding_backward_sparse, py::arg("dy"), py::arg("indices"),
        py::arg("num_rows"), py::arg("padding_idx") = py::none(), Nogil());
  bind_embedding_bag(m);
  m.def("merge_rows", &ops::merge_rows, py::arg("indices"), py::arg("values"), Nogil());
  m.def("add_rows", &ops::add_rows, py::arg("dense"), py::arg("indices"), py::arg("values"), Nogil());
}

}  // namespace drupe::bindings
