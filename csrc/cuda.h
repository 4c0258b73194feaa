// What the module deeprelax._cuda calls: for each rule its kernels and its clock, of cuda_rule.cu.
#pragma once

#include "abi.h"

struct CUstream_st;

namespace deeprelax {

// Bytes of weights of a block, and its threads: each takes four packs of 16 bytes (float64: four of 32).
#ifndef DR_CUDA_CHUNK_BYTES
#define DR_CUDA_CHUNK_BYTES 16384
#endif
#ifndef DR_CUDA_THREADS
#define DR_CUDA_THREADS 256
#endif
constexpr int kCudaThreads = DR_CUDA_THREADS;

// Elements of a block.
constexpr int cuda_chunk(int weight_bytes) { return DR_CUDA_CHUNK_BYTES / (weight_bytes == 8 ? 4 : weight_bytes); }

// Tensors of a launch. Their gradients' addresses are parameters of the kernel: with all else they fill the 4 KiB that
// every driver takes. More would be copied with each launch, however few there are.
#ifndef DR_CUDA_TENSORS
#define DR_CUDA_TENSORS 460
#endif
constexpr int kCudaTensors = DR_CUDA_TENSORS;

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
