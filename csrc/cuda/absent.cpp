// The CUDA backend of a build without one.
#include <stdexcept>

#include "core/cuda.h"

namespace drupe::cuda {
namespace {

[[noreturn]] void refuse() {
  throw std::runtime_error("[cuda] this build has no CUDA backend: " DRUPE_CUDA_REASON);
}

}  // namespace

Status status() {
  return {.available = false, .reason = DRUPE_CUDA_REASON, .devices = 0};
}
void check_available(Device) {
  refuse();
}
int multiprocessors(int) {
  refuse();
}
Stream current_stream(int) {
  refuse();
}
void set_current_stream(Stream) {
  refuse();
}
void synchronize(int) {
  refuse();
}
std::shared_ptr<void> allocate(std::size_t, Device) {
  refuse();
}
MemoryStats memory_stats(int) {
  refuse();
}
void empty_cache() {}
void copy_bytes(void*, Device, const void*, Device, std::size_t) {
  refuse();
}
void zero_bytes(void*, std::size_t, Device) {
  refuse();
}

}  // namespace drupe::cuda
