// What the runtime asks of a device's streams, events and graphs. Emulated: see cuda/emu/stream.h.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "cuda/emu/stream.h"

namespace drupe::cuda::driver {

// Does not wait for the default stream, nor the other way round.
inline Stream create_stream(int device) {
  return {.handle = emu::create_stream(), .device = device};
}

using EventHandle = void*;

inline EventHandle create_event(int, bool timed) {
  return emu::create_event(timed);
}
inline void destroy_event(EventHandle event) {
  emu::destroy_event(event);
}
inline void record_event(EventHandle event, Stream stream) {
  emu::record_event(event, stream.handle);
}
inline void wait_event(Stream stream, EventHandle event) {
  emu::wait_event(stream.handle, event);
}
inline void synchronize_event(EventHandle event) {
  emu::synchronize_event(event);
}
inline bool query_event(EventHandle event) {
  return emu::query_event(event);
}
inline float elapsed_ms(EventHandle start, EventHandle end) {
  return emu::elapsed_ms(start, end);
}

using GraphHandle = void*;

// The calling thread captures what goes to the stream.
inline void begin_capture(Stream stream) {
  emu::begin_capture(stream.handle);
}
// What was captured, ready to be launched.
inline GraphHandle end_capture(Stream stream) {
  return emu::end_capture(stream.handle);
}
inline void abort_capture(Stream stream) noexcept {
  emu::abort_capture(stream.handle);
}
// A number of the capture that the stream takes part in; 0 where it takes part in none.
inline std::uint64_t capture_id(Stream stream) {
  return emu::capture_id(stream.handle);
}
inline void launch_graph(GraphHandle graph, Stream stream) {
  emu::replay(*static_cast<const emu::Graph*>(graph), stream.handle);
}
inline void destroy_graph(GraphHandle graph) noexcept {
  delete static_cast<emu::Graph*>(graph);
}

// While one lives, the calling thread may allocate although it is capturing.
using AllowInCapture = emu::AllowInCapture;

}  // namespace drupe::cuda::driver
