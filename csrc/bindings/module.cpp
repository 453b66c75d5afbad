#include "bindings/bindings.h"

#include "core/check.h"

PYBIND11_MODULE(_C, m) {
  using namespace drupe::bindings;
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const drupe::TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    }
  });
  bind_runtime(m);
  bind_tensor(m);
  bind_cuda(m);
  bind_gemm(m);
  bind_conv(m);
  bind_attention(m);
  bind_norm(m);
  bind_loss(m);
  bind_elementwise(m);
  bind_embedding(m);
  bind_sparse(m);
  bind_recurrent(m);
  bind_limits(m);
  bind_optimizer(m);
}
