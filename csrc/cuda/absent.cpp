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
void synchronize(Stream) {
  refuse();
}
void wait_for(Stream, Stream) {
  refuse();
}
OwnedStream::OwnedStream(int) {
  refuse();
}
OwnedStream::~OwnedStream() = default;
Event::~Event() = default;
void Event::record(Stream) {
  refuse();
}
void Event::hold(Stream) const {
  refuse();
}
void Event::synchronize() const {
  refuse();
}
bool Event::query() const {
  refuse();
}
float Event::elapsed_ms(const Event&) const {
  refuse();
}
struct Graph::State {};
Graph::Graph() {
  refuse();
}
Graph::~Graph() = default;
void Graph::begin(Stream) {
  refuse();
}
void Graph::end() {
  refuse();
}
void Graph::abort() noexcept {}
void Graph::replay(Stream, std::uint64_t, std::uint64_t) {
  refuse();
}
Tensor Graph::random_state() const {
  refuse();
}
bool is_capturing(Device) {
  return false;
}
DeferredCheck defer_check(Device, Raise) {
  refuse();
}
int device_of(const void*) {
  refuse();
}
std::shared_ptr<void> allocate(std::size_t, Device) {
  refuse();
}
DeviceMemoryStats memory_stats(int) {
  refuse();
}
std::shared_ptr<void> allocate_pinned(std::size_t, int) {
  refuse();
}
bool is_pinned(const std::shared_ptr<void>&) {
  return false;
}
void record_use(const std::shared_ptr<void>&, Stream) {
  refuse();
}
void copy_pinned(void*, const void*, std::size_t, const std::shared_ptr<void>&, int) {
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
