// Fills a tile with normals or with random words, a vector of Philox counters at a time.
#pragma once

#include "vec.h"  // before the templates that use its overloads: vector types have no namespace to look them up in

#include "normal.h"
#include "philox.h"

namespace deeprelax::DR_ISA {

constexpr int kGroup = 4 * kLanes;  // elements that one vector of counters serves

// Counters are dealt to the lanes so that the two unpacking steps at the end put the normals into memory order with no
// shuffle across 128-bit parts: lane i of part q has counter parts * i + q.
template <int kOdd>
DR_HD W lane_counters() {
  W counters;
  for (int j = 0; j < kLanes / 2; ++j) {
    const int lane = 2 * j + kOdd;
    counters[j] = static_cast<uint64_t>((kLanes / 4) * (lane % 4) + lane / 4);
  }
  return counters;
}

DR_HD void philox_group(Stream stream, uint32_t index, uint64_t block, uint32_t stream_bit, U words[4]) {
  W even[4], odd[4];
  even[0] = lane_counters<0>() + block;
  odd[0] = lane_counters<1>() + block;
  even[1] = (even[0] >> 32) | static_cast<uint64_t>(stream_bit);
  odd[1] = (odd[0] >> 32) | static_cast<uint64_t>(stream_bit);
  even[2] = odd[2] = W{} + static_cast<uint64_t>(index);
  even[3] = odd[3] = W{} + static_cast<uint64_t>(stream.step);
  philox(even[0], even[1], even[2], even[3], stream.key0, stream.key1);
  philox(odd[0], odd[1], odd[2], odd[3], stream.key0, stream.key1);
  for (int i = 0; i < 4; ++i) words[i] = even_odd(even[i], odd[i]);
}

// Four vectors, lane = counter, to the order in memory: element 4 counter + vector.
DR_HD void store_group(float* out, F n0, F n1, F n2, F n3) {
  const F a = low_pairs(n0, n1), b = low_pairs(n2, n3), c = high_pairs(n0, n1), d = high_pairs(n2, n3);
  store(out, low_quads(a, b));
  store(out + kLanes, high_quads(a, b));
  store(out + 2 * kLanes, low_quads(c, d));
  store(out + 3 * kLanes, high_quads(c, d));
}

// `groups` times kGroup normals from element 4 block on.
static __attribute__((noinline)) void fill_normals(float* out, Stream stream, uint32_t index, uint64_t block, int groups) {
  for (int k = 0; k < groups; ++k, block += kLanes, out += kGroup) {
    U w[4];
    philox_group(stream, index, block, 0u, w);
    F n0, n1, n2, n3;
    box_muller(w[0], w[1], n0, n1);
    box_muller(w[2], w[3], n2, n3);
    store_group(out, n0, n1, n2, n3);
  }
}

// The random words of stochastic rounding, bit for bit in a float's place.
static __attribute__((noinline)) void fill_words(uint32_t* out, Stream stream, uint32_t index, uint64_t block, int groups) {
  for (int k = 0; k < groups; ++k, block += kLanes, out += kGroup) {
    U w[4];
    philox_group(stream, index, block, kRoundingStream, w);
    store_group(reinterpret_cast<float*>(out), as_float(w[0]), as_float(w[1]), as_float(w[2]), as_float(w[3]));
  }
}

}  // namespace deeprelax::DR_ISA
