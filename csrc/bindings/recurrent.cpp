// Recurrent layers.
#include "ops/recurrent.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "bindings/bindings.h"
#include "bindings/casters.h"

namespace drupe::bindings {
namespace {

using Optional = std::optional<Tensor>;
// weight_ih, weight_hh, bias_ih, bias_hh of each direction
using Weights = std::vector<std::tuple<Tensor, Tensor, Optional, Optional>>;
using WeightGradients = std::vector<std::tuple<Optional, Optional, Optional, Optional>>;

std::vector<RecurrentWeights> weights_of(const Weights& given) {
  std::vector<RecurrentWeights> weights;
  for (const auto& [weight_ih, weight_hh, bias_ih, bias_hh] : given) {
    weights.push_back({weight_ih, weight_hh, bias_ih, bias_hh});
  }
  return weights;
}

Optional defined(const Tensor& tensor) {
  return tensor.defined() ? Optional(tensor) : std::nullopt;
}

void bind_cell(py::module_& m, const std::string& name, Cell cell) {
  m.def(
      name.c_str(),
      [cell](const Tensor& x, const Weights& weights, const Optional& h0, const Optional& c0, const Optional& lengths,
             bool keep) {
        const RecurrentResult r = ops::recurrent(cell, x, weights_of(weights), {.h = h0, .c = c0}, lengths, keep);
        return std::tuple(r.y, r.h, defined(r.c), r.saved);
      },
      py::arg("x"), py::arg("weights"), py::arg("h0"), py::arg("c0"), py::arg("lengths"), py::arg("keep"), Nogil());
  m.def((name + "_backward").c_str(),
        [cell](const Optional& dy, const Optional& dh, const Optional& dc, const Tensor& x, const Weights& weights,
               const Optional& lengths, const std::vector<Tensor>& saved, bool wants_dx,
               const std::vector<std::array<bool, 4>>& wants_dweights) {
          RecurrentWants wants{.x = wants_dx, .weights = {}};
          for (std::size_t d = 0; d < std::min<std::size_t>(2, wants_dweights.size()); ++d) {
            const auto& [weight_ih, weight_hh, bias_ih, bias_hh] = wants_dweights[d];
            wants.weights[d] = {weight_ih, weight_hh, bias_ih, bias_hh};
          }
          const RecurrentGradients g =
              ops::recurrent_backward(cell, dy, {.h = dh, .c = dc}, x, weights_of(weights), lengths, saved, wants);
          WeightGradients dweights;
          for (const RecurrentWeights& w : g.dweights) {
            dweights.emplace_back(defined(w.weight_ih), defined(w.weight_hh), w.bias_ih, w.bias_hh);
          }
          return std::tuple(defined(g.dx), dweights, g.dh0, defined(g.dc0));
        },
        py::arg("dy"), py::arg("dh"), py::arg("dc"), py::arg("x"), py::arg("weights"), py::arg("lengths"),
        py::arg("saved"), py::arg("wants_dx"), py::arg("wants_dweights"), Nogil());
}

}  // namespace

void bind_recurrent(py::module_& m) {
  bind_cell(m, "lstm", Cell::lstm);
  bind_cell(m, "gru", Cell::gru);
}

}  // namespace drupe::bindings
