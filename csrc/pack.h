// N elements of one thread, with the operators that the rules use. On a GPU, a pack of 16 bytes or a multiple of them
// moves in 16-byte accesses.
#pragma once

#ifndef __CUDA_ARCH__
#include <stdexcept>
#endif

#include "scalar.h"

namespace deeprelax::DR_ISA {

// In emulation, a 16-byte access fails where it would fail on a GPU.
DR_HD void check_aligned(const void* p) {
#ifndef __CUDA_ARCH__
  if (reinterpret_cast<uintptr_t>(p) % 16) throw std::logic_error("16 bytes at an address that is no multiple of 16");
#endif
}

template <class T, int N>
struct Pack {
  T v[N];

  friend DR_HD Pack operator+(Pack a, Pack b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] + b.v[k];
    return a;
  }
  friend DR_HD Pack operator-(Pack a, Pack b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] - b.v[k];
    return a;
  }
  friend DR_HD Pack operator*(Pack a, T b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] * b;
    return a;
  }
  friend DR_HD Pack operator/(Pack a, T b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] / b;
    return a;
  }
  friend DR_HD Pack operator+(Pack a, T b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] + b;
    return a;
  }
  friend DR_HD Pack operator*(Pack a, Pack b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] * b.v[k];
    return a;
  }
  friend DR_HD Pack operator/(Pack a, Pack b) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = a.v[k] / b.v[k];
    return a;
  }
  friend DR_HD Pack operator-(Pack a) {
    DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = -a.v[k];
    return a;
  }
};

template <class T, int N>
DR_HD Pack<T, N> where_equal(Pack<T, N> a, Pack<T, N> b, Pack<T, N> x, Pack<T, N> w) {
  DR_UNROLL for (int k = 0; k < N; ++k) x.v[k] = a.v[k] == b.v[k] ? x.v[k] : w.v[k];
  return x;
}

template <class T, int N>
DR_HD Pack<T, N> square_root(Pack<T, N> a) {
  DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = square_root(a.v[k]);
  return a;
}

template <class P, class T, int N>
DR_HD Pack<T, N> round_to(Pack<T, N> a) {
  DR_UNROLL for (int k = 0; k < N; ++k) a.v[k] = round_to<P>(a.v[k]);
  return a;
}

// Values of type P in one access of 16 bytes. Narrow ones are parts of 32-bit words: arrays of 16-bit registers would
// be split into smaller accesses.
template <class P>
struct Line {
  static constexpr int kSize = 8;
  uint4 words = {};

  DR_HD uint32_t& word(int k) { return k < 4 ? (k < 2 ? words.x : words.y) : (k < 6 ? words.z : words.w); }
  DR_HD P get(int k) const { return {static_cast<uint16_t>(Line(*this).word(k) >> (16 * (k % 2)))}; }
  DR_HD void set(int k, P value) { word(k) |= static_cast<uint32_t>(value.bits) << (16 * (k % 2)); }
};
template <>
struct Line<float> {
  static constexpr int kSize = 4;
  float4 words;

  DR_HD float get(int k) const { return k < 2 ? (k == 0 ? words.x : words.y) : (k == 2 ? words.z : words.w); }
  DR_HD void set(int k, float v) { (k < 2 ? (k == 0 ? words.x : words.y) : (k == 2 ? words.z : words.w)) = v; }
};
template <>
struct Line<double> {
  static constexpr int kSize = 2;
  double2 words;

  DR_HD double get(int k) const { return k == 0 ? words.x : words.y; }
  DR_HD void set(int k, double v) { (k == 0 ? words.x : words.y) = v; }
};

// A pack in its type in memory, read in 16-byte accesses if its address is a multiple of 16 (`aligned`).
template <class T, class P, int N>
struct Lines {
  static constexpr int kSize = Line<P>::kSize;
  static_assert(N % kSize == 0, "whole accesses");
  Line<P> lines[N / kSize] = {};

  static DR_HD Lines load(const P* p, bool aligned) {
    using Words = decltype(Line<P>::words);
    Lines found;
    if (aligned) {
      check_aligned(p);
      DR_UNROLL for (int k = 0; k < N / kSize; ++k) {
        found.lines[k].words = fetch(reinterpret_cast<const Words*>(p) + k);
      }
    } else {
      DR_UNROLL for (int k = 0; k < N; ++k) found.lines[k / kSize].set(k % kSize, fetch(p + k));
    }
    return found;
  }
  DR_HD operator Pack<T, N>() const {
    Pack<T, N> pack;
    DR_UNROLL for (int k = 0; k < N; ++k) pack.v[k] = Convert<P>::wide(lines[k / kSize].get(k % kSize));
    return pack;
  }
};

// At an address that is a multiple of 16 bytes.
template <class T, class P, int N>
struct Memory<Pack<T, N>, P> {
  static constexpr int kSize = Line<P>::kSize;
  using Words = decltype(Line<P>::words);

  static DR_HD Pack<T, N> load(const P* p) { return Lines<T, P, N>::load(p, true); }
  static DR_HD void store(P* p, Pack<T, N> pack) {
    Pack<P, N> narrow;
    DR_UNROLL for (int k = 0; k < N; ++k) narrow.v[k] = Convert<P>::narrow(pack.v[k]);
    store_narrow(p, narrow);
  }
  static DR_HD void store_narrow(P* p, const Pack<P, N>& narrow) {
    check_aligned(p);
    DR_UNROLL for (int line = 0; line < N / kSize; ++line) {
      Line<P> made;
      DR_UNROLL for (int k = 0; k < kSize; ++k) made.set(k, narrow.v[line * kSize + k]);
      put(reinterpret_cast<Words*>(p) + line, made.words);
    }
  }
};

}  // namespace deeprelax::DR_ISA
