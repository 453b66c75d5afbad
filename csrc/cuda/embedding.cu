// Gather of rows. A row is copied by a group of lanes (tile/row_groups.cuh) in words of up to 16 bytes; a group has the
// words of kInFlight rows in registers at once, which hides the latency of scattered reads. Bytes: the indices and the
// rows once, the result once.
#include "ops/embedding.h"

#include "cuda/tile/row_groups.cuh"

namespace drupe::cuda {
namespace {

constexpr int kInFlight = 4;

// Rows count in words.
template <class Word>
struct Gather {
  const Word* weight;
  std::int64_t row_stride;
  IndexArray indices;
  Word* y;
};

template <class Word>
__global__ __launch_bounds__(kMapThreads) void embedding_kernel(Gather<Word> gather, RowGroups groups) {
  const std::int64_t step = groups.step();
  for (std::int64_t first = groups.first(); first < groups.count; first += step * kInFlight) {
    Word word[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const RowPiece at = groups.piece(first + k * step);
      if (first + k * step < groups.count && at.unit < groups.units) {
        word[k] = gather.weight[gather.indices[at.row] * gather.row_stride + at.unit];
      }
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const RowPiece at = groups.piece(first + k * step);
      if (first + k * step < groups.count && at.unit < groups.units)
        gather.y[at.row * groups.units + at.unit] = word[k];
    }
  }
}

template <class Word>
void gather(const EmbeddingArgs& args, Stream stream) {
  constexpr auto kBytes = static_cast<std::int64_t>(sizeof(Word));
  const Gather<Word> rows{.weight = static_cast<const Word*>(args.weight),
                          .row_stride = args.row_stride_bytes / kBytes,
                          .indices = {args.indices, args.index_dtype},
                          .y = static_cast<Word*>(args.y)};
  const RowGroups groups(args.size, args.row_bytes / kBytes);
  launch<embedding_kernel<Word>>({.grid = {blocks_for(groups.threads(), kInFlight)}, .block = {kMapThreads}}, stream,
                                 rows, groups);
}

}  // namespace

void embedding(const EmbeddingArgs& args, Stream stream) {
  const auto bits = static_cast<std::uint64_t>(args.row_bytes | args.row_stride_bytes) |
                    reinterpret_cast<std::uintptr_t>(args.weight) | reinterpret_cast<std::uintptr_t>(args.y);
  if (bits % 16 == 0) return gather<Pack<std::uint32_t, 4>>(args, stream);
  if (bits % 8 == 0) return gather<std::uint64_t>(args, stream);
  if (bits % 4 == 0) return gather<std::uint32_t>(args, stream);
  if (bits % 2 == 0) return gather<std::uint16_t>(args, stream);
  gather<std::uint8_t>(args, stream);
}

}  // namespace drupe::cuda
