// Threads, memory, instruction sets, and how this module was built.
#include "bindings/bindings.h"
#include "bindings/casters.h"
#include "core/cuda.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/isa.h"

namespace drupe::bindings {

void bind_runtime(py::module_& m) {
  m.attr("__version__") = DRUPE_VERSION;
  m.attr("cuda_built") = DRUPE_CUDA_BUILT;
  m.def(
      "synchronize",
      [](Device device) {
        if (device.type == DeviceType::cuda) cuda::synchronize(device.index);
      },
      py::arg("device"), Nogil());
  m.def("cuda_status", [] {
    const cuda::Status status = cuda::status();
    return std::make_tuple(status.available, status.reason, status.devices);
  });

  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"), Nogil());

  m.def("isas", [] {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(name_of(isa));
    return names;
  });
  m.def("isa", [] { return name_of(current_isa()); });
  m.def("isa_reason", &isa_reason);
  m.def("set_isa", &set_isa, py::arg("name"));

  m.def(
      "memory_stats",
      [](Device device) {
        std::map<std::string, std::size_t> result;
        MemoryStats stats{};
        if (device.type == DeviceType::cpu) {
          stats = memory_stats();
        } else {
          const cuda::DeviceMemoryStats found = cuda::memory_stats(device.index);
          result = {{"graph_bytes", found.graph_bytes}, {"pinned_bytes", found.pinned_bytes}};
          stats = found;
        }
        result["in_use_bytes"] = stats.in_use_bytes;
        result["cached_bytes"] = stats.cached_bytes;
        result["peak_bytes"] = stats.peak_bytes;
        return result;
      },
      py::arg("device") = Device{});
  m.def("reset_peak_memory", &reset_peak_memory);
  m.def(
      "empty_cache",
      [] {
        empty_cache();
        cuda::empty_cache();
      },
      Nogil());
}

}  // namespace drupe::bindings
