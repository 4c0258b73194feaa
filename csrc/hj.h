// Section 6.2: p <- alpha p + (1 - alpha) g, taken at x - gamma p; with the last gradient of a cycle x <- x - eta p.
#pragma once

#include "clock.h"
#include "update.h"

namespace deeprelax::DR_ISA {

struct HJ {
  static constexpr const char* kName = "hj";
  static constexpr uint32_t kAlways = 0, kMay = 0;
  static constexpr uint32_t kUnread = 0;
  static constexpr bool kCounts = false;
  static constexpr bool writes_unread(uint32_t options) { return !(options & kFirst); }
  static constexpr int blocks(int weight_bytes, bool fast, uint32_t) {
    return weight_bytes == 8 ? 2 : weight_bytes == 4 && fast ? 4 : 3;
  }

  // kernels/scalars.py, hj.
  static DR_HD void derive(const Hyper& h, const CycleState& cycle, Scalars<double>& s) {
    s.alpha = h.alpha;
    s.one_minus_alpha = 1.0 - h.alpha;
    s.gamma = cycle.gamma;
    s.outer_step = cycle.lr;
    s.outer_scale = 1.0;
  }

  template <class P, class V, bool HasGrad, class Q, class C>
  static DR_HD void update(const Q& q, const C& c, int64_t i) {
    const bool first = c.has(kFirst), last = c.has(kLast);
    if (!HasGrad && !first && !last) return;

    V x{}, p{}, point{};
    Read<V, Q> w{}, g{};
    if (!first || kWide<P>) x = load<V>(q.x + i);
    if (!first) p = load<V>(q.acc + i);
    const V m = load_momentum<V>(q, c, i);
    if (first) w = q.template weight<V>(i);
    if constexpr (HasGrad) g = q.template grad<V>(i);

    if (first) {
      point = w;
      x = take_x<P>(x, point);
    }
    if constexpr (HasGrad) {
      V d = unscaled(V(g), c);
      // In one branch: a point that is live across two would take more registers than there are.
      if (c.has(kWeightDecay)) d = d + (first ? point : round_to<P>(x - p * c.gamma)) * c.weight_decay;
      if (first) {
        p = c.has(kWarmStart) ? d : d * c.one_minus_alpha;
      } else {
        p = average(p, d, c);
      }
    }
    if (last) {
      x = outer_step(q, c, i, x, p, m);
      q.set_weight(i, x);
      if (kWide<P>) store(q.x + i, x);
      return;
    }
    if (first) store(q.x + i, x);
    store(q.acc + i, p);
    if (HasGrad) q.set_unread_weight(i, x - p * c.gamma, c);
  }
};

}  // namespace deeprelax::DR_ISA
