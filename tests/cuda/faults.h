// What the suites of planted faults share.
#pragma once

#include <functional>
#include <string>

#include "cuda/emu/grid.h"
#include "cuda/selftest.h"

namespace drupe::selftest {

// Runs a launch that must end in a Fault whose message has these words and names a line or a kernel.
inline void expect_fault(const std::string& words, const std::function<void()>& launch) {
  std::string message;
  try {
    launch();
  } catch (const emu::Fault& fault) {
    message = fault.what();
  }
  require(!message.empty(), "no fault, where one should speak of '", words, "'");
  require(message.find(words) != std::string::npos, "a fault that does not speak of '", words, "': ", message);
}

// Runs a launch in many orders of its threads.
inline void expect_none(const std::function<void()>& launch) {
  const std::uint64_t before = emu::seed();
  for (std::uint64_t seed = 100; seed < 120; ++seed) {
    emu::set_seed(seed);
    launch();
  }
  emu::set_seed(before);
}

// For what shows in some orders of the threads only.
inline void expect_fault_in_some_order(const std::string& words, const std::function<void()>& launch) {
  const std::uint64_t before = emu::seed();
  expect_fault(words, [&] {
    for (std::uint64_t order = 0; order < 100; ++order) {
      emu::set_seed(1000 * before + order);
      launch();
    }
  });
  emu::set_seed(before);
}

}  // namespace drupe::selftest
