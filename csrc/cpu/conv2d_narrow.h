// Convolution where a group has few channels, grouped or a network's first. A matrix product would copy
// more than it multiplies. Here a task copies the rows of the image that it reads once, with their zero padding, and
// tiles of neighbouring pixels x whole registers of outputs stay in registers over all taps and channels.
//
// A section of that copy is what one register of outputs reads: a group's channels, of which each is broadcast; or
// where its lanes belong to several groups, all of these groups' channels in a register that is permuted for each
// channel of a group, or, if they do not fit, a register for each channel, whose lanes are each its own group's.
#pragma once

#include "cpu/conv2d_gather.h"
#include "cpu/gemm_epilogue.h"
#include "cpu/simd_permute.h"

namespace drupe::cpu {

enum class Section : std::uint8_t { broadcast, permuted, spread };

// How a tile reads a section: elements from a pixel to the next, and from the last depth of a tap to the first of the
// next tap, in the same row or the next one.
struct NarrowWindow {
  std::int64_t taps_h, taps_w, depth;
  std::int64_t pixel, next_tap, next_row;
};

// tile[p][.] = the sum over taps and depth of x at pixel p times the weight, kVectors registers for each of them.
// `order` permutes a register for each depth.
template <Isa I, class T, class P, int kPixels, int kVectors, Section kSection>
[[gnu::noinline]] void narrow_tile(const NarrowWindow& window, const T* x, const std::int32_t* order, const T* weight,
                                   T* tile, std::int64_t tile_row) {
  using V = Vec<T, I>;
  V sum[kPixels][kVectors];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[p][j] = V::zero();
  }
  constexpr int kStep = kSection == Section::broadcast ? 1 : kSection == Section::permuted ? 0 : V::kLanes;
  LeftColumn<T, kPixels, true> column(x, window.pixel);
  for (std::int64_t h = window.taps_h; h > 0; --h) {
    for (std::int64_t w = window.taps_w; w > 0; --w) {
      const std::int64_t next = w > 1 ? window.next_tap : window.next_row;
      for (std::int64_t c = window.depth; c > 0; --c) {
        V factor[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) factor[j] = V::load(weight + j * V::kLanes);
#pragma GCC unroll 16
        for (int p = 0; p < kPixels; ++p) {
          V left;
          if constexpr (kSection == Section::broadcast) left = V::set(*column.at(p));
          if constexpr (kSection == Section::permuted) left = permute(V::load(column.at(p)), order);
          if constexpr (kSection == Section::spread) left = V::load(column.at(p));
#pragma GCC unroll 4
          for (int j = 0; j < kVectors; ++j) sum[p][j] = P::add(left, factor[j], sum[p][j]);
        }
        column.advance(c > 1 ? kStep : next);
        if constexpr (kSection == Section::permuted) order += V::kLanes;
        weight += kVectors * V::kLanes;
      }
      if constexpr (kSection == Section::permuted) order -= window.depth * V::kLanes;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sum[p][j].store(tile + p * tile_row + j * V::kLanes);
  }
}

// What one of a gradient's sums reads beside dy: where it lies from a pixel's first tap on, and how it is permuted.
struct NarrowTerm {
  std::int64_t at;
  const std::int32_t* order;
};

// The pixels that a gradient's sums run over: elements of x and dy from one to the next, and from row to row.
struct NarrowPixels {
  std::int64_t rows, cols;
  std::int64_t x_row, x_pixel, dy_row, dy_pixel;
};

// sums[t][.] += the sum over pixels of x at term t times dy, of which a register has `lanes`.
template <Isa I, class S, int kTerms, Section kSection>
[[gnu::noinline]] void narrow_sums(const NarrowPixels& pixels, const Accumulator<S>* x, const NarrowTerm* terms,
                                   const S* dy, int lanes, Accumulator<S>* sums, std::int64_t sums_row) {
  using V = Vec<Accumulator<S>, I>;
  V sum[kTerms];
#pragma GCC unroll 16
  for (int t = 0; t < kTerms; ++t) sum[t] = V::zero();
  for (std::int64_t i = 0; i < pixels.rows; ++i) {
    const Accumulator<S>* at = x + i * pixels.x_row;
    const S* gradient = dy + i * pixels.dy_row;
    for (std::int64_t j = 0; j < pixels.cols; ++j, at += pixels.x_pixel, gradient += pixels.dy_pixel) {
      const V right = lanes == V::kLanes ? V::load(gradient) : V::load(gradient, lanes);
#pragma GCC unroll 16
      for (int t = 0; t < kTerms; ++t) {
        V left;
        if constexpr (kSection == Section::broadcast) left = V::set(at[terms[t].at]);
        if constexpr (kSection == Section::permuted) left = permute(V::load(at + terms[t].at), terms[t].order);
        if constexpr (kSection == Section::spread) left = V::load(at + terms[t].at);
        sum[t] = fma(left, right, sum[t]);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTerms; ++t) (V::load(sums + t * sums_row) + sum[t]).store(sums + t * sums_row);
}

template <Isa I, class S, Section kSection, int kTerms, class... Args>
void narrow_sums_of(std::int64_t terms, const Args&... args) {
  if (terms == kTerms) {
    narrow_sums<I, S, kTerms, kSection>(args...);
  } else if constexpr (kTerms > 1) {
    narrow_sums_of<I, S, kSection, kTerms - 1>(terms, args...);
  }
}

template <Isa I, class S, class P>
class NarrowConvolution {
 public:
  using T = Accumulator<S>;
  using V = Vec<T, I>;
  using Tile = GemmTile<I, T>;

  // Whether this is the way for so many groups, their channels and outputs: for few channels, where the lines of the
  // image that a row of the result spans are few enough to be copied whole.
  static bool takes(const GatherAxis& h, const GatherAxis& w, std::int64_t groups, std::int64_t channels,
                    std::int64_t outputs) {
    constexpr std::int64_t kFewChannels = 4, kMostChannels = 64, kMostStep = 8, kMostSpan = 1 << 13;
    if (channels == 0 || outputs == 0) return false;
    for (const GatherAxis& axis : {h, w}) {
      if (axis.step > kMostStep || axis.spread * axis.taps > kMostSpan || axis.rows > kMostSpan) return false;
    }
    if (span(h, 1) * span(w, w.rows) > kMostSpan) return false;
    if (groups == 1) return channels <= kFewChannels && outputs >= V::kLanes;
    return outputs <= Tile::kCols && channels <= kMostChannels;
  }

  // `filters` is the weight of the first group; that of the next lies group_stride elements behind it.
  NarrowConvolution(const Gather<I, S>& gather, const Filters<I, S>& filters, std::int64_t group_stride,
                    std::int64_t images, std::int64_t groups, std::int64_t outputs)
      : gather_(gather),
        filters_(filters),
        group_stride_(group_stride),
        images_(images),
        groups_(groups),
        outputs_(outputs),
        depth_(kInPairs ? ceil_div(gather.channels, 2) : gather.channels),
        section_(section_for(gather.channels, outputs)),
        by_register_(section_ != Section::broadcast ||
                     (outputs < Tile::kCols && outputs % V::kLanes == 0 && Tile::kCols % outputs == 0)),
        columns_(by_register_ ? groups * outputs : outputs),
        blocks_(ceil_div(columns_, Tile::kCols)),
        units_(by_register_ ? blocks_ : groups),
        unit_sections_(!by_register_                    ? 1
                       : section_ == Section::broadcast ? Tile::kCols / outputs
                                                        : std::int64_t{Tile::kVectors}),
        width_(span(gather.w, gather.w.rows)),
        pixel_((section_ == Section::permuted ? 1 : depth_) * (section_ == Section::broadcast ? 1 : V::kLanes)) {}

  // write(row0, col0, rows, cols, tile, tile_row) takes finished rows (n, i, j) of all groups' outputs, some of them
  // twice, with the same values.
  template <class Write>
  void run(const Write& write) const {
    const GatherAxis& h = gather_.h;
    const std::int64_t weight_size = this->weight_size();
    const Scratch<T> weight(static_cast<std::size_t>(std::max<std::int64_t>(1, weight_blocks() * weight_size)));
    parallel_for(weight_blocks(), [&](std::int64_t block) { pack_weight(block, weight.data() + block * weight_size); });
    const auto [units, band] = cut();
    const std::int64_t unit_tasks = ceil_div(units_, units), bands = ceil_div(h.rows, band);
    parallel_for(images_ * bands * unit_tasks, [&](std::int64_t task) {
      const auto [unit, last_unit] = share_of(units_, 1, task % unit_tasks, unit_tasks);
      const auto [row, last_row] = share_of(h.rows, 1, task / unit_tasks % bands, bands);
      const std::int64_t image = task / unit_tasks / bands;
      const std::int64_t section = unit * unit_sections_;
      const std::int64_t sections = std::min(last_unit * unit_sections_, all_sections()) - section;
      const std::int64_t lines = span(h, last_row - row);
      const Scratch<T> x(static_cast<std::size_t>(sections * lines * width_ * pixel_));
      const Reads reads(*this, section, sections);
      copy_image(image, row * h.step + h.base, lines, section, sections, reads, x.data());
      for (std::int64_t u = unit; u < last_unit; ++u) {
        for (std::int64_t block = 0; block < (by_register_ ? 1 : blocks_); ++block) {
          multiply(u, block, unit, x.data(), lines, reads, weight.data(), image, row, last_row, write);
        }
      }
      stream_fence<I>();
    });
  }

  // The gradient of the weight, which lies as the filters do: the sum over the pixels of dy, rows of all groups'
  // outputs. Stretches of the rows are added up in order; how many there are depends on the sizes alone.
  void gradient(const S* dy, S* dw) const {
    static_assert(!kInPairs, "pairs lie along channels, sums run along pixels");
    constexpr std::int64_t kBand = 8, kTasks = 16, kMostPartials = std::int64_t{1} << 18;  // rows, tasks, elements
    const GatherAxis& h = gather_.h;
    const std::int64_t weight_cols = this->weight_cols(), weight_size = this->weight_size();
    const std::int64_t size = weight_blocks() * weight_size;
    const std::int64_t bands = ceil_div(h.rows, kBand), items = images_ * bands;
    const std::int64_t stretches = std::clamp<std::int64_t>(kMostPartials / size, 1, std::min(kTasks, items));
    const std::int64_t unit_tasks = std::min(units_, ceil_div(kTasks, stretches));
    const Scratch<T> partials(static_cast<std::size_t>(stretches * size));
    parallel_for(stretches * unit_tasks, [&](std::int64_t task) {
      const auto [unit, last_unit] = share_of(units_, 1, task % unit_tasks, unit_tasks);
      const auto [item, last_item] = share_of(items, 1, task / unit_tasks, stretches);
      const std::int64_t section = unit * unit_sections_;
      const std::int64_t sections = std::min(last_unit * unit_sections_, all_sections()) - section;
      const std::int64_t unit_blocks = by_register_ ? Tile::kVectors : blocks_;
      const std::int64_t block = unit * unit_blocks, last_block = std::min(weight_blocks(), last_unit * unit_blocks);
      T* sums = partials.data() + task / unit_tasks * size;
      zero_run(sums + block * weight_size, (last_block - block) * weight_size);
      const Scratch<T> x(static_cast<std::size_t>(sections * span(h, std::min(kBand, h.rows)) * width_ * pixel_));
      const Reads reads(*this, section, sections);
      for (std::int64_t i = item; i < last_item; ++i) {
        const std::int64_t image = i / bands, row = i % bands * kBand;
        const std::int64_t rows = std::min(kBand, h.rows - row);
        copy_image(image, row * h.step + h.base, span(h, rows), section, sections, reads, x.data());
        const S* gradient = dy + (image * h.rows + row) * gather_.w.rows * groups_ * outputs_;
        for (std::int64_t u = unit; u < last_unit; ++u) {
          for_registers(u, unit, [&](const Register& r) {
            add_pixels(r, x.data(), reads, rows, gradient, sums + r.weight_block * weight_size + r.col, weight_cols);
          });
        }
      }
    });
    parallel_for(weight_blocks(), [&](std::int64_t block) {
      T* sums = partials.data() + block * weight_size;
      for (std::int64_t stretch = 1; stretch < stretches; ++stretch) {
        for (std::int64_t i = 0; i < weight_size; i += V::kLanes) {
          (V::load(sums + i) + V::load(sums + stretch * size + i)).store(sums + i);
        }
      }
      for_weights(block, [&](std::int64_t filter, std::int64_t c, std::int64_t i) {
        if (filter >= 0) dw[filter + c * filters_.channel_stride] = static_cast<S>(sums[i]);
      });
    });
  }

 private:
  static constexpr bool kInPairs = kMultipliesPairs<P>;

  // What some sections whose lanes belong to several groups read of a pixel: of each section where its first group
  // begins and how many elements of T there are in that and the next groups; of each lane its group, counted from that
  // one, or if permuted its element at each depth.
  struct Reads {
    Reads(const NarrowConvolution& of, std::int64_t section, std::int64_t sections)
        : depth(of.section_ == Section::permuted ? of.depth_ : 1),
          count(of.section_ == Section::broadcast ? 0 : sections),
          first(static_cast<std::size_t>(count)),
          left(static_cast<std::size_t>(count)),
          lanes(static_cast<std::size_t>(count * depth * V::kLanes)) {
      for (std::int64_t s = 0; s < count; ++s) {
        const std::int64_t output = (section + s) * V::kLanes, first_group = output / of.outputs_;
        first.data()[s] = first_group * of.gather_.channels;
        left.data()[s] = (of.groups_ - first_group) * of.depth_;
        for (std::int64_t lane = 0; lane < V::kLanes; ++lane) {
          const std::int64_t own = std::min(output + lane, of.columns_ - 1) / of.outputs_ - first_group;
          for (std::int64_t c = 0; c < depth; ++c) {
            lanes.data()[(s * depth + c) * V::kLanes + lane] = static_cast<std::int32_t>(own * depth + c);
          }
        }
      }
    }
    const std::int32_t* of_lanes(std::int64_t section, std::int64_t c = 0) const {
      return lanes.data() + (section * depth + c) * V::kLanes;
    }
    std::int64_t depth, count;
    Scratch<std::int64_t> first, left;
    Scratch<std::int32_t> lanes;
  };

  // Of the packed weight: blocks of all taps and depths times a register's or a tile's outputs.
  std::int64_t weight_cols() const { return by_register_ ? V::kLanes : Tile::kCols; }
  std::int64_t weight_blocks() const { return by_register_ ? ceil_div(columns_, V::kLanes) : groups_ * blocks_; }
  std::int64_t weight_size() const { return gather_.h.taps * gather_.w.taps * depth_ * weight_cols(); }

  // A register of a unit's outputs: its section of those from the first unit's on, its column in a block of the packed
  // weight, and its first output of all groups', of which there are so many.
  struct Register {
    std::int64_t section, weight_block, col, output, lanes;
  };
  template <class F>
  DRUPE_INLINE void for_registers(std::int64_t unit, std::int64_t first_unit, const F& f) const {
    const std::int64_t first_section = (unit - first_unit) * unit_sections_;
    for (std::int64_t v = 0; v < (by_register_ ? std::int64_t{Tile::kVectors} : blocks_ * Tile::kVectors); ++v) {
      const std::int64_t output = (by_register_ ? unit * Tile::kCols : 0) + v * V::kLanes;
      if (output >= columns_) return;
      const std::int64_t lanes = std::min<std::int64_t>(V::kLanes, columns_ - output);
      if (by_register_) {
        const std::int64_t section =
            section_ == Section::broadcast ? output / outputs_ - unit * Tile::kCols / outputs_ : v;
        f(Register{first_section + section, unit * Tile::kVectors + v, 0, output, lanes});
      } else {
        f(Register{first_section, unit * blocks_ + v / Tile::kVectors, v % Tile::kVectors * V::kLanes,
                   unit * outputs_ + output, lanes});
      }
    }
  }

  // Adds what `rows` rows of pixels give to the sums [tap][depth] of one register.
  void add_pixels(const Register& r, const T* x, const Reads& reads, std::int64_t rows, const S* dy, T* sums,
                  std::int64_t sums_row) const {
    constexpr std::int64_t kMost = 8;  // sums: enough for the latency of an addition
    const GatherAxis &h = gather_.h, &w = gather_.w;
    const std::int64_t pitch = groups_ * outputs_, lines = span(h, rows);
    const NarrowPixels pixels{.rows = rows,
                              .cols = w.rows,
                              .x_row = h.step * width_ * pixel_,
                              .x_pixel = w.step * pixel_,
                              .dy_row = w.rows * pitch,
                              .dy_pixel = pitch};
    const std::int64_t count = h.taps * w.taps * depth_, parts = ceil_div(count, kMost);
    const std::int64_t step = section_ == Section::permuted ? 0 : pixel_ / depth_;
    for (std::int64_t part = 0; part < parts; ++part) {
      const auto [first, last] = share_of(count, 1, part, parts);
      NarrowTerm terms[kMost];
      for (std::int64_t t = first; t < last; ++t) {
        const std::int64_t c = t % depth_, tap = t / depth_;
        const std::int64_t pixel = tap / w.taps * h.spread * width_ + tap % w.taps * w.spread;
        terms[t - first] = {pixel * pixel_ + c * step, reads.of_lanes(r.section, c)};
      }
      with_section([&]<Section kSection>() {
        narrow_sums_of<I, S, kSection, kMost>(last - first, pixels, x + r.section * lines * width_ * pixel_,
                                              static_cast<const NarrowTerm*>(terms), dy + r.output,
                                              static_cast<int>(r.lanes), sums + first * sums_row, sums_row);
      });
    }
  }

  // Permuted where the groups of any register fit into one; pairs are whole where lanes belong to several groups.
  static Section section_for(std::int64_t channels, std::int64_t outputs) {
    constexpr std::int64_t kLanes = V::kLanes;
    if (outputs >= kLanes) return Section::broadcast;
    const std::int64_t groups = kLanes % outputs == 0 ? kLanes / outputs : ceil_div(kLanes - 1, outputs) + 1;
    const bool fits = groups * channels <= kLanes * (kInPairs ? 2 : 1);
    return kHasPermute<I, T> && fits ? Section::permuted : Section::spread;
  }

  std::int64_t all_sections() const { return section_ == Section::broadcast ? groups_ : ceil_div(columns_, V::kLanes); }
  // Positions of the image from the first to the last that so many rows of the result read.
  static std::int64_t span(const GatherAxis& axis, std::int64_t rows) {
    return (rows - 1) * axis.step + std::max<std::int64_t>(0, axis.taps - 1) * axis.spread + 1;
  }

  // Units and rows of a task: what is copied stays in L2, in pieces of a pixel that are worth a request to memory.
  std::pair<std::int64_t, std::int64_t> cut() const {
    constexpr std::int64_t kLeastTasks = 16, kPieceBytes = 2048, kLeastBand = 4;
    const GatherAxis& h = gather_.h;
    const std::int64_t rows = h.rows;
    const std::int64_t budget = caches().l2 / 4 / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t line = unit_sections_ * width_ * pixel_;
    const std::int64_t piece = gather_.channels * groups_ * static_cast<std::int64_t>(sizeof(S)) / units_;
    const std::int64_t least = std::min(units_, ceil_div(kPieceBytes, std::max<std::int64_t>(1, piece)));
    std::int64_t units = least, band = rows;
    while (band > 1 && least * line * span(h, band) > budget) band = (band + 1) / 2;
    if (band == rows) units = std::clamp(budget / (line * span(h, rows)), least, units_);
    while (images_ * ceil_div(rows, band) * ceil_div(units_, units) < kLeastTasks) {
      if (units > least) {
        units = std::max(least, units / 2);
      } else if (band > kLeastBand) {
        band = (band + 1) / 2;
      } else {
        break;
      }
    }
    return {units, band};
  }

  // Element `unit` of a group's pixel or filter, whose channels lie `stride` apart.
  DRUPE_INLINE T element(const S* from, std::int64_t unit, std::int64_t stride) const {
    if constexpr (kInPairs) {
      const bool both = gather_.channels % 2 == 0 || 2 * unit + 1 < gather_.channels;
      return bf16_pair(from[2 * unit * stride], both ? from[(2 * unit + 1) * stride] : S{});
    } else {
      return static_cast<T>(from[unit * stride]);
    }
  }

  // f(offset of the filter's tap or -1 beyond the outputs, depth, where it lies in the block) for a packed block.
  template <class F>
  DRUPE_INLINE void for_weights(std::int64_t block, const F& f) const {
    const std::int64_t columns = weight_cols();
    for (std::int64_t j = 0; j < columns; ++j) {
      const std::int64_t output = by_register_ ? block * columns + j : block % blocks_ * columns + j;
      const std::int64_t group = by_register_ ? output / outputs_ : block / blocks_;
      const std::int64_t filter = group * group_stride_ + output % outputs_ * filters_.column_stride;
      std::int64_t place = j;
      for (std::int64_t h = 0; h < filters_.h.taps; ++h) {
        for (std::int64_t w = 0; w < filters_.w.taps; ++w) {
          const std::int64_t tap = output < columns_ ? filter + filters_.offset(h, w) : -1;
          for (std::int64_t c = 0; c < depth_; ++c, place += columns) f(tap, c, place);
        }
      }
    }
  }

  void pack_weight(std::int64_t block, T* to) const {
    for_weights(block, [&](std::int64_t filter, std::int64_t c, std::int64_t i) {
      to[i] = filter < 0 ? T(0) : element(filters_.data + filter, c, filters_.channel_stride);
    });
  }

  // Sections of `lines` lines of the image from position at_h on, each lines x width_ x pixel_.
  void copy_image(std::int64_t image, std::int64_t at_h, std::int64_t lines, std::int64_t section,
                  std::int64_t sections, const Reads& reads, T* x) const {
    const GatherAxis &h = gather_.h, &w = gather_.w;
    const std::int64_t left = std::clamp(-w.base, std::int64_t{0}, width_);
    const std::int64_t right = std::clamp(w.source - w.base, left, width_);
    const std::int64_t section_size = lines * width_ * pixel_;
    for (std::int64_t i = 0; i < lines; ++i) {
      T* line = x + i * width_ * pixel_;
      const bool inside = at_h + i >= 0 && at_h + i < h.source;
      const std::int64_t first = inside ? left : width_, last = inside ? right : width_;
      for (std::int64_t s = 0; s < sections; ++s) {
        T* to = line + s * section_size;
        zero_run(to, first * pixel_);
        zero_run(to + last * pixel_, (width_ - last) * pixel_);
      }
      if (first >= last) continue;
      const S* from = gather_.source + ((image * h.source + at_h + i) * w.source + w.base + first) * gather_.pitch;
      T* to = line + first * pixel_;
      if (section_ != Section::broadcast) {
        for (std::int64_t j = first; j < last; ++j, from += gather_.pitch, to += pixel_) {
          for (std::int64_t s = 0; s < sections; ++s) {
            const S* pixel = from + reads.first.data()[s];
            if (section_ == Section::permuted) {
              copy_register(pixel, reads.left.data()[s], to + s * section_size);
            } else {
              spread(pixel, reads.of_lanes(s), to + s * section_size);
            }
          }
        }
      } else if (groups_ == 1 && (!kInPairs || gather_.channels % 2 == 0)) {
        copy_elements(from, (last - first) * depth_, to);
      } else {
        for (std::int64_t j = first; j < last; ++j, from += gather_.pitch, to += pixel_) {
          for (std::int64_t s = 0; s < sections; ++s) {
            copy_elements(from + (section + s) * gather_.channels, depth_, to + s * section_size);
          }
        }
      }
    }
  }

  // `count` elements of T of a group's pixel, or of pixels that follow one another in whole pairs.
  DRUPE_INLINE void copy_elements(const S* from, std::int64_t count, T* to) const {
    constexpr std::int64_t kFew = 8;
    if (count <= kFew) {
      for (std::int64_t c = 0; c < count; ++c) to[c] = element(from, c, 1);
    } else if constexpr (kInPairs) {
      const std::int64_t whole = gather_.channels % 2 == 0 ? count : count - 1;
      std::memcpy(to, from, static_cast<std::size_t>(whole) * sizeof(T));
      if (whole < count) to[whole] = bf16_pair(from[2 * whole], {});
    } else {
      copy_run<I>(to, from, count);
    }
  }

  // A section's pixel: the elements of its groups, of which there are so many.
  DRUPE_INLINE static void copy_register(const S* from, std::int64_t left, T* to) {
    const int count = static_cast<int>(left);
    V x;
    if constexpr (kInPairs) {
      const auto* pairs = reinterpret_cast<const float*>(from);
      x = left >= V::kLanes ? V::load(pairs) : V::load(pairs, count);
    } else {
      x = left >= V::kLanes ? V::load(from) : V::load(from, count);
    }
    x.store(to);
  }

  // A section's pixel: to[depth][lane] = the element of the lane's group.
  void spread(const S* from, const std::int32_t* group, T* to) const {
    for (std::int64_t c = 0; c < depth_; ++c) {
      for (int lane = 0; lane < V::kLanes; ++lane) {
        to[c * V::kLanes + lane] = element(from + group[lane] * gather_.channels, c, 1);
      }
    }
  }

  // The results' rows [row, last_row) of one block of a unit's columns, from a copy of `lines` lines of the sections
  // from first_unit's on.
  template <class Write>
  void multiply(std::int64_t unit, std::int64_t block, std::int64_t first_unit, const T* x, std::int64_t lines,
                const Reads& reads, const T* weight, std::int64_t image, std::int64_t row, std::int64_t last_row,
                const Write& write) const {
    const GatherAxis &h = gather_.h, &w = gather_.w;
    const std::int64_t passed =
        section_ == Section::permuted ? 0 : pixel_ - pixel_ / depth_;  // of a pixel, by its depths
    const NarrowWindow window{.taps_h = h.taps,
                              .taps_w = w.taps,
                              .depth = depth_,
                              .pixel = w.step * pixel_,
                              .next_tap = w.spread * pixel_ - passed,
                              .next_row = (h.spread * width_ - (w.taps - 1) * w.spread) * pixel_ - passed};
    const std::int64_t col = (by_register_ ? unit : block) * Tile::kCols;
    const std::int64_t cols = std::min<std::int64_t>(Tile::kCols, columns_ - col);
    const std::int64_t first_output = by_register_ ? col : unit * outputs_ + col;
    const std::int64_t section_size = lines * width_ * pixel_, weight_size = this->weight_size();
    alignas(64) T tile[Tile::kRows * Tile::kCols];
    const auto column_of_tiles = [&]<int kPixels>(std::int64_t j) {
      for (std::int64_t i = row; i < last_row; ++i) {
        const T* at = x + ((i - row) * h.step * width_ + j * w.step) * pixel_;
        if (by_register_) {
          for_registers(unit, first_unit, [&](const Register& r) {
            with_section([&]<Section kSection>() {
              narrow_tile<I, T, P, kPixels, 1, kSection>(
                  window, at + r.section * section_size, reads.of_lanes(r.section),
                  weight + r.weight_block * weight_size, tile + r.output - first_output, Tile::kCols);
            });
          });
        } else {
          narrow_tile<I, T, P, kPixels, Tile::kVectors, Section::broadcast>(
              window, at + (unit - first_unit) * section_size, nullptr, weight + (unit * blocks_ + block) * weight_size,
              tile, Tile::kCols);
        }
        write((image * h.rows + i) * w.rows + j, first_output, kPixels, cols, tile, Tile::kCols);
      }
    };
    // The last tile of a row is of the size that leaves least to be done twice.
    constexpr int kMost = Tile::kRows, kHalf = Tile::kRows / 2;
    for (std::int64_t j = 0; j < w.rows;) {
      const std::int64_t left = w.rows - j;
      if (left > kHalf && w.rows >= kMost) {
        column_of_tiles.template operator()<kMost>(std::min(j, w.rows - kMost));
        j += kMost;
      } else if (left > 1 && w.rows >= kHalf) {
        column_of_tiles.template operator()<kHalf>(std::min(j, w.rows - kHalf));
        j += kHalf;
      } else {
        column_of_tiles.template operator()<1>(j);
        ++j;
      }
    }
  }

  // Calls f.operator()<section_>().
  template <class F>
  DRUPE_INLINE void with_section(const F& f) const {
    if constexpr (V::kLanes > 1) {
      if (section_ == Section::spread) return f.template operator()<Section::spread>();
    }
    if constexpr (kHasPermute<I, T>) {
      if (section_ == Section::permuted) return f.template operator()<Section::permuted>();
    }
    f.template operator()<Section::broadcast>();
  }

  Gather<I, S> gather_;
  Filters<I, S> filters_;
  std::int64_t group_stride_, images_, groups_, outputs_;
  std::int64_t depth_;  // elements of T of a group's pixel
  Section section_;
  bool by_register_;               // whether a tile's registers belong to different groups
  std::int64_t columns_, blocks_;  // of a tile's width; of all groups' outputs by_register_, else of one's
  std::int64_t units_;             // of work: such a block, or a group
  std::int64_t unit_sections_;
  std::int64_t width_, pixel_;  // pixels of a line with its padding, elements of a pixel in a section
};

}  // namespace drupe::cpu
