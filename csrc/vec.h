// The names of scalar.h for SIMD vectors of the instruction set that this file is compiled for. Arithmetic comes from
// the compiler's vector extension (g++ and clang); what it has no operator for is spelled out per instruction set.
#pragma once

#include "scalar.h"

#if defined(__AVX512F__)
#define DR_BYTES 64
#elif defined(__AVX2__)
#define DR_BYTES 32
#else
#define DR_BYTES 16
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace deeprelax::DR_ISA {

constexpr int kLanes = DR_BYTES / 4;  // float lanes
using F = float __attribute__((vector_size(DR_BYTES)));
using I = int32_t __attribute__((vector_size(DR_BYTES)));
using U = uint32_t __attribute__((vector_size(DR_BYTES)));
using D = double __attribute__((vector_size(DR_BYTES)));
using W = uint64_t __attribute__((vector_size(DR_BYTES)));
using HalfF = float __attribute__((vector_size(DR_BYTES / 2)));
using H = uint16_t __attribute__((vector_size(DR_BYTES / 2)));

template <>
struct Lanes<F> {
  using Int = I;
};

// The vector type that a scalar type is computed in.
template <class T>
struct Vector;
template <>
struct Vector<float> {
  using type = F;
};
template <>
struct Vector<double> {
  using type = D;
};

DR_HD F to_float(I v) { return __builtin_convertvector(v, F); }
DR_HD U as_uint(F v) { return (U)v; }
DR_HD F as_float(U v) { return (F)v; }

#if defined(__AVX512F__)
DR_HD F square_root(F v) { return (F)_mm512_sqrt_ps((__m512)v); }
DR_HD D square_root(D v) { return (D)_mm512_sqrt_pd((__m512d)v); }
DR_HD F by_top_bit(U bits, F a, F b) {
  return (F)_mm512_mask_blend_ps(_mm512_cmplt_epi32_mask((__m512i)bits, _mm512_setzero_si512()), (__m512)b, (__m512)a);
}
DR_HD W mul32(W a, W b) { return (W)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
DR_HD F low_pairs(F a, F b) { return (F)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
DR_HD F high_pairs(F a, F b) { return (F)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
DR_HD F low_quads(F a, F b) { return (F)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
DR_HD F high_quads(F a, F b) { return (F)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }
DR_HD U even_odd(W even, W odd) { return (U)_mm512_mask_mov_epi32((__m512i)even, 0xAAAA, (__m512i)(odd << 32)); }
#elif defined(__AVX2__)
DR_HD F square_root(F v) { return (F)_mm256_sqrt_ps((__m256)v); }
DR_HD D square_root(D v) { return (D)_mm256_sqrt_pd((__m256d)v); }
DR_HD F by_top_bit(U bits, F a, F b) { return (F)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)bits); }
DR_HD W mul32(W a, W b) { return (W)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
DR_HD F low_pairs(F a, F b) { return (F)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
DR_HD F high_pairs(F a, F b) { return (F)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
DR_HD F low_quads(F a, F b) { return (F)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); }
DR_HD F high_quads(F a, F b) { return (F)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); }
DR_HD U even_odd(W even, W odd) { return (U)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xAA); }
#else
DR_HD F by_top_bit(U bits, F a, F b) { return ((I)bits < 0) ? a : b; }
DR_HD U even_odd(W even, W odd) { return (U)((even & uint64_t{0xffffffffu}) | (odd << 32)); }
#if defined(__x86_64__)
DR_HD F square_root(F v) { return (F)_mm_sqrt_ps((__m128)v); }
DR_HD D square_root(D v) { return (D)_mm_sqrt_pd((__m128d)v); }
DR_HD W mul32(W a, W b) { return (W)_mm_mul_epu32((__m128i)a, (__m128i)b); }
#elif defined(__ARM_NEON)
DR_HD F square_root(F v) { return (F)vsqrtq_f32((float32x4_t)v); }
DR_HD D square_root(D v) { return (D)vsqrtq_f64((float64x2_t)v); }
DR_HD W mul32(W a, W b) { return (W)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b)); }
#else
DR_HD F square_root(F v) { return F{std::sqrt(v[0]), std::sqrt(v[1]), std::sqrt(v[2]), std::sqrt(v[3])}; }
DR_HD D square_root(D v) { return D{std::sqrt(v[0]), std::sqrt(v[1])}; }
DR_HD W mul32(W a, W b) { return (a & uint64_t{0xffffffffu}) * (b & uint64_t{0xffffffffu}); }
#endif
DR_HD F low_pairs(F a, F b) { return F{a[0], b[0], a[1], b[1]}; }
DR_HD F high_pairs(F a, F b) { return F{a[2], b[2], a[3], b[3]}; }
DR_HD F low_quads(F a, F b) { return F{a[0], a[1], b[0], b[1]}; }
DR_HD F high_quads(F a, F b) { return F{a[2], a[3], b[2], b[3]}; }
#endif

DR_HD F root_of_normal(F v) { return square_root(v); }

// Unaligned loads and stores; weights and gradients are rarely aligned to a vector.
template <class V>
DR_HD V load_raw(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
DR_HD void store_raw(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <>
struct Memory<F, float> {
  static DR_HD F load(const float* p) { return load_raw<F>(p); }
  static DR_HD void store(float* p, F v) { store_raw(p, v); }
};
template <>
struct Memory<D, double> {
  static DR_HD D load(const double* p) { return load_raw<D>(p); }
  static DR_HD void store(double* p, D v) { store_raw(p, v); }
};
template <>
struct Memory<D, float> {
  static DR_HD D load(const float* p) { return __builtin_convertvector(load_raw<HalfF>(p), D); }
};
template <>
struct Memory<F, bfloat16> {
  static DR_HD F load(const bfloat16* p) { return (F)(__builtin_convertvector(load_raw<H>(p), U) << 16); }
  static DR_HD void store(bfloat16* p, F v) {
    const U b = (U)v;
    const U rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    const U quiet = U{} + 0x7fc0u;
    store_raw(p, __builtin_convertvector((U)(v != v ? quiet : rounded), H));
  }
};
template <>
struct Memory<F, float16> {
  static DR_HD F load(const float16* p) {
#if defined(__AVX512F__)
    return (F)_mm512_cvtph_ps(load_raw<__m256i>(p));
#elif defined(__F16C__)
    return (F)_mm256_cvtph_ps(load_raw<__m128i>(p));
#else
    F v;
    for (int i = 0; i < kLanes; ++i) v[i] = widen(p[i]);
    return v;
#endif
  }
  static DR_HD void store(float16* p, F v) {
#if defined(__AVX512F__)
    store_raw(p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    store_raw(p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) p[i] = narrow_f16(v[i]);
#endif
  }
};

DR_HD F where_equal(F a, F b, F x, F w) { return (a == b) ? x : w; }
DR_HD D where_equal(D a, D b, D x, D w) { return (a == b) ? x : w; }

// A non-temporal store, which does not read the line into the cache first; `p` must be aligned to a vector.
template <class P, class V>
DR_HD void store_past_cache(P* p, V v) {
  store(p, v);
}
#if defined(__AVX512F__)
DR_HD void store_past_cache(float* p, F v) { _mm512_stream_ps(p, (__m512)v); }
DR_HD void store_past_cache(double* p, D v) { _mm512_stream_pd(p, (__m512d)v); }
#elif defined(__AVX2__)
DR_HD void store_past_cache(float* p, F v) { _mm256_stream_ps(p, (__m256)v); }
DR_HD void store_past_cache(double* p, D v) { _mm256_stream_pd(p, (__m256d)v); }
#endif

// Makes such stores visible to other threads before they are told that the work is done.
DR_HD void finish_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace deeprelax::DR_ISA
