// What ptx.cuh asks of the emulator: asynchronous copies and the tensor cores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace drupe::emu {

using Where = std::source_location;

void copy_async(void* to, const void* from, std::size_t bytes, std::size_t valid, Where where);
void commit_copies();
void wait_copies(int pending);

void load_matrices(std::uint32_t* registers, const void* row, int matrices, bool transposed, Where where);

enum class Operands : std::uint8_t { bf16, f16, tf32, s8 };
// d has 4 registers, a 4, b 2.
void multiply(Operands kind, void* d, const std::uint32_t* a, const std::uint32_t* b, Where where);
void multiply(double* d, double a, double b, Where where);

std::uint32_t round_tf32(float x);
float exp2_approx(float x);

}  // namespace drupe::emu
