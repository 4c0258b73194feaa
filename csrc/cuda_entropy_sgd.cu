// Section 6.1 on NVIDIA GPUs.
#include "cuda_kernels.h"

namespace deeprelax {
namespace DR_ISA {

// As many as leave enough registers that none spills: tests/test_cuda_binaries.py.
template <class P, bool Noise>
constexpr int kFastBlocks = sizeof(P) == 8 ? 2 : (sizeof(P) == 4 ? 4 : 3) - (Noise ? 1 : 0);
template <class P, bool Noise>
constexpr int kBlocks = sizeof(P) == 4 && !Noise ? 3 : 2;

template <class P, bool Noise, bool Rounding>
int launch_as(const CudaCall& call, CUstream_st* stream, Do what) {
  using R = EntropySGD<P, typename Compute<P>::type, Noise, Rounding>;
  return launch<P, R, kFastBlocks<P, Noise>, kBlocks<P, Noise>>(call, stream, what);
}

// With noise or without, as the call says; loaded are both.
template <class P, bool Rounding>
int rounded(const CudaCall& call, CUstream_st* stream, Do what) {
  if (what == Do::kLoad) {
    const int error = launch_as<P, true, Rounding>(call, stream, what);
    return error ? error : launch_as<P, false, Rounding>(call, stream, what);
  }
  return (call.numbers.flags & kNoise) != 0 ? launch_as<P, true, Rounding>(call, stream, what)
                                            : launch_as<P, false, Rounding>(call, stream, what);
}

template <class P>
int entropy_sgd(const CudaCall& call, CUstream_st* stream, Do what) {
  if constexpr (std::is_same_v<P, bfloat16>) {
    if (what == Do::kLoad) {
      if (const int error = rounded<P, true>(call, stream, what)) return error;
    } else if ((call.numbers.flags & kStochasticRounding) != 0) {
      return rounded<P, true>(call, stream, what);
    }
  }
  return rounded<P, false>(call, stream, what);
}

}  // namespace DR_ISA

int cuda_entropy_sgd(const CudaCall& call, CUstream_st* stream, Do what) {
  switch (call.dtype) {
    case DType::kFloat64:
      return cuda::entropy_sgd<double>(call, stream, what);
    case DType::kFloat32:
      return cuda::entropy_sgd<float>(call, stream, what);
    case DType::kBFloat16:
      return cuda::entropy_sgd<cuda::bfloat16>(call, stream, what);
    case DType::kFloat16:
      return cuda::entropy_sgd<cuda::float16>(call, stream, what);
  }
  return 0;
}

}  // namespace deeprelax
