// The noise of one tile of the update loops.
#pragma once

#include "vec.h"

namespace deeprelax::DR_ISA {

constexpr int kGroup = 4 * kLanes;  // elements per vector of counters

// Elements between two refills of the noise buffer. Short, so that the memory is never idle for long: from 512 to 128
// a noisy call of Entropy-SGD takes 0.89 of the time with AVX-512 and 0.92 with AVX2; 64 is slower (AMD EPYC, Zen 4).
constexpr int64_t kTile = 128;

// Operands that the caller needs next. Their cache lines are prefetched while the noise is computed, which leaves the
// memory idle; the loop after it is bound by memory.
struct Ahead {
  const char* address[8];
  int64_t bytes[8];  // per group
  int count = 0;

  template <class E>
  void add(const E* p) {
    if (p) {
      address[count] = reinterpret_cast<const char*>(p);
      bytes[count++] = kGroup * static_cast<int64_t>(sizeof(E));
    }
  }
  DR_HD void fetch(int group) const {
    for (int s = 0; s < count; ++s)
      for (int64_t line = 0; line < bytes[s]; line += 64) __builtin_prefetch(address[s] + group * bytes[s] + line);
  }
};

constexpr int kMaxGroups = kTile / kGroup + 1;  // a tile that starts inside a counter's four elements

// kGroup * groups normals of parameter `index`, from element 4 * block on.
void fill_normals(float* out, Draw draw, uint32_t index, uint64_t block, int groups, const Ahead& ahead);

// The random words of stochastic rounding, in the order of the elements.
void fill_words(uint32_t* out, Draw draw, uint32_t index, uint64_t block, int groups);

}  // namespace deeprelax::DR_ISA
