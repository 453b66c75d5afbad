#include "cuda/emu/matrix.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "cuda/emu/grid.h"

namespace drupe::emu {
namespace {

constexpr int kMaxDepth = 32;

// A fragment of one lane and where its results go.
struct Fragment {
  void* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// Element `column` of a register that packs several along k.
float element(Operands kind, std::uint32_t word, int column) {
  if (kind == Operands::tf32) return std::bit_cast<float>(word & ~0x1fffu);
  if (kind == Operands::s8) return static_cast<float>(static_cast<std::int8_t>(word >> (8 * column)));
  const auto half = static_cast<std::uint16_t>(word >> (16 * column));
  return kind == Operands::bf16 ? static_cast<float>(std::bit_cast<BFloat16>(half)) : std::bit_cast<Float16>(half);
}

template <class T>
void multiply_warp(Operands kind, void* const* operands) {
  const int packed = kind == Operands::tf32 ? 1 : kind == Operands::s8 ? 4 : 2;  // elements a register
  const int depth = 8 * packed;
  float a[16][kMaxDepth], b[kMaxDepth][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& fragment = *static_cast<const Fragment*>(operands[lane]);
    const int g = lane >> 2, t = lane & 3;
    for (int r = 0; r < 4; ++r) {
      for (int j = 0; j < packed; ++j) {
        a[g + 8 * (r & 1)][packed * t + j + depth / 2 * (r >> 1)] = element(kind, fragment.a[r], j);
      }
    }
    for (int r = 0; r < 2; ++r) {
      for (int j = 0; j < packed; ++j) b[packed * t + j + depth / 2 * r][g] = element(kind, fragment.b[r], j);
    }
  }
  T product[16][8] = {};
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < depth; ++k) {
      for (int j = 0; j < 8; ++j) product[i][j] += static_cast<T>(a[i][k]) * static_cast<T>(b[k][j]);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto* d = static_cast<T*>(static_cast<const Fragment*>(operands[lane])->d);
    const int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 4; ++i) d[i] += product[g + 8 * (i >> 1)][2 * t + (i & 1)];
  }
}

}  // namespace

namespace {

// Tensor instructions take a whole warp.
Thread& whole_warp(const char* name, Where where) {
  Thread& thread = self(name);
  if (thread.warp->alive != kFullMask) fault(std::string(name) + " in a warp that lacks lanes", where);
  return thread;
}

}  // namespace

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t valid, Where where) {
  const Inside inside("cp.async");
  Thread& thread = inside.thread;
  if (reinterpret_cast<std::uintptr_t>(to) % bytes || (valid && reinterpret_cast<std::uintptr_t>(from) % bytes)) {
    fault("cp.async of " + std::to_string(bytes) + " bytes at a misaligned address", where);
  }
  PendingCopy copy{.to = static_cast<std::byte*>(to),
                   .from = static_cast<const std::byte*>(from),
                   .bytes = bytes,
                   .size = valid,
                   .landed = false};
  begin_copy(thread, copy, where);
  if (thread.block->cluster->random() % 4 == 0) {  // in a hurry: what reads too late sees it already
    std::memcpy(copy.to, copy.from, copy.size);
    std::memset(copy.to + copy.size, 0, copy.bytes - copy.size);
    copy.landed = true;
  }
  if (thread.copy_groups.empty()) thread.copy_groups.emplace_back();
  thread.copy_groups.back().push_back(copy);
}

void commit_copies() {
  const Inside inside("cp.async.commit_group");
  Thread& thread = inside.thread;
  if (thread.copy_groups.empty()) thread.copy_groups.emplace_back();
  thread.copy_groups.emplace_back();
}

void wait_copies(int pending) {
  const Inside inside("cp.async.wait_group");
  Thread& thread = inside.thread;
  while (static_cast<int>(thread.copy_groups.size()) - 1 > pending) {
    for (PendingCopy& copy : thread.copy_groups.front()) end_copy(thread, copy);
    thread.copy_groups.erase(thread.copy_groups.begin());
  }
}

void load_matrices(std::uint32_t* registers, const void* row, int matrices, bool transposed, Where where) {
  struct Operand {
    const std::byte* row;
    std::uint32_t* registers;
  } operand{static_cast<const std::byte*>(row), registers};
  const Inside inside("ldmatrix");
  Thread& thread = whole_warp("ldmatrix", where);
  if (thread.lane < 8 * matrices) {
    if (!is_shared(thread, row)) fault("ldmatrix of what is not shared memory", where);
    if (reinterpret_cast<std::uintptr_t>(row) % 16) fault("ldmatrix of a row at a misaligned address", where);
    check_access(thread, row, 16, Access::read, where);
  }
  warp_collective(
      "ldmatrix", kFullMask, &operand,
      [matrices, transposed, where](void* const* operands, unsigned lanes) {
        if (lanes != kFullMask) fault("ldmatrix in a warp that lacks lanes", where);
        for (int m = 0; m < matrices; ++m) {
          std::uint16_t matrix[8][8];
          for (int i = 0; i < 8; ++i) std::memcpy(matrix[i], static_cast<Operand*>(operands[8 * m + i])->row, 16);
          for (int lane = 0; lane < kWarpSize; ++lane) {
            const int g = lane >> 2, t = lane & 3;
            const std::uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            const std::uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            static_cast<Operand*>(operands[lane])->registers[m] = low | high << 16;
          }
        }
      },
      false, where);
}

void multiply(Operands kind, void* d, const std::uint32_t* a, const std::uint32_t* b, Where where) {
  const Inside inside("mma");
  whole_warp("mma", where);
  Fragment fragment{d, a, b};
  warp_collective(
      "mma", kFullMask, &fragment,
      [kind, where](void* const* operands, unsigned lanes) {
        if (lanes != kFullMask) fault("mma in a warp that lacks lanes", where);
        if (kind == Operands::s8) {
          multiply_warp<std::int32_t>(kind, operands);
        } else {
          multiply_warp<float>(kind, operands);
        }
      },
      false, where);
}

void multiply(double* d, double a, double b, Where where) {
  struct Operand {
    double* d;
    double a, b;
  } operand{d, a, b};
  const Inside inside("mma");
  whole_warp("mma", where);
  warp_collective(
      "mma", kFullMask, &operand,
      [where](void* const* operands, unsigned lanes) {
        if (lanes != kFullMask) fault("mma in a warp that lacks lanes", where);
        const auto at = [&](int lane) { return static_cast<Operand*>(operands[lane]); };
        for (int lane = 0; lane < kWarpSize; ++lane) {
          const int g = lane >> 2, t = lane & 3;
          for (int j = 0; j < 2; ++j) {
            double sum = 0;
            for (int k = 0; k < 4; ++k) sum += at(4 * g + k)->a * at(4 * (2 * t + j) + k)->b;
            at(lane)->d[j] += sum;
          }
        }
      },
      false, where);
}

std::uint32_t round_tf32(float x) {
  constexpr std::uint32_t kHalf = 0x1000, kLow = 0x1fff;
  // What lies in the low bits is not defined: something that would show.
  if (std::isnan(x)) return 0x7fffffff;
  return (std::bit_cast<std::uint32_t>(x) + kHalf) | kLow;
}

float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace drupe::emu
