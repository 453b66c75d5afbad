// The sweeps that batch_norm and group_norm share, over samples x rows x C with contiguous channels.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/stream.h"

namespace drupe::cuda {

inline constexpr int kChannelThreads = 256;
inline constexpr int kRowsInFlight = 4;

// Who does what: a block owns chunk_rows of one sample's rows and `across` packs of channels.
struct ChannelTiling {
  std::int64_t samples, rows, C;
  int across;               // threads along the channels; the others lie along the rows
  std::int64_t columns;     // blocks along the channels
  std::int64_t chunk_rows;  // rows of a block
  std::int64_t chunks;      // of a sample
  int pack;                 // channels of a thread

  constexpr std::int64_t blocks() const { return samples * chunks * columns; }
  constexpr std::int64_t chunk_size(std::int64_t chunk) const {
    const std::int64_t left = rows - chunk * chunk_rows;
    return left < chunk_rows ? left : chunk_rows;
  }
};

// The same on every device, and so are the sums. least_rows: of a thread, where there are as many; sums want more of
// them than maps do, for the sake of what their blocks leave behind.
ChannelTiling choose_channel_tiling(std::int64_t samples, std::int64_t rows, std::int64_t C, int pack,
                                    std::int64_t least_rows);

// A tiling for these operands.
ChannelTiling sum_tiling(std::int64_t samples, std::int64_t rows, std::int64_t C, Dtype dtype, const void* x,
                         const void* dy);

// Per chunk and channel: the mean, and the sum of squares about it. partial is (samples, chunks, 2, C).
void channel_statistics(const ChannelTiling& tiling, Dtype dtype, const void* x, double* partial, Stream stream);

// Per chunk and channel: the sums of dy and dy (x - center), center being (samples, groups) in the accumulator's dtype.
void channel_gradient_sums(const ChannelTiling& tiling, Dtype dtype, const void* x, const void* dy, const void* center,
                           std::int64_t groups, double* partial, Stream stream);

// y = (x - center) scale + shift; the coefficients are (samples, 3, C) in the accumulator's dtype, center first.
void channel_affine(std::int64_t samples, std::int64_t rows, std::int64_t C, Dtype dtype, const void* x,
                    const void* coefficients, void* y, Stream stream);

// dx = dy scale + (x - center) slope + shift; the coefficients are (samples, 4, C): center, scale, slope, shift.
void channel_gradient(std::int64_t samples, std::int64_t rows, std::int64_t C, Dtype dtype, const void* x,
                      const void* dy, const void* coefficients, void* dx, Stream stream);

}  // namespace drupe::cuda
