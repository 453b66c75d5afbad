// Streams, events, graphs, and page-locked memory.
#include "core/cuda.h"
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "ops/copy.h"

namespace drupe::bindings {
namespace {

// One's own, or a device's default one.
struct AnyStream {
  Stream stream;
  std::shared_ptr<cuda::OwnedStream> owner;
};

AnyStream make_stream(Device device) {
  check(device.type == DeviceType::cuda, "cuda", "a stream is a device's: expected \"cuda\" or \"cuda:<index>\"");
  auto owner = std::make_shared<cuda::OwnedStream>(device.index);
  const Stream stream = owner->get();
  return {stream, std::move(owner)};
}

AnyStream default_stream(Device device) {
  check(device.type == DeviceType::cuda, "cuda", "a stream is a device's: expected \"cuda\" or \"cuda:<index>\"");
  cuda::check_available(device);
  return {{.handle = nullptr, .device = device.index}, nullptr};
}

void bind_streams(py::module_& m) {
  py::class_<AnyStream>(m, "Stream")
      .def(py::init(&make_stream), py::arg("device"), Nogil())
      .def_static("default", &default_stream, py::arg("device"))
      .def_property_readonly("device", [](const AnyStream& s) { return Device{DeviceType::cuda, s.stream.device}; })
      .def_property_readonly("handle",
                             [](const AnyStream& s) { return reinterpret_cast<std::uintptr_t>(s.stream.handle); })
      .def("make_current", [](const AnyStream& s) { cuda::set_current_stream(s.stream); })
      .def(
          "synchronize", [](const AnyStream& s) { cuda::synchronize(s.stream); }, Nogil())
      .def(
          "wait", [](const AnyStream& s, const AnyStream& source) { cuda::wait_for(s.stream, source.stream); },
          py::arg("source"), Nogil());
  py::class_<cuda::Event>(m, "Event")
      .def(py::init<bool>(), py::arg("timed"))
      .def(
          "record", [](cuda::Event& e, const AnyStream& s) { e.record(s.stream); }, py::arg("stream"), Nogil())
      .def(
          "hold", [](const cuda::Event& e, const AnyStream& s) { e.hold(s.stream); }, py::arg("stream"), Nogil())
      .def("synchronize", &cuda::Event::synchronize, Nogil())
      .def("query", &cuda::Event::query, Nogil())
      .def("elapsed_ms", &cuda::Event::elapsed_ms, py::arg("end"), Nogil());
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_streams(m);
  py::class_<cuda::Graph>(m, "Graph")
      .def(py::init<>())
      .def(
          "begin", [](cuda::Graph& g, const AnyStream& s) { g.begin(s.stream); }, py::arg("stream"), Nogil())
      .def("end", &cuda::Graph::end, Nogil())
      .def("abort", &cuda::Graph::abort, Nogil())
      .def(
          "replay",
          [](cuda::Graph& g, Device device, std::uint64_t seed, std::uint64_t offset) {
            g.replay(cuda::current_stream(device.index), seed, offset);
          },
          py::arg("device"), py::arg("seed"), py::arg("offset"), Nogil())
      .def_property_readonly("random_state", &cuda::Graph::random_state);
  m.def("is_capturing", &cuda::is_capturing, py::arg("device"));
  m.def(
      "pin", [](const Tensor& x, Device device) { return ops::pin(x, device.index); }, py::arg("x"), py::arg("device"),
      Nogil());
  m.def("is_pinned", [](const Tensor& x) { return cuda::is_pinned(x.owner()); }, py::arg("x"));
  m.def(
      "record_use", [](const Tensor& x, const AnyStream& s) { cuda::record_use(x.owner(), s.stream); }, py::arg("x"),
      py::arg("stream"));
}

}  // namespace drupe::bindings
