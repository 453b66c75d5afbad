// launch<kernel>(config, stream, arguments…). Emulated: runs the whole grid before it returns, or records it for a
// graph.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "core/stream.h"
#include "cuda/emu/grid.h"
#include "cuda/emu/stream.h"

namespace drupe::cuda {

using Dim3 = emu::Dim3;

struct LaunchConfig {
  Dim3 grid, block;
  std::size_t shared_bytes = 0;
  Dim3 cluster = {};
};

template <auto kKernel>
std::string kernel_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  text = text.substr(text.find("kKernel = ") + 10);
  text = text.substr(0, text.find("; std::string"));
  return std::string(text.substr(0, text.rfind(']') == text.size() - 1 ? text.size() - 1 : text.size()));
}

// Throws emu::Fault.
template <auto kKernel, class... A>
void launch(const LaunchConfig& config, Stream stream, const A&... arguments) {
  static_assert((std::is_trivially_copyable_v<A> && ...), "kernels take their arguments as bytes");
  const auto body = [bound = std::tuple<A...>(arguments...)] { std::apply(kKernel, bound); };
  const auto run = [config, body](bool check_only) {
    const emu::Launch launched{.kernel = kernel_name<kKernel>(),
                               .grid = config.grid,
                               .block = config.block,
                               .cluster = config.cluster,
                               .shared_bytes = config.shared_bytes,
                               .arguments = &body,
                               .argument_bytes = sizeof body};
    if (check_only) return emu::check_launch(launched);
    emu::run_grid(launched, body);
  };
  if (emu::capture_id(stream.handle) != 0) run(true);
  emu::enqueue(stream.handle, [run] { run(false); });
}

}  // namespace drupe::cuda
