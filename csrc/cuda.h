// What the CUDA kernels are asked to do: by the Python module deeprelax._cuda, for the kernels of cuda_*.cu.
#pragma once

#include "call.h"
#include "clock.h"

struct CUstream_st;

namespace deeprelax {

struct CudaChunk {  // a row of DeviceTable.chunks: `number` counts pieces of kCudaChunk elements of the tensor
  int32_t tensor, number;
};

// Elements of a block, and its threads: 16 elements a thread, which it takes in steps of 16 bytes of its weights.
// bench/gpu.py measures others.
#ifndef DR_CUDA_CHUNK
#define DR_CUDA_CHUNK 4096
#endif
#ifndef DR_CUDA_THREADS
#define DR_CUDA_THREADS 256
#endif
constexpr int kCudaChunk = DR_CUDA_CHUNK, kCudaThreads = DR_CUDA_THREADS;

struct CudaCall {
  Rule rule;
  DType dtype;
  Numbers numbers;
  const Numbers* ticked;  // on the device; null: `numbers` are those of the call
  bool fast;              // FastScalars in cuda_kernels.h may serve it
  // On the device.
  const int64_t *weights, *grads;  // addresses, one a tensor; 0: no gradient
  const Tensor* tensors;
  const CudaChunk* chunks;
  int64_t n_chunks;
  void *x, *y, *average, *momentum, *velocity;
};

// What a function below does, with one kernel or all that the call might take: launches on the stream; loads onto the
// current device, so that none need be loaded while a graph is captured; runs the same code on the host, thread by
// thread, for tests without a GPU. Returns a cudaError_t.
enum class Do : int { kLaunch, kLoad, kEmulate };

int cuda_entropy_sgd(const CudaCall&, CUstream_st* stream, Do what);
int cuda_hj(const CudaCall&, CUstream_st* stream, Do what);
int cuda_heat(const CudaCall&, CUstream_st* stream, Do what);
int cuda_tick(Rule, const cuda::Settings&, const cuda::Sources&, cuda::Clock*, Numbers*, CUstream_st* stream, Do what);

#ifdef __CUDACC__
// The runtime loads a kernel when it is first asked about it.
inline int load_kernel(const void* kernel) {
  cudaFuncAttributes unused;
  return cudaFuncGetAttributes(&unused, kernel);
}
#endif

}  // namespace deeprelax
