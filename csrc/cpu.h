// What Python hands to the CPU kernels: addresses and sizes as integers, scalars in float64. No torch headers.
#pragma once

#include <cstdint>

namespace deeprelax {

enum class Rule : int { kEntropySGD = 0, kHJ = 1, kHeat = 2 };
enum class DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Bits of Call::flags; kernels/native.py has the same table.
enum Flag : uint32_t {
  kFirst = 1u << 0,
  kLast = 1u << 1,
  kMaximize = 1u << 2,
  kImplicit = 1u << 3,
  kNesterov = 1u << 4,
  kFreshVelocity = 1u << 5,
  kStochasticRounding = 1u << 6,
  kWarmStart = 1u << 7,
  kReadParam = 1u << 8,
  kTakeParam = 1u << 9,
  kInnerNesterov = 1u << 10,
  kPastCache = 1u << 11,  // the tensors are larger than the caches
};

// Indices into Call::reals.
enum Real : int {
  kInnerLr,
  kInvGamma,
  kPull,
  kDenominator,
  kAlpha,
  kOneMinusAlpha,
  kGamma,
  kWeightDecay,
  kInnerMomentum,
  kNoiseScale,
  kOuterStep,
  kOuterScale,
  kOuterLr,
  kOuterMomentum,
  kReals
};

struct Tensor {  // a row of Table.meta
  int64_t size, offset, index, start;
};
struct Chunk {  // a row of Table.chunks
  int64_t tensor, start, length;
};

struct Call {
  Rule rule;
  DType dtype;
  uint32_t flags;
  double reals[kReals];
  uint32_t key0, key1, step;
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
