// Attention and softmax.
#include "ops/attention.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/append_rows.h"
#include "ops/cached_attention.h"
#include "ops/softmax.h"

namespace drupe::bindings {

void bind_attention(py::module_& m) {
  using Optional = const std::optional<Tensor>&;
  using Bound = std::optional<std::int64_t>;
  m.def(
      "attention",
      [](const Tensor& q, const Tensor& k, const Tensor& v, Optional bias, Optional lengths, Optional query_lengths,
         Bound left, Bound right, std::optional<double> scale) {
        return ops::attention(q, k, v,
                              {.bias = bias,
                               .lengths = lengths,
                               .query_lengths = query_lengths,
                               .left = left,
                               .right = right,
                               .scale = scale});
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("bias") = py::none(), py::arg("lengths") = py::none(),
      py::arg("query_lengths") = py::none(), py::arg("left") = py::none(), py::arg("right") = py::none(),
      py::arg("scale") = py::none(), Nogil());
  m.def(
      "attention_backward",
      [](const Tensor& dy, const Tensor& y, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
         Optional bias, Optional lengths, Optional query_lengths, Bound left, Bound right, std::optional<double> scale,
         std::array<bool, 4> wanted) {
        const AttentionGradients g =
            ops::attention_backward(dy, y, lse, q, k, v,
                                    {.bias = bias,
                                     .lengths = lengths,
                                     .query_lengths = query_lengths,
                                     .left = left,
                                     .right = right,
                                     .scale = scale},
                                    {.dq = wanted[0], .dk = wanted[1], .dv = wanted[2], .dbias = wanted[3]});
        const auto given = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
        return std::tuple(given(g.dq), given(g.dk), given(g.dv), given(g.dbias));
      },
      py::arg("dy"), py::arg("y"), py::arg("lse"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("bias"),
      py::arg("lengths"), py::arg("query_lengths"), py::arg("left"), py::arg("right"), py::arg("scale"),
      py::arg("wanted"), Nogil());
  m.def(
      "append_rows",
      [](const Tensor& cache, const Tensor& rows, const std::vector<std::int64_t>& starts) {
        return ops::append_rows(cache, rows, starts);
      },
      py::arg("cache"), py::arg("rows"), py::arg("starts"), Nogil());
  m.def(
      "cached_attention",
      [](const Tensor& x, const Tensor& keys, const Tensor& values, const std::vector<std::int64_t>& starts,
         Optional bias, Optional lengths, Optional query_lengths, Bound right, std::optional<double> scale) {
        return ops::cached_attention(x, keys, values, starts,
                                     {.bias = bias,
                                      .lengths = lengths,
                                      .query_lengths = query_lengths,
                                      .left = std::nullopt,
                                      .right = right,
                                      .scale = scale});
      },
      py::arg("x"), py::arg("keys"), py::arg("values"), py::arg("starts"), py::arg("bias"), py::arg("lengths"),
      py::arg("query_lengths"), py::arg("right"), py::arg("scale"), Nogil());
  m.def("softmax", &ops::softmax, py::arg("x"), py::arg("axis"), py::arg("log") = false, Nogil());
  m.def("softmax_backward", &ops::softmax_backward, py::arg("dy"), py::arg("y"), py::arg("axis"),
        py::arg("log") = false, Nogil());
}

}  // namespace drupe::bindings
