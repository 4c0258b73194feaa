// Shares the chunks of a launch among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "abi.h"

namespace deeprelax {

// The floating-point mode of the calling thread: torch.set_flush_denormal changes it for that thread alone.
#if defined(__x86_64__)
inline uint64_t float_mode() { return _mm_getcsr(); }
inline void set_float_mode(uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
inline uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
#else
inline uint64_t float_mode() { return 0; }
inline void set_float_mode(uint64_t) {}
#endif

// Units 0 ... count - 1, `grain` at a time, taken by whichever thread is free.
template <class Body>
struct Work {
  Body body;
  int64_t count, grain;
  uint64_t mode = float_mode();
  std::atomic<int64_t> next{0};

  void drain() {
    for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;)
      body(begin, std::min(begin + grain, count));
  }
  // Run by the other threads, in the caller's floating-point mode.
  void help() {
    const uint64_t own = float_mode();
    set_float_mode(mode);
    drain();
    set_float_mode(own);
  }
};

// `parallel` is GOMP_parallel of the OpenMP runtime that torch has loaded: its threads are awake after a backward pass,
// and a second pool would compete with them for the cores. The symbol is part of the ABI of GNU's, LLVM's and Intel's
// runtimes. If null, threads are started.
template <class Body>
void share(Body body, int64_t count, int64_t grain, unsigned threads, Parallel parallel) {
  Work<Body> work{body, count, std::max<int64_t>(grain, 1)};
  if (threads <= 1) return work.drain();
  if (parallel) return parallel([](void* w) { static_cast<Work<Body>*>(w)->help(); }, &work, threads, 0);
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    for (unsigned t = 1; t < threads; ++t) others.emplace_back([&work] { work.help(); });
  } catch (const std::system_error&) {
    // No more threads are available: those that started share the work.
  }
  work.drain();
  for (std::thread& t : others) t.join();
}

}  // namespace deeprelax
