// A queue of work on a device: kernels and copies on one stream run one after the other.
#pragma once

namespace drupe {

struct Stream {
  void* handle = nullptr;  // a cudaStream_t
  int device = 0;
};

}  // namespace drupe
