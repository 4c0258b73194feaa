// What the CPU kernels are asked to do.
#pragma once

#include "call.h"

namespace deeprelax {

struct Chunk {  // a row of Table.chunks
  int64_t tensor, start, length;
};

struct Call {
  Rule rule;
  DType dtype;
  Numbers numbers;
  const int64_t* weights;  // addresses, one a tensor
  const int64_t* grads;    // 0: no gradient
  const Tensor* tensors;
  const Chunk* chunks;
  int64_t n_chunks;
  // Flat buffers, null where the call has none. `average` is z, p or s.
  void *x, *y, *average, *momentum, *velocity;
};

// Works on chunks begin … end - 1.
using Run = void (*)(const Call&, int64_t begin, int64_t end);

// The normals of elements start … start + count - 1, for tests.
using Normals = void (*)(float* out, uint32_t key0, uint32_t key1, uint32_t index, uint32_t step, int64_t start,
                         int64_t count);

// The benchmarks' yardstick: cpu_stream.cpp.
void stream(const float* g, const float* x, float* average, float* w, bool update_w, int64_t begin, int64_t end);

namespace baseline {
void run(const Call&, int64_t begin, int64_t end);
void normals(float*, uint32_t, uint32_t, uint32_t, uint32_t, int64_t, int64_t);
}  // namespace baseline
namespace avx2 {
void run(const Call&, int64_t begin, int64_t end);
void normals(float*, uint32_t, uint32_t, uint32_t, uint32_t, int64_t, int64_t);
}  // namespace avx2
namespace avx512 {
void run(const Call&, int64_t begin, int64_t end);
void normals(float*, uint32_t, uint32_t, uint32_t, uint32_t, int64_t, int64_t);
}  // namespace avx512

}  // namespace deeprelax
