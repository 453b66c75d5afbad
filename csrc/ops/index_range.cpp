#include "ops/index_range.h"

#include <utility>

#include "core/dispatch.h"
#include "ops/backend.h"
#include "ops/copy.h"

namespace drupe::ops {
namespace {

template <class I>
std::optional<IndexAt> search(const I* indices, std::int64_t count, std::int64_t size,
                              std::optional<std::int64_t> allowed) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t index = indices[i];
    if ((index < 0 || index >= size) && index != allowed) return IndexAt{index, i};
  }
  return {};
}

}  // namespace

std::string subscript(std::int64_t position, const Dims& shape) {
  std::string text = "]";
  for (int i = shape.size() - 1; i >= 0; --i) {
    text = (i ? ", " : "[") + std::to_string(position % shape[i]) + text;
    position /= shape[i];
  }
  return shape.empty() ? "" : text;
}

std::int64_t index_at(const Tensor& indices, std::int64_t i) {
  const Tensor flat = *indices.try_reshape({indices.numel()});
  const Tensor here = to_device(flat.slice(0, i, i + 1, 1), Device{});
  return here.dtype() == Dtype::i32 ? *here.data<std::int32_t>() : *here.data<std::int64_t>();
}

std::optional<IndexAt> first_out_of_range(const Tensor& indices, std::int64_t size,
                                          std::optional<std::int64_t> allowed) {
  const std::int64_t count = indices.numel();
  std::optional<IndexAt> found;
  const auto on_cuda = [&](auto stream) {
    if (count == 0) return;
    const Tensor remaining = zeros({}, Dtype::i64, indices.device());
    cuda::find_out_of_range({.indices = indices.raw(),
                             .count = count,
                             .size = size,
                             .allowed = allowed,
                             .remaining = remaining.data<std::int64_t>(),
                             .dtype = indices.dtype()},
                            stream);
    const std::int64_t left = *to_device(remaining, Device{}).data<std::int64_t>();
    if (left == 0) return;
    const Tensor wrong = to_device(indices.try_reshape({count})->select(0, count - left), Device{});
    dispatch_index(indices.dtype(), [&]<class I>() { found = IndexAt{*wrong.data<I>(), count - left}; });
  };
  dispatch(
      indices.device(),
      [&]<Isa>() {
        dispatch_index(indices.dtype(), [&]<class I>() { found = search(indices.data<I>(), count, size, allowed); });
      },
      on_cuda);
  return found;
}

Tensor defer_range_check(const Tensor& indices, std::int64_t size, std::optional<std::int64_t> allowed,
                         cuda::Raise raise) {
  Tensor copy = empty(indices.shape(), indices.dtype(), indices.device());
  if (indices.numel() == 0) return copy;
  const Tensor remaining = zeros({}, Dtype::i64, indices.device());
  const auto on_cuda = [&](auto stream) {
    const cuda::DeferredCheck check = cuda::defer_check(indices.device(), std::move(raise));
    cuda::report_out_of_range({.indices = indices.raw(),
                               .count = indices.numel(),
                               .size = size,
                               .allowed = allowed,
                               .remaining = remaining.data<std::int64_t>(),
                               .dtype = indices.dtype()},
                              copy.raw(), check, stream);
  };
  dispatch(indices.device(), []<Isa>() {}, on_cuda);
  return copy;
}

}  // namespace drupe::ops
