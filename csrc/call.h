// What Python hands to the native kernels: addresses and sizes as integers, scalars in float64. No torch headers.
#pragma once

#include <cstdint>

namespace deeprelax {

enum class Rule : int { kEntropySGD = 0, kHJ = 1, kHeat = 2 };
enum class DType : int { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3 };

// Bits of Scalars64::flags; kernels/native.py has the same table.
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
  kPastCache = 1u << 11,  // CPU: the tensors are larger than the caches
  kNoise = 1u << 12,
  kSkip = 1u << 13,  // the gradients overflowed: change nothing
};

// Indices into Numbers::reals.
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
  kInvScale,
  kReals
};

// The scalars of one call. In a captured step they lie on the device, where clock.h derives them; `narrow` holds the
// same rounded to float32, which all kernels but those for float64 compute with. kernels/clock.py has this layout.
struct Numbers {
  double reals[kReals];
  float narrow[kReals];
  uint32_t flags, key0, key1, step;
};

struct Tensor {  // a row of Table.meta
  int64_t size, offset, index, start;
};

}  // namespace deeprelax
