// What Python and the compiled kernels exchange: kernels/abi.py in C++, which says what the names mean. Each struct is
// a list of fields, so that the modules export names and offsets (describe.h) and tests/kernels/test_abi.py compares
// them.
#pragma once

#include <cstdint>

namespace deeprelax {

// Update rules by number: the type and the header in which it stands.
#define DR_RULES(RULE)          \
  RULE(EntropySGD, entropy_sgd) \
  RULE(HJ, hj) RULE(Heat, heat) RULE(EntropyAdamW, entropy_adamw) RULE(Outer, outer) RULE(ElasticSGD, elastic_sgd)

// Types of weights by number.
#define DR_DTYPES(DTYPE) DTYPE(double, float64) DTYPE(float, float32) DTYPE(bfloat16, bfloat16) DTYPE(float16, float16)

#define DR_FLAGS(FLAG)                                \
  FLAG(kFirst, FIRST, 0)                              \
  FLAG(kLast, LAST, 1)                                \
  FLAG(kMaximize, MAXIMIZE, 2)                        \
  FLAG(kImplicit, IMPLICIT, 3)                        \
  FLAG(kNesterov, NESTEROV, 4)                        \
  FLAG(kFreshVelocity, FRESH_VELOCITY, 5)             \
  FLAG(kStochasticRounding, STOCHASTIC_ROUNDING, 6)   \
  FLAG(kWarmStart, WARM_START, 7)                     \
  FLAG(kTakeParam, TAKE_PARAM, 8)                     \
  FLAG(kNoise, NOISE, 9)                              \
  FLAG(kSkip, SKIP, 10)                               \
  FLAG(kPastCache, PAST_CACHE, 11)                    \
  FLAG(kAbsorbGamma, ABSORB_GAMMA, 12)                \
  FLAG(kCarryInnerMomentum, CARRY_INNER_MOMENTUM, 13) \
  FLAG(kPull, PULL, 14)                               \
  FLAG(kAverage, AVERAGE, 15)

// clang-format off
#define DR_SCALARS(FIELD, T)                                                       \
  FIELD(T, inner_lr) FIELD(T, inv_gamma) FIELD(T, pull) FIELD(T, denominator)      \
  FIELD(T, alpha) FIELD(T, one_minus_alpha) FIELD(T, gamma) FIELD(T, weight_decay) \
  FIELD(T, inner_momentum) FIELD(T, noise_scale)                                   \
  FIELD(T, outer_step) FIELD(T, outer_scale) FIELD(T, lr) FIELD(T, momentum)       \
  FIELD(T, inv_scale)                                                              \
  FIELD(T, beta1) FIELD(T, one_minus_beta1) FIELD(T, beta2) FIELD(T, one_minus_beta2) \
  FIELD(T, epsilon) FIELD(T, decay) FIELD(T, step_size) FIELD(T, inv_root_bias2)   \
  FIELD(double, wide_rate) FIELD(double, wide_beta1) FIELD(double, wide_beta2)     \
  FIELD(double, count)                                                             \
  FIELD(uint32_t, flags) FIELD(uint32_t, key0) FIELD(uint32_t, key1) FIELD(uint32_t, step)

#define DR_DEVICE_SCALARS(FIELD) FIELD(Scalars<double>, wide) FIELD(Scalars<float>, narrow)

#define DR_HYPER(FIELD)                                                                \
  FIELD(int64_t, inner_steps)                                                          \
  FIELD(double, keep) FIELD(double, momentum) FIELD(double, weight_decay)              \
  FIELD(double, alpha) FIELD(double, temperature) FIELD(double, inner_momentum)        \
  FIELD(double, beta1) FIELD(double, beta2) FIELD(double, epsilon)                     \
  FIELD(uint32_t, flags)

#define DR_CLOCK_WORDS(FIELD)                                                          \
  FIELD(int64_t, step) FIELD(int64_t, phase) FIELD(int64_t, cycle_steps)               \
  FIELD(int64_t, fresh) FIELD(int64_t, outer_step_happened)                            \
  FIELD(int64_t, seed) FIELD(int64_t, replica)                                         \
  FIELD(double, gamma) FIELD(double, cycle_gamma)

// Addresses of what a scheduler or a GradScaler writes for a captured step; null if there is none.
#define DR_SOURCES(FIELD)                                                              \
  FIELD(const void*, lr) FIELD(const void*, inner_lr)                                  \
  FIELD(const float*, grad_scale) FIELD(const float*, found_inf)                       \
  FIELD(int32_t, lr_is_double) FIELD(int32_t, inner_lr_is_double)

// What a launch of either module is bound to; `grads` points to the gradients' addresses in host memory.
#define DR_LAUNCH(FIELD, Tensor, Chunk)                                                \
  FIELD(const int64_t*, grads)                                                         \
  FIELD(const Tensor*, tensors) FIELD(const Chunk*, chunks) FIELD(int64_t, n_chunks)   \
  FIELD(void*, x) FIELD(void*, y) FIELD(void*, acc)                                    \
  FIELD(void*, momentum) FIELD(void*, velocity) FIELD(void*, square)                   \
  FIELD(const int64_t*, missed)                                                        \
  FIELD(uint32_t, rule) FIELD(uint32_t, dtype)

#define DR_CPU_LAUNCH(FIELD)                                                           \
  DR_LAUNCH(FIELD, int64_t, CpuChunk) FIELD(const int64_t*, weights)                   \
  FIELD(uint32_t, flags) FIELD(uint32_t, instruction_set)                              \
  FIELD(uint32_t, threads) FIELD(uint32_t, pieces) FIELD(Parallel, parallel)

#define DR_CUDA_LAUNCH(FIELD)                                                          \
  DR_LAUNCH(FIELD, CudaTensor, CudaChunk)                                              \
  FIELD(int64_t, n_tensors) FIELD(const int64_t*, first_chunks)                        \
  FIELD(int32_t, device) FIELD(int32_t, emulated)
// clang-format on

#define DR_DECLARE_DTYPE(type, name) name,
namespace DType {
enum : uint32_t { DR_DTYPES(DR_DECLARE_DTYPE) };
}

#define DR_DECLARE_FLAG(name, _, bit) name = 1u << bit,
enum Flag : uint32_t { DR_FLAGS(DR_DECLARE_FLAG) };

#define DR_DECLARE(type, name) type name;
template <class T>
struct Scalars {
  DR_SCALARS(DR_DECLARE, T)
};
struct DeviceScalars {
  DR_DEVICE_SCALARS(DR_DECLARE)
};
struct Hyper {
  DR_HYPER(DR_DECLARE)
};
struct ClockWords {
  DR_CLOCK_WORDS(DR_DECLARE)
};
struct Sources {
  DR_SOURCES(DR_DECLARE)
};

// A row of Table.chunks. `tensors` of a CPU launch are only the noise's parameter indices.
struct CpuChunk {
  int64_t tensor, first, start, place, begin, end;
};

// Rows of DeviceTable.tensors and .chunks: `bounds` is kCudaLeads end + begin.
constexpr int kCudaLeads = 8;
struct CudaTensor {
  int64_t weight, index;
};
struct CudaChunk {
  int64_t first, start, place;
  int32_t bounds, tensor;
};

// GOMP_parallel of an OpenMP runtime.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct CpuLaunch {
  DR_CPU_LAUNCH(DR_DECLARE)
};
struct CudaLaunch {
  DR_CUDA_LAUNCH(DR_DECLARE)
};

}  // namespace deeprelax
