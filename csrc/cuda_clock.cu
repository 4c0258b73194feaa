// The clock of a captured step, advanced by one thread: clock.h.
#include "clock.h"
#include "cuda.h"

namespace deeprelax {

namespace cuda {

__global__ void advance(Rule rule, Settings settings, Sources sources, Clock* clock, Numbers* numbers) {
  tick(rule, settings, sources, *clock, *numbers);
}

}  // namespace cuda

Launched cuda_tick(Rule rule, const cuda::Settings& settings, const cuda::Sources& sources, cuda::Clock* clock,
                   Numbers* numbers, CUstream_st* stream, bool emulated) {
  if (emulated) {
    cuda::tick(rule, settings, sources, *clock, *numbers);
    return {0, "tick"};
  }
  cuda::advance<<<1, 1, 0, stream>>>(rule, settings, sources, clock, numbers);
  return {cudaGetLastError(), "tick"};
}

}  // namespace deeprelax
