// The noise of one tile of the update loops.
#pragma once

#include "vec.h"

namespace deeprelax::DR_ISA {

constexpr int kGroup = 4 * kLanes;  // elements per vector of counters

// Elements between two refills of the noise buffer: so few that the processor computes the noise of one tile while the
// operands of the next arrive, which its own prefetchers ask for. With 512 the memory idles, 64 cost more in calls, and
// prefetch instructions slow the noise by more than they gain (AMD EPYC, Zen 4).
constexpr int64_t kTile = 128;

constexpr int kMaxGroups = kTile / kGroup + 1;  // a tile that starts inside a counter's four elements

// kGroup * groups normals of parameter `index`, from element 4 * block on.
void fill_normals(float* out, Draw draw, uint32_t index, uint64_t block, int groups);

// The random words of stochastic rounding, in the order of the elements.
void fill_words(uint32_t* out, Draw draw, uint32_t index, uint64_t block, int groups);

}  // namespace deeprelax::DR_ISA
