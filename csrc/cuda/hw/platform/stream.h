// What the runtime asks of a device's streams, events and graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <platform/driver.h>
#include <cstdint>

#include "core/stream.h"

namespace drupe::cuda::driver {

inline cudaStream_t native(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

// Does not wait for the default stream, nor the other way round.
inline Stream create_stream(int device) {
  const OnDevice on(device);
  cudaStream_t stream = nullptr;
  check_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return {.handle = stream, .device = device};
}

using EventHandle = void*;

inline EventHandle create_event(int device, bool timed) {
  const OnDevice on(device);
  cudaEvent_t event = nullptr;
  check_status(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  return event;
}
inline void destroy_event(EventHandle event) {
  static_cast<void>(cudaEventDestroy(static_cast<cudaEvent_t>(event)));  // at interpreter exit the driver may be gone
}
inline void record_event(EventHandle event, Stream stream) {
  const OnDevice on(stream.device);
  check_status(cudaEventRecord(static_cast<cudaEvent_t>(event), native(stream)));
}
inline void wait_event(Stream stream, EventHandle event) {
  const OnDevice on(stream.device);
  check_status(cudaStreamWaitEvent(native(stream), static_cast<cudaEvent_t>(event), 0));
}
inline void synchronize_event(EventHandle event) {
  check_status(cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
}
inline bool query_event(EventHandle event) {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (status == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  check_status(status);
  return true;
}
inline float elapsed_ms(EventHandle start, EventHandle end) {
  float elapsed = 0;
  check_status(cudaEventElapsedTime(&elapsed, static_cast<cudaEvent_t>(start), static_cast<cudaEvent_t>(end)));
  return elapsed;
}

using GraphHandle = void*;

// The calling thread captures what goes to the stream. Other threads may do what they like meanwhile.
inline void begin_capture(Stream stream) {
  const OnDevice on(stream.device);
  check_status(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal));
}
// What was captured, ready to be launched.
inline GraphHandle end_capture(Stream stream) {
  const OnDevice on(stream.device);
  cudaGraph_t graph = nullptr;
  cudaError_t status = cudaStreamEndCapture(native(stream), &graph);
  cudaGraphExec_t executable = nullptr;
  if (status == cudaSuccess) status = cudaGraphInstantiate(&executable, graph, 0);
  if (graph) static_cast<void>(cudaGraphDestroy(graph));
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  check_status(status);
  return executable;
}
inline void abort_capture(Stream stream) noexcept {
  cudaGraph_t graph = nullptr;
  static_cast<void>(cudaStreamEndCapture(native(stream), &graph));
  if (graph) static_cast<void>(cudaGraphDestroy(graph));
  static_cast<void>(cudaGetLastError());  // that of a capture that was spoiled
}
// A number of the capture that the stream takes part in; 0 where it takes part in none.
inline std::uint64_t capture_id(Stream stream) {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  const cudaError_t status = cudaStreamGetCaptureInfo(native(stream), &capturing, &id);
  if (status == cudaErrorStreamCaptureImplicit) {  // the default stream, while another is captured
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  check_status(status);
  return capturing == cudaStreamCaptureStatusNone ? 0 : id;
}
inline void launch_graph(GraphHandle graph, Stream stream) {
  const OnDevice on(stream.device);
  check_status(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), native(stream)));
}
inline void destroy_graph(GraphHandle graph) noexcept {
  static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

// While one lives, the calling thread may allocate although it is capturing.
class AllowInCapture {
 public:
  AllowInCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~AllowInCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  AllowInCapture(const AllowInCapture&) = delete;
  AllowInCapture& operator=(const AllowInCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace drupe::cuda::driver
