// How core's value types look from Python: Dims is a tuple of ints, Dtype a NumPy dtype name, Device "cpu" or "cuda:0".
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/tensor.h"

namespace drupe {

inline Dtype parse_dtype(const std::string& name) {
  for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16, Dtype::i8, Dtype::u8, Dtype::i32, Dtype::i64,
                      Dtype::boolean}) {
    if (name == name_of(dtype)) return dtype;
  }
  fail<TypeError>(
      "dtype", "\"", name,
      "\" is not supported: expected float32, float64, float16, bfloat16, int8, uint8, int32, int64 or bool");
}

}  // namespace drupe

namespace pybind11::detail {

template <>
struct type_caster<drupe::Dims> {
  PYBIND11_TYPE_CASTER(drupe::Dims, const_name("tuple[int, ...]"));
  bool load(handle source, bool) {
    if (!isinstance<sequence>(source) || isinstance<str>(source)) return false;
    value = drupe::Dims();
    for (handle item : reinterpret_borrow<sequence>(source)) {
      object index = reinterpret_steal<object>(PyNumber_Index(item.ptr()));
      if (!index) {
        PyErr_Clear();
        return false;
      }
      int overflow = 0;
      const long long extent = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
      if (overflow) throw value_error("shape: an extent does not fit in 64 bits");
      value.push_back(extent);
    }
    return true;
  }
  static handle cast(const drupe::Dims& dims, return_value_policy, handle) {
    tuple result(static_cast<std::size_t>(dims.size()));
    for (int i = 0; i < dims.size(); ++i) result[static_cast<std::size_t>(i)] = int_(dims[i]);
    return result.release();
  }
};

template <>
struct type_caster<drupe::Dtype> {
  PYBIND11_TYPE_CASTER(drupe::Dtype, const_name("str"));
  bool load(handle source, bool) {
    if (!isinstance<str>(source)) return false;
    value = drupe::parse_dtype(source.cast<std::string>());
    return true;
  }
  static handle cast(drupe::Dtype dtype, return_value_policy, handle) { return str(drupe::name_of(dtype)).release(); }
};

template <>
struct type_caster<drupe::Device> {
  PYBIND11_TYPE_CASTER(drupe::Device, const_name("str"));
  bool load(handle source, bool) {
    if (!isinstance<str>(source)) return false;
    const auto name = source.cast<std::string>();
    if (name == "cpu") return true;
    if (name == "cuda") {
      value = {drupe::DeviceType::cuda, 0};
      return true;
    }
    if (name.size() >= 6 && name.size() <= 8 && name.rfind("cuda:", 0) == 0 &&
        name.find_first_not_of("0123456789", 5) == name.npos) {
      value = {drupe::DeviceType::cuda, std::stoi(name.substr(5))};
      return true;
    }
    throw value_error("[device] \"" + name + "\": expected \"cpu\", \"cuda\" or \"cuda:<index>\"");
  }
  static handle cast(drupe::Device device, return_value_policy, handle) {
    if (device.type == drupe::DeviceType::cpu) return str("cpu").release();
    std::ostringstream out;
    out << device;
    return str(out.str()).release();
  }
};

}  // namespace pybind11::detail
