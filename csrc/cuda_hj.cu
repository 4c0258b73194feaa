// Section 6.2 on NVIDIA GPUs.
#include "cuda_kernels.h"

namespace deeprelax {

int cuda_hj(const CudaCall& call, CUstream_st* stream, bool emulated) {
  using namespace cuda;
  switch (call.dtype) {
    case DType::kFloat64:
      return launch<double, HJ<double, double>, 3, 3>(call, stream, emulated);
    case DType::kFloat32:
      return launch<float, HJ<float, float>, 4, 3>(call, stream, emulated);
    case DType::kBFloat16:
      return launch<bfloat16, HJ<bfloat16, float>, 3, 3>(call, stream, emulated);
    case DType::kFloat16:
      return launch<float16, HJ<float16, float>, 3, 3>(call, stream, emulated);
  }
  return 0;
}

}  // namespace deeprelax
