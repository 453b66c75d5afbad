// drupe_cuda_selftest --list names the cases that this device can run; drupe_cuda_selftest NAME… runs some, and exits
// with 1 when one fails.
#include "cuda/selftest.h"

#include <platform/driver.h>
#include <algorithm>
#include <cstdio>
#include <cstring>

int main(int count, char** arguments) {
  using namespace drupe;
  const cuda::Status status = cuda::status();
  if (!status.available) {
    std::fprintf(stderr, "no device: %s\n", status.reason.c_str());
    return 2;
  }
  const int capability = cuda::driver::properties(0).compute_capability;
  std::vector<selftest::Case>& cases = selftest::cases();
  std::sort(cases.begin(), cases.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  std::erase_if(cases, [&](const selftest::Case& test) {
    return test.compute_capability > capability || (test.exactly && test.compute_capability != capability);
  });
  if (count == 2 && std::strcmp(arguments[1], "--list") == 0) {
    for (const selftest::Case& test : cases) std::printf("%s\n", test.name.c_str());
    return 0;
  }
  int failures = 0;
  for (int i = 1; i < count; ++i) {
    const auto found =
        std::find_if(cases.begin(), cases.end(), [&](const selftest::Case& test) { return test.name == arguments[i]; });
    try {
      selftest::require(found != cases.end(), "no such case");
      found->run();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", arguments[i], error.what());
      ++failures;
    }
  }
  return failures > 0 || count < 2;
}
