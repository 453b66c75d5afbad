// Gather of rows: each index names a row that is copied whole. The rows are scattered, so those a few steps ahead are
// asked for early. Bytes: the indices and the rows once, the result once.
#include "ops/embedding.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "cpu/row_check.h"
#include "cpu/row_sum.h"

namespace drupe::cpu {
namespace {

constexpr std::int64_t kTaskBytes = std::int64_t{1} << 17;

// Bytes is the size of a row, 0 where it is only known at run time.
template <Isa I, class Index, std::int64_t Bytes>
void gather(const EmbeddingArgs& args, std::int64_t begin, std::int64_t end) {
  const auto* indices = static_cast<const Index*>(args.indices);
  const auto* weight = static_cast<const char*>(args.weight);
  auto* y = static_cast<char*>(args.y);
  const auto prefetch = PrefetchPlan::make<I>(weight, args.row_stride_bytes, args.row_bytes);
  const auto row = [indices, weight, stride = args.row_stride_bytes](std::int64_t i) {
    return weight + static_cast<std::int64_t>(indices[i]) * stride;
  };
  const std::int64_t size = args.size;
  const auto bytes = static_cast<std::size_t>(Bytes ? Bytes : args.row_bytes);
  for (std::int64_t i = begin; i < end; ++i) {
    if constexpr (Bytes > 0) {
      prefetch_ahead<Bytes>(row, i, size, prefetch.straddles);
    } else {
      prefetch(row(std::min(i + prefetch.ahead, size - 1)));
    }
    std::memcpy(y + i * static_cast<std::int64_t>(bytes), row(i), bytes);
  }
}

}  // namespace

template <Isa I>
bool embedding(const EmbeddingArgs& args) {
  std::atomic<bool> complete = true;
  const std::int64_t grain = std::max<std::int64_t>(1, kTaskBytes / args.row_bytes);
  dispatch_index(args.index_dtype, [&]<class Index>() {
    parallel_ranges(args.size, grain, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t asked = std::min(args.size, end + kFarthestRow);
      if (!all_below(static_cast<const Index*>(args.indices) + begin, asked - begin, args.limit)) {
        complete.store(false, std::memory_order_relaxed);
        return;
      }
      switch (args.row_bytes) {
        case 4:
          return gather<I, Index, 4>(args, begin, end);
        case 32:
          return gather<I, Index, 32>(args, begin, end);
        case 64:
          return gather<I, Index, 64>(args, begin, end);
        case 128:
          return gather<I, Index, 128>(args, begin, end);
        case 256:
          return gather<I, Index, 256>(args, begin, end);
        case 512:
          return gather<I, Index, 512>(args, begin, end);
        default:
          return gather<I, Index, 0>(args, begin, end);
      }
    });
  });
  return complete.load(std::memory_order_relaxed);
}

template bool embedding<Isa::DRUPE_ISA>(const EmbeddingArgs&);

}  // namespace drupe::cpu
