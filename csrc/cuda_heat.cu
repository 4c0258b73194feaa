// Section 6.3 on NVIDIA GPUs.
#include "cuda_kernels.h"

namespace deeprelax {

int cuda_heat(const CudaCall& call, CUstream_st* stream, Do what) {
  using namespace cuda;
  switch (call.dtype) {
    case DType::kFloat64:
      return launch<double, Heat<double, double>, 2, 2>(call, stream, what);
    case DType::kFloat32:
      return launch<float, Heat<float, float>, 4, 3>(call, stream, what);
    case DType::kBFloat16:
      return launch<bfloat16, Heat<bfloat16, float>, 3, 3>(call, stream, what);
    case DType::kFloat16:
      return launch<float16, Heat<float16, float>, 3, 3>(call, stream, what);
  }
  return 0;
}

}  // namespace deeprelax
