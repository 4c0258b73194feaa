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
  bool plain;             // no option of the inner update is on
  // On the device.
  const int64_t *weights, *grads;  // addresses, one a tensor; 0: no gradient
  const Tensor* tensors;
  const CudaChunk* chunks;
  int64_t n_chunks;
  void *x, *y, *average, *momentum, *velocity;
};

// One launch on the stream; returns a cudaError_t. With `emulated` the same on the host, thread by thread, for tests
// without a GPU.
int cuda_entropy_sgd(const CudaCall&, CUstream_st* stream, bool emulated);
int cuda_hj(const CudaCall&, CUstream_st* stream, bool emulated);
int cuda_heat(const CudaCall&, CUstream_st* stream, bool emulated);
int cuda_tick(Rule, const cuda::Settings&, const cuda::Sources&, cuda::Clock*, Numbers*, CUstream_st* stream,
              bool emulated);

}  // namespace deeprelax
