// What the CPU module calls, compiled once per instruction set.
#pragma once

#include "abi.h"

namespace deeprelax {

// One update on chunks begin ... end - 1 of the launch, with scalars whose flags are options (options.h).
using Run = void (*)(const CpuLaunch&, const DeviceScalars&, int64_t begin, int64_t end);

// The normals of elements start ... start + count - 1, for tests.
using Normals = void (*)(float* out, uint32_t key0, uint32_t key1, uint32_t index, uint32_t step, int64_t start,
                         int64_t count);

// The benchmarks' yardstick: cpu_yardstick.cpp.
void yardstick(const float* g, const float* x, float* acc, float* w, bool update_w, int64_t begin, int64_t end);

#define DR_DECLARE_RULE(Rule, header) struct Rule;
#define DR_DECLARE_SET(set)                                                       \
  namespace set {                                                                 \
  DR_RULES(DR_DECLARE_RULE)                                                       \
  template <class R>                                                              \
  void run(const CpuLaunch&, const DeviceScalars&, int64_t begin, int64_t end);   \
  void normals(float*, uint32_t, uint32_t, uint32_t, uint32_t, int64_t, int64_t); \
  }
DR_DECLARE_SET(baseline)
DR_DECLARE_SET(avx2)
DR_DECLARE_SET(avx512)

}  // namespace deeprelax
