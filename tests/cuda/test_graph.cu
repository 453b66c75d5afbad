// Streams, events and graphs as the platform has them: what a capture records, and what spoils it.
#include <platform/driver.h>
#include <platform/stream.h>
#include <platform/device.cuh>
#include <platform/launch.cuh>

#include "cuda/selftest.h"

namespace drupe::selftest {
namespace {

using cuda::driver::GraphHandle;

__global__ void add_one_kernel(int* value) {
  if (threadIdx.x == 0) *value += 1;
}

void add_one(const Array<int>& value, Stream on) {
  cuda::launch<add_one_kernel>({.grid = {1}, .block = {32}}, on, value.data());
}

int value_of(const Array<int>& array, Stream on) {
  cuda::driver::synchronize(on);
  return array.values()[0];
}

// The capture ends, whatever happened in it.
template <class Body>
bool is_spoiled(Stream on, const Body& body) {
  bool refused = false;
  cuda::driver::begin_capture(on);
  try {
    body();
  } catch (const std::runtime_error&) {
    refused = true;
  }
  try {
    cuda::driver::destroy_graph(cuda::driver::end_capture(on));
    return false;
  } catch (const std::runtime_error&) {
    return refused;
  }
}

const Register kReplays("graph.replays", [] {
  const Array<int> value(1);
  const Stream on = cuda::driver::create_stream(0);
  cuda::synchronize(0);
  require(cuda::driver::capture_id(on) == 0, "a stream that is not captured has a capture");
  cuda::driver::begin_capture(on);
  require(cuda::driver::capture_id(on) != 0, "a stream that is captured has no capture");
  add_one(value, on);
  add_one(value, on);
  const GraphHandle graph = cuda::driver::end_capture(on);
  require(cuda::driver::capture_id(on) == 0, "a capture that has ended goes on");
  require_equal(value_of(value, on), 0, "the value", 0);
  for (int i = 1; i <= 3; ++i) {
    cuda::driver::launch_graph(graph, on);
    require_equal(value_of(value, on), 2 * i, "the value", 0);
  }
  cuda::driver::destroy_graph(graph);
});

const Register kForks("graph.forks", [] {
  const Array<int> value(1);
  const Stream on = cuda::driver::create_stream(0), side = cuda::driver::create_stream(0);
  void* event = cuda::driver::create_event(0, false);
  cuda::synchronize(0);
  const auto cross = [&](Stream from, Stream to) {
    cuda::driver::record_event(event, from);
    cuda::driver::wait_event(to, event);
  };
  cuda::driver::begin_capture(on);
  add_one(value, on);
  cross(on, side);
  require(cuda::driver::capture_id(side) == cuda::driver::capture_id(on), "the stream that waits is not captured");
  add_one(value, side);
  cross(side, on);
  add_one(value, on);
  const GraphHandle graph = cuda::driver::end_capture(on);
  require(cuda::driver::capture_id(side) == 0, "a stream stays in a capture that has ended");
  cuda::driver::launch_graph(graph, on);
  require_equal(value_of(value, on), 3, "the value", 0);
  cuda::driver::destroy_graph(graph);
  require(is_spoiled(on,
                     [&] {
                       cross(on, side);
                       add_one(value, side);
                       throw std::runtime_error("work that nobody waits for");
                     }),
          "a capture ends without the work of a stream that waited");
  cuda::driver::destroy_event(event);
});

const Register kSpoils("graph.spoils", [] {
  const Array<int> value(1);
  const Stream on = cuda::driver::create_stream(0), side = cuda::driver::create_stream(0);
  void* before = cuda::driver::create_event(0, false);
  cuda::synchronize(0);
  cuda::driver::record_event(before, side);
  require(is_spoiled(on, [&] { cuda::driver::synchronize(on); }), "waiting for the stream spoils no capture");
  require(is_spoiled(on, [&] { cuda::driver::wait_event(on, before); }), "earlier work spoils no capture");
  bool refused = false;
  cuda::driver::begin_capture(on);
  try {
    cuda::driver::release(cuda::driver::allocate(512, 0), 0);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  cuda::driver::abort_capture(on);
  require(refused, "an allocation is let pass in a capture");
  cuda::driver::begin_capture(on);
  {
    const cuda::driver::AllowInCapture allow;
    cuda::driver::release(cuda::driver::allocate(512, 0), 0);
  }
  add_one(value, on);
  const GraphHandle graph = cuda::driver::end_capture(on);
  cuda::driver::launch_graph(graph, on);
  require_equal(value_of(value, on), 1, "the value", 0);
  cuda::driver::destroy_graph(graph);
  cuda::driver::destroy_event(before);
});

}  // namespace
}  // namespace drupe::selftest
