// Pointwise operations, reductions, and tensors of one value.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/fill.h"
#include "ops/reduce.h"
#include "ops/sample.h"
#include "ops/topk.h"
#include "ops/unary.h"

namespace drupe::bindings {

void bind_elementwise(py::module_& m) {
  m.def("full", &ops::full, py::arg("shape"), py::arg("value"), py::arg("dtype"), py::arg("device") = Device{},
        Nogil());
  m.def("scalar", &ops::scalar, py::arg("op"), py::arg("value"), py::arg("dtype"), py::arg("device") = Device{},
        Nogil());

  m.def("binary", &ops::binary, py::arg("name"), py::arg("a"), py::arg("b"), Nogil());
  m.def("where", &ops::where, py::arg("condition"), py::arg("a"), py::arg("b"), Nogil());

  m.def("reduce", &ops::reduce, py::arg("name"), py::arg("x"), py::arg("axes"), py::arg("keepdims"), Nogil());
  m.def("var", &ops::var, py::arg("x"), py::arg("axes"), py::arg("ddof"), py::arg("keepdims"), Nogil());
  m.def("topk", &ops::topk, py::arg("x"), py::arg("k"), py::arg("axis"), py::arg("largest"), py::arg("sorted"),
        Nogil());
  m.def("topk_backward", &ops::topk_backward, py::arg("dy"), py::arg("indices"), py::arg("axis"), py::arg("size"),
        Nogil());
  m.def(
      "sample",
      [](const Tensor& logits, double temperature, std::optional<std::int64_t> top_k, std::optional<double> top_p,
         std::optional<double> min_p, std::uint64_t seed,
         std::uint64_t offset) { return ops::sample(logits, {temperature, top_k, top_p, min_p, seed, offset}); },
      py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("seed"),
      py::arg("offset"), Nogil());
  m.def("arg_extremum", &ops::arg_extremum, py::arg("name"), py::arg("x"), py::arg("axis"), py::arg("keepdims"),
        Nogil());

  m.def("unary", &ops::unary, py::arg("name"), py::arg("x"), Nogil());
  m.def("unary_backward", &ops::unary_backward, py::arg("name"), py::arg("dy"), py::arg("saved"), Nogil());
  m.def("clamp", &ops::clamp, py::arg("x"), py::arg("low"), py::arg("high"), Nogil());
  m.def("clamp_backward", &ops::clamp_backward, py::arg("dy"), py::arg("x"), py::arg("low"), py::arg("high"), Nogil());

  m.def("concat", &ops::concat, py::arg("parts"), py::arg("axis"), Nogil());
  m.def("pad", &ops::pad, py::arg("x"), py::arg("before"), py::arg("after"), py::arg("value"), Nogil());
}

}  // namespace drupe::bindings
