// Fills a tile with normals or with random words, a vector of Philox counters at a time. Compiled once per instruction
// set: see setup.py.
#include "cpu_noise.h"  // first: its vector types have no namespace in which the templates' overloads would be found

#include "normal.h"
#include "philox.h"

namespace deeprelax::DR_ISA {

// Counters are assigned to the lanes so that the two unpacking steps at the end put the normals into memory order
// without a shuffle across 128-bit parts: lane i of part q has counter parts * i + q.
template <int kOdd>
DR_HD W lane_counters() {
  W counters;
  for (int j = 0; j < kLanes / 2; ++j) {
    const int lane = 2 * j + kOdd;
    counters[j] = static_cast<uint64_t>((kLanes / 4) * (lane % 4) + lane / 4);
  }
  return counters;
}

DR_HD void philox_group(Draw draw, uint32_t index, uint64_t block, uint32_t rounding_bit, U words[4]) {
  W even[4], odd[4];
  even[0] = lane_counters<0>() + block;
  odd[0] = lane_counters<1>() + block;
  even[1] = (even[0] >> 32) | static_cast<uint64_t>(rounding_bit);
  odd[1] = (odd[0] >> 32) | static_cast<uint64_t>(rounding_bit);
  even[2] = odd[2] = W{} + static_cast<uint64_t>(index);
  even[3] = odd[3] = W{} + static_cast<uint64_t>(draw.step);
  philox(even[0], even[1], even[2], even[3], draw.key0, draw.key1);
  philox(odd[0], odd[1], odd[2], odd[3], draw.key0, draw.key1);
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

// The words of several vectors of counters at once: the independent chains of two hide the multiplier's latency better
// than those of one. All counters of a parameter share the index, the step and the high half, so the first round's
// second product and the second round's first are constants.
template <int kGroups>
DR_HD void philox_groups(Draw draw, uint32_t index, uint64_t block, uint32_t high, U (*words)[4]) {
  const uint64_t mask = 0xffffffffu;
  uint32_t k0 = draw.key0, k1 = draw.key1;
  const uint64_t p1 = uint64_t{kPhiloxM1} * index;
  const uint64_t c0 = (p1 >> 32) ^ high ^ k0, c1 = p1 & mask, first = draw.step ^ k1;
  const uint64_t p0 = uint64_t{kPhiloxM0} * (c0 & mask);
  k0 += kPhiloxW0;
  k1 += kPhiloxW1;
  constexpr int kChains = 2 * kGroups;  // of the even and of the odd lanes
  W w0[kChains], w1[kChains], w2[kChains], w3[kChains];
#pragma GCC unroll 4
  for (int j = 0; j < kChains; ++j) {
    const W counter = (j % 2 ? lane_counters<1>() : lane_counters<0>()) + (block + j / 2 * uint64_t{kLanes});
    const W q0 = mul32(counter, W{} + uint64_t{kPhiloxM0});
    const W q1 = mul32((q0 >> 32) ^ first, W{} + uint64_t{kPhiloxM1});
    w0[j] = (q1 >> 32) ^ (c1 ^ k0);
    w1[j] = q1;
    w2[j] = q0 ^ ((p0 >> 32) ^ k1);
    w3[j] = W{} + (p0 & mask);
  }
#pragma GCC unroll 8
  for (int round = 2; round < 10; ++round) {
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) {
      const W q0 = mul32(w0[j], W{} + uint64_t{kPhiloxM0}), q1 = mul32(w2[j], W{} + uint64_t{kPhiloxM1});
      w0[j] = (q1 >> 32) ^ (w1[j] ^ uint64_t{k0});
      w2[j] = (q0 >> 32) ^ (w3[j] ^ uint64_t{k1});
      w1[j] = q1;
      w3[j] = q0;
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    words[g][0] = even_odd(w0[2 * g], w0[2 * g + 1]);
    words[g][1] = even_odd(w1[2 * g], w1[2 * g + 1]);
    words[g][2] = even_odd(w2[2 * g], w2[2 * g + 1]);
    words[g][3] = even_odd(w3[2 * g], w3[2 * g + 1]);
  }
}

// Words of `groups` vectors of counters from `block` on.
DR_HD void fill_groups(U (*words)[4], Draw draw, uint32_t index, uint64_t block, uint32_t rounding_bit, int groups) {
  const uint64_t last = block + static_cast<uint64_t>(groups) * kLanes;
  if (block >> 32 != last >> 32) {  // the high half changes inside: once in 2^34 elements
    for (int k = 0; k < groups; ++k, block += kLanes) philox_group(draw, index, block, rounding_bit, words[k]);
    return;
  }
  const uint32_t high = static_cast<uint32_t>(block >> 32) | rounding_bit;
  int k = 0;
  for (; k + 2 <= groups; k += 2, block += 2 * kLanes) philox_groups<2>(draw, index, block, high, words + k);
  if (k < groups) philox_groups<1>(draw, index, block, high, words + k);
}

void fill_normals(float* out, Draw draw, uint32_t index, uint64_t block, int groups) {
  U words[kMaxGroups][4];
  fill_groups(words, draw, index, block, 0u, groups);
  for (int k = 0; k < groups; ++k, out += kGroup) {
    F n0, n1, n2, n3;
    box_muller(words[k][0], words[k][1], n0, n1);
    box_muller(words[k][2], words[k][3], n2, n3);
    store_group(out, n0, n1, n2, n3);
  }
}

void fill_words(uint32_t* out, Draw draw, uint32_t index, uint64_t block, int groups) {
  U words[kMaxGroups][4];
  fill_groups(words, draw, index, block, kRoundingBit, groups);
  for (int k = 0; k < groups; ++k, out += kGroup) {
    const U* w = words[k];
    store_group(reinterpret_cast<float*>(out), as_float(w[0]), as_float(w[1]), as_float(w[2]), as_float(w[3]));
  }
}

// For tests: any start, any count.
void normals(float* out, uint32_t key0, uint32_t key1, uint32_t index, uint32_t step, int64_t start, int64_t count) {
  alignas(64) float group[kGroup];
  for (int64_t block = start / 4; 4 * block < start + count; block += kLanes) {
    fill_normals(group, {key0, key1, step}, index, static_cast<uint64_t>(block), 1);
    for (int i = 0; i < kGroup; ++i) {
      const int64_t k = 4 * block + i - start;
      if (k >= 0 && k < count) out[k] = group[i];
    }
  }
}

}  // namespace deeprelax::DR_ISA
