// Tensor, and its ways in and out: NumPy arrays and DLPack.
#include <pybind11/numpy.h>

#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "core/cuda.h"
#include "core/dlpack.h"
#include "ops/copy.h"

namespace drupe::bindings {
namespace {

// A deleter that drops a Python reference from whatever thread lets go of the memory last.
std::shared_ptr<void> own(py::object object, void* data) {
  PyObject* reference = object.release().ptr();
  return {data ? data : reference, [reference](void*) {
            if (!Py_IsInitialized()) return;
            py::gil_scoped_acquire gil;
            Py_DECREF(reference);
          }};
}

// Shares the array's memory, or gives nothing where that is misaligned or its strides are not of whole elements. The
// caller has made sure of native byte order.
std::optional<Tensor> from_numpy(const py::array& array, Dtype dtype) {
  check(array.ndim() <= kMaxDims, "tensor", "the array has ", array.ndim(), " dimensions: at most ", kMaxDims);
  const auto itemsize = static_cast<py::ssize_t>(size_of(dtype));
  check_type(array.itemsize() == itemsize, "tensor", "the array's elements have ", array.itemsize(), " bytes, not ",
             itemsize);
  if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) return std::nullopt;
  Dims shape, strides;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    if (array.shape(i) > 1 && array.strides(i) % itemsize != 0) return std::nullopt;
    shape.push_back(array.shape(i));
    strides.push_back(array.strides(i) / itemsize);
  }
  void* data = const_cast<void*>(array.data());
  return Tensor(own(array, data), data, shape, strides, dtype, {}, !array.writeable());
}

// Shares the tensor's memory, which the array's base keeps alive; of a device's, that of a copy.
py::array to_numpy(const Tensor& source, const py::dtype& dtype) {
  const Tensor tensor = ops::to_device(source, Device{});
  const auto itemsize = static_cast<py::ssize_t>(size_of(tensor.dtype()));
  std::vector<py::ssize_t> shape(tensor.shape().begin(), tensor.shape().end());
  std::vector<py::ssize_t> strides;
  for (std::int64_t stride : tensor.strides()) strides.push_back(stride * itemsize);
  py::capsule base(new Tensor(tensor), [](void* held) { delete static_cast<Tensor*>(held); });
  py::array array(dtype, std::move(shape), std::move(strides), tensor.raw(), base);
  if (tensor.readonly()) array.attr("flags").attr("writeable") = false;
  return array;
}

constexpr const char* kCapsule = "dltensor";
constexpr const char* kUsedCapsule = "used_dltensor";
constexpr const char* kVersionedCapsule = "dltensor_versioned";
constexpr const char* kUsedVersionedCapsule = "used_dltensor_versioned";

// A capsule that nobody consumed frees its tensor when it dies.
template <class Managed>
void destroy_capsule(PyObject* capsule, const char* name) {
  if (!PyCapsule_IsValid(capsule, name)) return;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
  if (managed->deleter) managed->deleter(managed);
}

// A stream as the array API's DLPack and the CUDA array interface number them: 1 is the legacy default stream, 2 the
// thread's own, anything else a cudaStream_t. 0 could be either of the former.
Stream parse_stream(const char* op, std::int64_t number, int device) {
  if (number < 1) {
    throw py::value_error(std::string("[") + op + "] stream is " + std::to_string(number) +
                          ": expected None, 1, 2 or the address of a stream");
  }
  return {.handle = number == 1 ? nullptr : reinterpret_cast<void*>(number), .device = device};
}

std::int64_t number_of(Stream stream) {
  return stream.handle ? static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(stream.handle)) : 1;
}

// Makes the consumer's stream wait for ours. None is the legacy default stream, -1 asks for no such thing.
void release_to(const Tensor& tensor, const std::optional<std::int64_t>& stream) {
  if (tensor.device().type == DeviceType::cpu) {
    if (stream) throw py::value_error("[__dlpack__] stream must be None for a tensor on the CPU");
    return;
  }
  if (stream.value_or(1) == -1) return;
  const int device = tensor.device().index;
  cuda::wait_for(parse_stream("__dlpack__", stream.value_or(1), device), cuda::current_stream(device));
}

// The tensor on the device that a consumer asks for: its own, or the CPU.
Tensor move_for(const Tensor& self, const std::optional<std::pair<int, int>>& dl_device, std::optional<bool> copy) {
  const dlpack::DLDevice here = dlpack::to_dldevice(self.device()), host = dlpack::to_dldevice(Device{});
  if (!dl_device || *dl_device == std::pair(here.device_type, here.device_id)) {
    return copy.value_or(false) ? ops::clone(self) : self;
  }
  if (*dl_device != std::pair(host.device_type, host.device_id)) {
    throw py::buffer_error("[__dlpack__] dl_device names another device: move the tensor there first");
  }
  if (copy && !*copy) throw py::buffer_error("[__dlpack__] another device needs a copy, which copy=False forbids");
  return ops::to_device(self, Device{});
}

py::object to_dlpack(const Tensor& self, const std::optional<std::int64_t>& stream,
                     const std::optional<std::pair<int, int>>& max_version,
                     const std::optional<std::pair<int, int>>& dl_device, std::optional<bool> copy) {
  const Tensor tensor = move_for(self, dl_device, copy);
  const bool copied = tensor.owner() != self.owner();
  release_to(tensor, stream);
  if (max_version && max_version->first >= 1) {
    return py::reinterpret_steal<py::object>(
        PyCapsule_New(dlpack::to_versioned(tensor, copied), kVersionedCapsule,
                      [](PyObject* o) { destroy_capsule<dlpack::DLManagedTensorVersioned>(o, kVersionedCapsule); }));
  }
  if (tensor.readonly()) {
    throw py::buffer_error(
        "[__dlpack__] the tensor is read-only, which only DLPack 1.0 can say: pass "
        "max_version=(1, 0) or copy=True");
  }
  return py::reinterpret_steal<py::object>(PyCapsule_New(dlpack::to_managed(tensor), kCapsule, [](PyObject* o) {
    destroy_capsule<dlpack::DLManagedTensor>(o, kCapsule);
  }));
}

template <class Managed>
Tensor consume(PyObject* capsule, Managed* managed, bool readonly, const char* used) {
  dlpack::validate(managed->dl_tensor);
  PyCapsule_SetName(capsule, used);
  PyCapsule_SetDestructor(capsule, nullptr);
  return dlpack::from_dltensor(managed->dl_tensor, readonly, [managed] {
    if (managed->deleter) managed->deleter(managed);
  });
}

// What tells a producer which stream the tensor will be used on.
py::dict stream_for(const py::object& source) {
  py::dict options;
  if (!py::hasattr(source, "__dlpack_device__")) return options;
  const auto [type, index] = source.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  if (type == dlpack::kCuda && index >= 0 && index < cuda::status().devices) {
    options["stream"] = number_of(cuda::current_stream(index));
  }
  return options;
}

Tensor from_dlpack(const py::object& source) {
  py::object capsule = source;
  if (py::hasattr(source, "__dlpack__")) {
    const py::dict stream = stream_for(source);
    try {
      capsule = source.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0), **stream);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = source.attr("__dlpack__")(**stream);
    }
  }
  if (PyCapsule_IsValid(capsule.ptr(), kVersionedCapsule)) {
    auto* managed =
        static_cast<dlpack::DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kVersionedCapsule));
    if (managed->major != dlpack::kMajorVersion) {
      throw py::buffer_error("[from_dlpack] the capsule has DLPack version " + std::to_string(managed->major) + "." +
                             std::to_string(managed->minor) + ": expected 1.x");
    }
    return consume(capsule.ptr(), managed, (managed->flags & dlpack::kReadOnly) != 0, kUsedVersionedCapsule);
  }
  if (PyCapsule_IsValid(capsule.ptr(), kCapsule)) {
    auto* managed = static_cast<dlpack::DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
    return consume(capsule.ptr(), managed, false, kUsedCapsule);
  }
  if (PyCapsule_IsValid(capsule.ptr(), kUsedCapsule) || PyCapsule_IsValid(capsule.ptr(), kUsedVersionedCapsule)) {
    throw py::value_error("[from_dlpack] the capsule was consumed already: a DLPack capsule can be used once");
  }
  throw py::type_error("[from_dlpack] expected an object with __dlpack__ or a DLPack capsule");
}

// An integer of whatever kind, as Python's: NumPy's, an array of no dimensions.
py::int_ integer_index(const py::handle& item) {
  PyObject* const object = item.ptr();
  bool whole = PyIndex_Check(object) && !PyBool_Check(object);
  if (whole && !PyLong_Check(object) && py::hasattr(item, "shape"))
    whole = py::object(item.attr("shape")).equal(py::tuple());
  if (!whole) {
    fail<TypeError>("getitem", "an index is ", std::string(py::str(py::type::of(item).attr("__name__"))),
                    ": expected integers, slices, None or Ellipsis");
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(object));
  if (!index) throw py::error_already_set();
  return index;
}

// The view that a basic index names.
Tensor getitem(const Tensor& x, const py::object& key) {
  const py::tuple items = py::isinstance<py::tuple>(key) ? py::tuple(key) : py::make_tuple(key);
  int named = 0, ellipses = 0;
  for (const py::handle item : items) {
    if (item.ptr() == Py_Ellipsis) {
      ++ellipses;
    } else if (!item.is_none()) {
      ++named;
    }
  }
  check_index(ellipses <= 1, "getitem", "more than one ellipsis");
  check_index(named <= x.ndim(), "getitem", named, " indices for a tensor of shape ", x.shape());
  Tensor view = x;
  int dim = 0;
  for (const py::handle item : items) {
    if (item.ptr() == Py_Ellipsis) {
      dim += x.ndim() - named;
    } else if (item.is_none()) {
      view = view.unsqueeze(dim++);
    } else if (PySlice_Check(item.ptr())) {
      const py::ssize_t extent = view.size(dim);
      py::ssize_t start = 0, stop = 0, step = 0;
      if (PySlice_Unpack(item.ptr(), &start, &stop, &step) < 0) throw py::error_already_set();
      PySlice_AdjustIndices(extent, &start, &stop, step);
      step = std::clamp(step, -extent - 1, extent + 1);  // any larger one takes one element, too
      view = view.slice(dim++, start, stop, step);
    } else {
      const py::int_ index = integer_index(item);
      const py::ssize_t at = PyNumber_AsSsize_t(index.ptr(), nullptr);  // as far as that reaches
      if (at < -view.size(dim) || at >= view.size(dim)) {
        fail<std::out_of_range>("getitem", "index ", std::string(py::str(index)), " is out of range for dimension ",
                                dim, " of shape ", view.shape());
      }
      view = view.select(dim, at);
    }
  }
  return view;
}

// Shares the memory that a __cuda_array_interface__ describes, for the object's sake; strides count elements.
Tensor from_cuda_array(const py::object& object, std::uintptr_t pointer, const Dims& shape,
                       const std::optional<Dims>& strides, Dtype dtype, bool readonly,
                       const std::optional<std::int64_t>& stream) {
  constexpr const char* op = "__cuda_array_interface__";
  if (checked_numel(shape, op) == 0) return empty(shape, dtype, {DeviceType::cuda, 0});
  if (strides) check(strides->size() == shape.size(), op, "shape is ", shape, ", strides are ", *strides);
  auto* const data = reinterpret_cast<void*>(pointer);
  const Device device{DeviceType::cuda, cuda::device_of(data)};
  check(device.index >= 0, op, "the data is not in a device's memory");
  check(pointer % size_of(dtype) == 0, op, "the data is not aligned to its elements of ", size_of(dtype), " bytes");
  if (stream) cuda::wait_for(cuda::current_stream(device.index), parse_stream(op, *stream, device.index));
  return Tensor(own(object, data), data, shape, strides.value_or(contiguous_strides(shape)), dtype, device, readonly);
}

}  // namespace

void bind_tensor(py::module_& m) {
  py::dtype::of<float>();  // look NumPy up now: done later, it would let go of the lock unsafely (see ReleaseGil)
  py::class_<Tensor>(m, "Tensor")
      .def_property_readonly("shape", &Tensor::shape)
      .def_property_readonly("strides", &Tensor::strides)
      .def_property_readonly("ndim", &Tensor::ndim)
      .def_property_readonly("numel", &Tensor::numel)
      .def_property_readonly("nbytes", &Tensor::nbytes)
      .def_property_readonly("dtype", &Tensor::dtype)
      .def_property_readonly("device", &Tensor::device)
      .def_property_readonly("readonly", &Tensor::readonly)
      .def_property_readonly("data_ptr", [](const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.raw()); })
      .def_property_readonly("owner", [](const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.owner().get()); })
      .def("is_contiguous", &Tensor::is_contiguous)
      .def("permute", &Tensor::permute, py::arg("axes"))
      .def("transpose", &Tensor::transpose, py::arg("dim0"), py::arg("dim1"))
      .def("slice", &Tensor::slice, py::arg("dim"), py::arg("start"), py::arg("stop"), py::arg("step"))
      .def("select", &Tensor::select, py::arg("dim"), py::arg("index"))
      .def("unsqueeze", &Tensor::unsqueeze, py::arg("dim"))
      .def("squeeze", &Tensor::squeeze, py::arg("dim"))
      .def("broadcast_to", &Tensor::broadcast_to, py::arg("shape"))
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Tensor& t) {
        const dlpack::DLDevice device = dlpack::to_dldevice(t.device());
        return std::make_pair(device.device_type, device.device_id);
      });

  m.def("from_numpy", &from_numpy, py::arg("array").noconvert(), py::arg("dtype"));
  m.def("to_numpy", &to_numpy, py::arg("tensor"), py::arg("dtype"));
  m.def("from_dlpack", &from_dlpack, py::arg("source"));
  m.def("getitem", &getitem, py::arg("x"), py::arg("index"));
  m.def("from_cuda_array", &from_cuda_array, py::arg("object"), py::arg("pointer"), py::arg("shape"),
        py::arg("strides"), py::arg("dtype"), py::arg("readonly"), py::arg("stream"));
  m.def(
      "current_stream", [](Device device) { return number_of(cuda::current_stream(device.index)); }, py::arg("device"));

  m.def("empty", &empty, py::arg("shape"), py::arg("dtype"), py::arg("device") = Device{}, Nogil());
  m.def("zeros", &zeros, py::arg("shape"), py::arg("dtype"), py::arg("device") = Device{}, Nogil());
  m.def("contiguous", &ops::contiguous, py::arg("x"), Nogil());
  m.def("clone", &ops::clone, py::arg("x"), Nogil());
  m.def("to_device", &ops::to_device, py::arg("x"), py::arg("device"), py::arg("non_blocking") = false, Nogil());
  m.def("cast", &ops::cast, py::arg("x"), py::arg("dtype"), Nogil());
  m.def("reshape", &ops::reshape, py::arg("x"), py::arg("shape"), Nogil());
  m.def("copy_into", &ops::copy_into, py::arg("dst"), py::arg("src"), Nogil());
}

}  // namespace drupe::bindings
