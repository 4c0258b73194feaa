// What the module deeprelax._cuda calls: the kernels and the clock of each rule (cuda_rule.cu).
#pragma once

#include "abi.h"

struct CUstream_st;

namespace deeprelax {

// Bytes of weights per block, and threads per block: each thread takes four packs of 16 bytes (float64: four of 32).
#ifndef DR_CUDA_CHUNK_BYTES
#define DR_CUDA_CHUNK_BYTES 16384
#endif
#ifndef DR_CUDA_THREADS
#define DR_CUDA_THREADS 256
#endif
constexpr int kCudaThreads = DR_CUDA_THREADS;

// Elements per block.
constexpr int cuda_chunk(int weight_bytes) { return DR_CUDA_CHUNK_BYTES / (weight_bytes == 8 ? 4 : weight_bytes); }

// The most tensors per launch. Their gradients' addresses are kernel parameters, which may take 4 KiB with every
// driver. A larger limit would copy more in each launch, however few tensors it has.
#ifndef DR_CUDA_TENSORS
#define DR_CUDA_TENSORS 460
#endif
constexpr int kCudaTensors = DR_CUDA_TENSORS;

// What a function below does, and returns a cudaError_t: kLaunch launches the call's kernel on the stream; kLoad loads
// every kernel that such a call may need onto the current device, because a kernel cannot be loaded while a graph is
// captured; kEmulate runs the same code on the host, thread by thread, for tests without a GPU.
enum class Do : int { kLaunch, kLoad, kEmulate };

namespace cuda {

#define DR_DECLARE_RULE(Rule, header) struct Rule;
DR_RULES(DR_DECLARE_RULE)

// One update of the launch, with the scalars `ticked` on the device or, if that is null, `scalars`. `options`, those
// that the host knows, select the kernel.
template <class R>
int run(const CudaLaunch&, const DeviceScalars& scalars, const DeviceScalars* ticked, uint32_t options,
        CUstream_st* stream, Do what);

// Derives the scalars of the next call from a clock on the device, and advances it.
template <class R>
int advance(const Hyper&, const Sources&, ClockWords*, DeviceScalars*, CUstream_st* stream, Do what);

}  // namespace cuda
}  // namespace deeprelax
