// The outer loop around another optimizer, whose inner point y is the weight: z <- alpha z + (1 - alpha) y after each
// of its steps, which take the place of the other rules' gradients; with the last of a cycle x <- an outer step on x -
// z.
#pragma once

#include "clock.h"
#include "update.h"

namespace deeprelax::DR_ISA {

struct Outer {
  static constexpr const char* kName = "outer";
  static constexpr uint32_t kAlways = 0, kMay = 0;
  static constexpr uint32_t kUnread = kUnscale | kMaximize | kWeightDecay;
  static constexpr bool kCounts = false;
  static constexpr bool writes_unread(uint32_t) { return false; }
  static constexpr int blocks(int weight_bytes, bool fast, uint32_t) {
    return weight_bytes == 8 ? 2 : weight_bytes == 4 && fast ? 4 : 3;
  }

  // kernels/scalars.py, outer.
  static DR_HD void derive(const Hyper& h, const CycleState& cycle, Scalars<double>& s) {
    s.alpha = h.alpha;
    s.one_minus_alpha = 1.0 - h.alpha;
    s.outer_step = 1.0 - cycle.lr;
    s.outer_scale = 1.0;
    if (h.alpha != 0) s.flags |= kAverage;
  }

  template <class P, class V, bool HasGrad, class Q, class C>
  static DR_HD void update(const Q& q, const C& c, int64_t i) {
    const bool first = c.has(kFirst), last = c.has(kLast), averages = c.has(kAverage);
    if (!last && !(HasGrad && averages)) return;

    V x{}, z{};
    Read<V, Q> w{};
    if (last || first) x = load<V>(q.x + i);
    if (averages && !(HasGrad && first)) z = load<V>(q.acc + i);
    const V b = load_momentum<V>(q, c, i);
    w = q.template weight<V>(i);

    const V y = w;
    if (!averages) {
      z = y;
    } else if (HasGrad) {
      z = average(first ? x : z, y, c);
    }
    if (last) {
      x = c.has(kMomentum) ? outer_step(q, c, i, x, x - z, b) : z + (x - z) * c.outer_step;
      q.set_weight(i, x);
      if (kWide<P>) store(q.x + i, x);
    } else {
      store(q.acc + i, z);
    }
  }
};

}  // namespace deeprelax::DR_ISA
