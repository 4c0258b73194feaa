// The operations that the update rules and the noise are written in, for one element on the host or on a device.
// csrc/vec.h gives the same names for vectors, so that one source of the arithmetic serves scalars, SIMD and CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DR_HD __host__ __device__ __forceinline__
#else
#define DR_HD inline __attribute__((always_inline))
#endif

// Loops over registers must be unrolled, or the registers become local memory.
#ifdef __CUDA_ARCH__
#define DR_UNROLL _Pragma("unroll")
#else
#define DR_UNROLL
#endif

// The kernels are compiled once per instruction set into one library, and an inline function that is compiled for a
// newer set must never replace its namesake: each set has its own namespace.
#if defined(__CUDACC__)
#define DR_ISA cuda
#elif defined(__AVX512F__)
#define DR_ISA avx512
#elif defined(__AVX2__)
#define DR_ISA avx2
#else
#define DR_ISA baseline
#endif

namespace deeprelax::DR_ISA {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What selects the noise of one call: everything but the index of the element.
struct Draw {
  uint32_t key0, key1, step;
};

// The type of a weight's state, in which its update is computed.
template <class P>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <class To, class From>
DR_HD To bit_cast(From from) {
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// The integer vector that matches a float vector; a scalar is a vector of one.
template <class F>
struct Lanes;
template <>
struct Lanes<float> {
  using Int = int32_t;
};

DR_HD float to_float(int32_t v) { return static_cast<float>(v); }
DR_HD uint32_t as_uint(float v) { return bit_cast<uint32_t>(v); }
DR_HD float as_float(uint32_t v) { return bit_cast<float>(v); }
// a where the top bit is set, else b.
DR_HD float by_top_bit(uint32_t bits, float a, float b) { return (bits & 0x80000000u) != 0 ? a : b; }

#ifdef __CUDA_ARCH__
DR_HD float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DR_HD float square_root(float v) { return __fsqrt_rn(v); }
DR_HD double square_root(double v) { return __dsqrt_rn(v); }
#else
DR_HD float fused(float a, float b, float c) { return std::fma(a, b, c); }
DR_HD float square_root(float v) { return std::sqrt(v); }
DR_HD double square_root(double v) { return std::sqrt(v); }
#endif

// The correctly rounded root of a normal v, from any r within 4 ulp of 1 / sqrt(v) (tests/kernels/test_root.py).
DR_HD float root_from(float v, float r) {
  float root = v * r, half = 0.5f * r;
  const float d = fused(-half, root, 0.5f);
  root = fused(root, d, root);
  half = fused(half, d, half);
  return fused(fused(-root, root, v), half, root);
}

// The root of a normal or of 0. CUDA's own has a branch for denormals, which keeps a thread from doing other work.
DR_HD float root_of_normal(float v) {
#ifdef __CUDA_ARCH__
  float r;  // within 2^-22.9 of 1 / sqrt(v): the PTX manual
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return v == 0 ? 0.0f : root_from(v, r);
#else
  return square_root(v);
#endif
}

// The 64-bit product of the low halves of two 64-bit lanes.
DR_HD uint64_t mul32(uint64_t a, uint64_t b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }

// bfloat16: to nearest even, denormals kept, every NaN to a quiet one.
DR_HD float widen(bfloat16 v) { return as_float(static_cast<uint32_t>(v.bits) << 16); }
DR_HD bfloat16 narrow_bf16(float v) {
#if __CUDA_ARCH__ >= 800
  bfloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
  return narrow;
#endif
  uint32_t b = as_uint(v);
  if (v != v) return {0x7fc0};
  return {static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
}

// float16 in integer operations, for hosts without F16C and as the reference for those with it. GPUs have instructions.
DR_HD float widen(float16 v) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#endif
  uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return as_float(sign | ((magnitude << 13) + 0x38000000u));
  return as_float(sign | as_uint(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f));
}
DR_HD float16 narrow_f16(float v) {
#ifdef __CUDA_ARCH__
  float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
  return narrow;
#endif
  uint32_t b = as_uint(v), sign = (b >> 16) & 0x8000u;
  b &= 0x7fffffffu;
  if (b > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (b >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or more
  if (b >= 0x38800000u) return {static_cast<uint16_t>(sign | ((b - 0x38000000u + 0xfffu + ((b >> 13) & 1u)) >> 13))};
  // Below the least normal half: adding 0.5 leaves |v| / 2^-24, rounded to nearest even, in the low bits.
  return {static_cast<uint16_t>(sign | (as_uint(as_float(b) + 0.5f) - 0x3f000000u))};
}

// One access to memory. On a GPU it is a streaming access to global memory, since each kernel touches an element once.
// bench/gpu/tune.py measures others.
#ifndef DR_CUDA_LOAD
#define DR_CUDA_LOAD __ldcs
#endif
#ifndef DR_CUDA_STORE
#define DR_CUDA_STORE __stcs
#endif
template <class W>
DR_HD W fetch(const W* p) {
#ifdef __CUDA_ARCH__
  return DR_CUDA_LOAD(p);
#else
  return *p;
#endif
}
template <class W>
DR_HD void put(W* p, W v) {
#ifdef __CUDA_ARCH__
  DR_CUDA_STORE(p, v);
#else
  *p = v;
#endif
}
DR_HD bfloat16 fetch(const bfloat16* p) { return {fetch(&p->bits)}; }
DR_HD float16 fetch(const float16* p) { return {fetch(&p->bits)}; }
DR_HD void put(bfloat16* p, bfloat16 v) { put(&p->bits, v.bits); }
DR_HD void put(float16* p, float16 v) { put(&p->bits, v.bits); }

// Conversion of a weight to the type computed in, and back.
template <class T>
struct Convert {
  static DR_HD T wide(T v) { return v; }
  static DR_HD T narrow(T v) { return v; }
};
template <>
struct Convert<bfloat16> {
  static DR_HD float wide(bfloat16 v) { return widen(v); }
  static DR_HD bfloat16 narrow(float v) { return narrow_bf16(v); }
};
template <>
struct Convert<float16> {
  static DR_HD float wide(float16 v) { return widen(v); }
  static DR_HD float16 narrow(float v) { return narrow_f16(v); }
};

// load<V>(p) and store(p, v) convert between the type in memory and the type computed in.
template <class V, class P>
struct Memory {
  static DR_HD V load(const P* p) { return Convert<P>::wide(fetch(p)); }
  static DR_HD void store(P* p, V v) { put(p, Convert<P>::narrow(v)); }
};
template <>
struct Memory<double, float> {
  static DR_HD double load(const float* p) { return fetch(p); }
};

template <class V, class P>
DR_HD V load(const P* p) {
  return Memory<V, P>::load(p);
}
template <class V, class P>
DR_HD void store(P* p, V v) {
  Memory<V, P>::store(p, v);
}

// v as a weight of type P would hold it.
template <class P, class V>
DR_HD V round_to(V v) {
  P narrow[sizeof(V) / sizeof(typename Compute<P>::type)];
  Memory<V, P>::store(narrow, v);
  return Memory<V, P>::load(narrow);
}
template <class P>
DR_HD typename Compute<P>::type round_to(typename Compute<P>::type v) {
  return Convert<P>::wide(Convert<P>::narrow(v));
}

// x where the two weights are equal, else w: see take_x in update.h.
template <class T>
DR_HD T where_equal(T a, T b, T x, T w) {
  return a == b ? x : w;
}

// Stochastic rounding to bfloat16: kernels/noise.py, round_stochastically.
DR_HD bfloat16 narrow_bf16(float v, uint32_t word) {
  uint32_t b = as_uint(v);
  if (v != v) return {0x7fc0};
  return {static_cast<uint16_t>((b + (word & 0xffffu)) >> 16)};
}

}  // namespace deeprelax::DR_ISA
