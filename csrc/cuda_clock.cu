// The clock of a captured step, advanced by one thread: clock.h.
#include "clock.h"
#include "cuda.h"

namespace deeprelax {

namespace cuda {

__global__ void advance(Rule rule, Settings settings, Sources sources, Clock* clock, Numbers* numbers) {
  tick(rule, settings, sources, *clock, *numbers);
}

}  // namespace cuda

int cuda_tick(Rule rule, const cuda::Settings& settings, const cuda::Sources& sources, cuda::Clock* clock,
              Numbers* numbers, CUstream_st* stream, Do what) {
  const auto kernel = reinterpret_cast<const void*>(cuda::advance);
  if (what == Do::kLoad) return load_kernel(kernel);
  if (what == Do::kEmulate) {
    cuda::tick(rule, settings, sources, *clock, *numbers);
    return 0;
  }
  void* arguments[] = {&rule, const_cast<cuda::Settings*>(&settings), const_cast<cuda::Sources*>(&sources), &clock,
                       &numbers};
  return cudaLaunchKernel(kernel, dim3(1), dim3(1), arguments, 0, stream);
}

}  // namespace deeprelax
