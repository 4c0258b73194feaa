// What the module deeprelax._cuda calls: for each rule its kernels and its clock, of cuda_rule.cu.
#pragma once

#include "abi.h"

struct CUstream_st;

namespace deeprelax {

// Elements of a block, and its threads: 16 elements a thread, which it takes in steps of 16 bytes of its weights.
// bench/gpu.py measures others.
#ifndef DR_CUDA_CHUNK
#define DR_CUDA_CHUNK 4096
#endif
#ifndef DR_CUDA_THREADS
#define DR_CUDA_THREADS 256
#endif
constexpr int kCudaChunk = DR_CUDA_CHUNK, kCudaThreads = DR_CUDA_THREADS;

// What a function below does, with one kernel or all that the call might take: launches on the stream; loads onto the
// current device, so that none need be loaded while a graph is captured; runs the same code on the host, thread by
// thread, for tests without a GPU. Returns a cudaError_t.
enum class Do : int { kLaunch, kLoad, kEmulate };

namespace cuda {

#define DR_DECLARE_RULE(Rule, header) struct Rule;
DR_RULES(DR_DECLARE_RULE)

// One update of the launch. Its scalars are `ticked`, on the device, or, where that is null, `scalars`. What the host
// knows of the call's options chooses the kernel.
template <class R>
int run(const CudaLaunch&, const DeviceScalars& scalars, const DeviceScalars* ticked, uint32_t options,
        CUstream_st* stream, Do what);

// Derives the scalars of the next call from a clock on the device, and advances it.
template <class R>
int advance(const Hyper&, const Sources&, ClockWords*, DeviceScalars*, CUstream_st* stream, Do what);

}  // namespace cuda
}  // namespace deeprelax
