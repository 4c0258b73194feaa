// The yardstick of the benchmarks: a plain loop that moves the words of an inner call and computes almost nothing. Its
// speed is what memory allows for these accesses on this machine.
#include "cpu.h"

namespace deeprelax {

// Reads g and x, updates one or two buffers; with one, writes w without reading it (HJ, Heat), else updates w too.
void yardstick(const float* __restrict g, const float* __restrict x, float* __restrict average, float* __restrict w,
               bool update_w, int64_t begin, int64_t end) {
  if (update_w) {
    for (int64_t i = begin; i < end; ++i) {
      w[i] = w[i] - g[i];
      average[i] = average[i] + x[i];
    }
  } else {
    for (int64_t i = begin; i < end; ++i) {
      const float a = average[i] + g[i];
      average[i] = a;
      w[i] = x[i] - a;
    }
  }
}

}  // namespace deeprelax
