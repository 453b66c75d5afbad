// One thread pool for all ops. Work is split by size alone, never by thread count, so that results are
// the same bits on any number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace drupe {

// A non-owning reference to a callable; cheaper than std::function and leaves no symbol in kernels' objects.
template <class Signature>
class FunctionRef;
template <class R, class... A>
class FunctionRef<R(A...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, A... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(A... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, A...);
};

int num_threads();
// Throws std::invalid_argument unless 1 <= count <= 1024.
void set_num_threads(int count);

// Runs body(0) … body(tasks - 1), each once, on the pool's threads and the caller's; returns when all are
// done. The first exception thrown by a body is rethrown here. Nested calls run in the calling thread.
void parallel_for(std::int64_t tasks, FunctionRef<void(std::int64_t task)> body);

// Cuts [0, size) into ranges of `grain` (the last may be shorter) and runs body(begin, end) on each.
void parallel_ranges(std::int64_t size, std::int64_t grain,
                     FunctionRef<void(std::int64_t begin, std::int64_t end)> body);

}  // namespace drupe
