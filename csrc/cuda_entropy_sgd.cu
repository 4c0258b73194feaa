// Section 6.1 on NVIDIA GPUs.
#include "cuda_kernels.h"

namespace deeprelax {
namespace DR_ISA {

// As many as leave enough registers that none spills: tests/test_cuda_binaries.py.
template <class P, bool Noise>
constexpr int kPlainBlocks = sizeof(P) == 8 ? 2 : (sizeof(P) == 4 ? 4 : 3) - (Noise ? 1 : 0);

template <class P, bool Noise, bool Rounding>
int launch_as(const CudaCall& call, CUstream_st* stream, bool emulated) {
  using R = EntropySGD<P, typename Compute<P>::type, Noise, Rounding>;
  return launch<P, R, kPlainBlocks<P, Noise>, Noise ? 2 : 3>(call, stream, emulated);
}

template <class P>
int entropy_sgd(const CudaCall& call, CUstream_st* stream, bool emulated) {
  const bool noise = (call.numbers.flags & kNoise) != 0;
  if constexpr (std::is_same_v<P, bfloat16>) {
    if (call.numbers.flags & kStochasticRounding) {
      if (noise) return launch_as<P, true, true>(call, stream, emulated);
      return launch_as<P, false, true>(call, stream, emulated);
    }
  }
  if (noise) return launch_as<P, true, false>(call, stream, emulated);
  return launch_as<P, false, false>(call, stream, emulated);
}

}  // namespace DR_ISA

int cuda_entropy_sgd(const CudaCall& call, CUstream_st* stream, bool emulated) {
  switch (call.dtype) {
    case DType::kFloat64:
      return cuda::entropy_sgd<double>(call, stream, emulated);
    case DType::kFloat32:
      return cuda::entropy_sgd<float>(call, stream, emulated);
    case DType::kBFloat16:
      return cuda::entropy_sgd<cuda::bfloat16>(call, stream, emulated);
    case DType::kFloat16:
      return cuda::entropy_sgd<cuda::float16>(call, stream, emulated);
  }
  return 0;
}

}  // namespace deeprelax
