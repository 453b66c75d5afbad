// What the cases of drupe_cuda_selftest share: a list that they put themselves on, checks, arrays on the device.
#pragma once

#include <cstddef>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda.h"

namespace drupe::selftest {

struct Case {
  std::string name;
  void (*run)();
  int compute_capability;  // that the device must have
  bool exactly;            // and no later one: sm_90a's instructions are its alone
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)(), int compute_capability = 80) {
    cases().push_back({name, run, compute_capability, compute_capability == 90});
  }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... P>
void require(bool holds, const P&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw Failure(text.str());
}

template <class T, class U>
void require_equal(const T& got, const U& expected, const std::string& what, std::size_t index) {
  require(got == static_cast<T>(expected), what, "[", index, "] is ", got, ", not ", static_cast<T>(expected));
}

inline constexpr Device kDevice{DeviceType::cuda, 0};

inline Stream stream() {
  return cuda::current_stream(0);
}

// An array in the device's memory.
template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    cuda::copy_bytes(block_.get(), kDevice, values.data(), Device{}, size_ * sizeof(T));
  }
  explicit Array(std::size_t size) : size_(size), block_(cuda::allocate(size * sizeof(T), kDevice)) {
    cuda::zero_bytes(block_.get(), size * sizeof(T), kDevice);
  }
  T* data() const { return static_cast<T*>(block_.get()); }
  std::vector<T> values() const {
    std::vector<T> result(size_);
    cuda::copy_bytes(result.data(), Device{}, block_.get(), kDevice, size_ * sizeof(T));
    return result;
  }

 private:
  std::size_t size_;
  std::shared_ptr<void> block_;
};

}  // namespace drupe::selftest
