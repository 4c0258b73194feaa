// Philox4x32-10 (Salmon et al., SC 2011): the counter-based generator behind all noise. kernels/noise.py is the
// reference; the known-answer vectors of Random123 are the test.
#pragma once

#include "scalar.h"

namespace deeprelax::DR_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr uint32_t kRoundingBit = 0x80000000u;

// Ten rounds on the low halves of 64-bit lanes. The high halves hold garbage between the rounds, which saves a mask
// and, in vectors, the interleaving of even and odd products: mul32 reads low halves only.
template <class W>
DR_HD void philox(W& c0, W& c1, W& c2, W& c3, uint32_t k0, uint32_t k1) {
  DR_UNROLL for (int round = 0; round < 10; ++round) {
    const W p0 = mul32(c0, W{} + kPhiloxM0), p1 = mul32(c2, W{} + kPhiloxM1);
    c0 = (p1 >> 32) ^ (c1 ^ static_cast<uint64_t>(k0));
    c2 = (p0 >> 32) ^ (c3 ^ static_cast<uint64_t>(k1));
    c1 = p1;
    c3 = p0;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
}

// The four words of elements 4 block … 4 block + 3 of parameter `index`.
DR_HD void random_words(Draw draw, uint32_t index, uint64_t block, uint32_t rounding_bit, uint32_t words[4]) {
  uint64_t c0 = block, c1 = (block >> 32) | rounding_bit, c2 = index, c3 = draw.step;
  philox(c0, c1, c2, c3, draw.key0, draw.key1);
  words[0] = static_cast<uint32_t>(c0);
  words[1] = static_cast<uint32_t>(c1);
  words[2] = static_cast<uint32_t>(c2);
  words[3] = static_cast<uint32_t>(c3);
}

}  // namespace deeprelax::DR_ISA
