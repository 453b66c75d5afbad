// One function per domain; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace drupe::bindings {

namespace py = pybind11;

// Unlike py::gil_scoped_release, survives an interpreter that shuts down: there a daemon thread that asks for the lock
// back is ended by unwinding its stack, which must be able to leave this destructor.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ~ReleaseGil() noexcept(false) { PyEval_RestoreThread(state_); }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  PyThreadState* state_;
};

// Kernels run without the interpreter's lock.
using Nogil = py::call_guard<ReleaseGil>;

void bind_runtime(py::module_& m);      // threads, memory, instruction sets
void bind_cuda(py::module_& m);         // streams, events, graphs, page-locked memory
void bind_tensor(py::module_& m);       // Tensor, NumPy, DLPack, copies
void bind_gemm(py::module_& m);         // gemm, activations
void bind_conv(py::module_& m);         // conv2d, pooling
void bind_attention(py::module_& m);    // attention, softmax
void bind_norm(py::module_& m);         // layer, rms, batch, group norm; dropout
void bind_loss(py::module_& m);         // cross entropy, bce, mse
void bind_elementwise(py::module_& m);  // unary, binary, where, reductions, topk, concat
void bind_embedding(py::module_& m);    // embedding, embedding bag, sparse rows
void bind_sparse(py::module_& m);       // matrices in compressed rows, products with them
void bind_recurrent(py::module_& m);    // lstm, gru
void bind_limits(py::module_& m);       // the machine's measured limits
void bind_optimizer(py::module_& m);    // sgd, adam, adamw, rmsprop

}  // namespace drupe::bindings
