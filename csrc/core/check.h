// Errors with context: check(cond, "gemm", "a is ", shape, ...) throws "[gemm] a is (64, 32) ...".
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace drupe {

// A dtype or a kind of object that an op cannot take; Python sees TypeError.
struct TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

template <class Error = std::invalid_argument, class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << '[' << op << "] ";
  (message << ... << parts);
  throw Error(message.str());
}

// Throws std::invalid_argument (ValueError) unless cond holds.
template <class... Parts>
void check(bool cond, const char* op, const Parts&... parts) {
  if (!cond) [[unlikely]]
    fail(op, parts...);
}

// Throws TypeError unless cond holds.
template <class... Parts>
void check_type(bool cond, const char* op, const Parts&... parts) {
  if (!cond) [[unlikely]]
    fail<TypeError>(op, parts...);
}

// Throws std::out_of_range (IndexError) unless cond holds.
template <class... Parts>
void check_index(bool cond, const char* op, const Parts&... parts) {
  if (!cond) [[unlikely]]
    fail<std::out_of_range>(op, parts...);
}

}  // namespace drupe
