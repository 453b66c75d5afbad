#include "ops/lengths.h"

#include <string>

#include "core/check.h"
#include "core/cuda.h"
#include "ops/copy.h"
#include "ops/index_range.h"

namespace drupe::ops {

Tensor checked_lengths(const Tensor& lengths, std::int64_t B, std::int64_t limit, const char* what, const char* op) {
  check_type(lengths.dtype() == Dtype::i32 || lengths.dtype() == Dtype::i64, op, what, " is ", lengths.dtype(),
             ": expected int32 or int64");
  check(lengths.shape() == Dims{B}, op, what, " is ", lengths.shape(), ": expected (", B, ",)");
  const Tensor result = contiguous(cast(lengths, Dtype::i64));
  const auto verify = [=, name = std::string(what)](std::int64_t length, std::int64_t b) {
    check(length >= 0 && length <= limit, op, name, "[", b, "] is ", length, ": expected 0 to ", limit);
  };
  if (cuda::is_capturing(result.device())) return defer_range_check(result, limit + 1, {}, verify);
  const Tensor on_host = to_device(result, Device{});
  for (std::int64_t b = 0; b < B; ++b) verify(on_host.data<std::int64_t>()[b], b);
  return result;
}

}  // namespace drupe::ops
