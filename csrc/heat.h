// Section 6.3, eq. 26: s <- s + g, taken at x + n with n ~ N(0, gamma I), new in each call; with the last gradient of a
// cycle x <- x - (eta/L) s.
#pragma once

#include "clock.h"
#include "update.h"

namespace deeprelax::DR_ISA {

struct Heat {
  static constexpr const char* kName = "heat";
  static constexpr uint32_t kAlways = kNoise, kMay = 0;
  static constexpr uint32_t kUnread = 0;
  static constexpr bool kCounts = false;
  static constexpr bool writes_unread(uint32_t) { return true; }
  static constexpr int blocks(int weight_bytes, bool fast, uint32_t) {
    if (fast) return weight_bytes == 4 ? 4 : 2;
    return weight_bytes == 8 ? 2 : 3;
  }

  // kernels/scalars.py, heat. The noise is that of the next gradient.
  static DR_HD void derive(const Hyper&, const CycleState& cycle, Scalars<double>& s) {
    const double steps = static_cast<double>(cycle.cycle_steps);
    s.noise_scale = noise_scale(cycle.next_gamma, 1.0);
    s.outer_step = cycle.lr / steps;
    s.outer_scale = 1.0 / steps;
    if (cycle.fresh) s.flags |= kTakeParam;
    s.step += 1;
  }

  template <class P, class V, bool HasGrad, class Q, class C>
  static DR_HD void update(const Q& q, const C& c, int64_t i) {
    const bool first = c.has(kFirst), last = c.has(kLast), take_param = c.has(kTakeParam);

    V x{}, s{}, point{}, n{};
    Read<V, Q> w{}, g{};
    if (!take_param || kWide<P>) x = load<V>(q.x + i);
    if (!first) s = load<V>(q.acc + i);
    const V m = load_momentum<V>(q, c, i);
    if (take_param || (HasGrad && c.has(kWeightDecay))) w = q.template weight<V>(i);
    if constexpr (HasGrad) {
      g = q.template grad<V>(i);
      n = q.template normals<V>(i);
    }

    if (take_param || c.has(kWeightDecay)) point = w;
    if (take_param) x = take_x<P>(x, point);
    if constexpr (HasGrad) {
      const V d = force(V(g), point, c);
      s = first ? d : s + d;
    }
    if (last) {
      x = outer_step(q, c, i, x, s, m);
    } else {
      store(q.acc + i, s);
    }
    if (last || take_param) store(q.x + i, x);
    if constexpr (HasGrad) {
      q.set_unread_weight(i, x + n * c.noise_scale, c);
    } else {
      q.set_unread_weight(i, x, c);
    }
  }
};

}  // namespace deeprelax::DR_ISA
