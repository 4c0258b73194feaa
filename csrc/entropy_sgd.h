// Section 6.1: y <- y - eta'(g + (y - x)/gamma) + sqrt(eta'/beta) n, or its implicit form; z <- alpha z + (1 - alpha)
// y; with the last gradient of a cycle x <- x - (eta/gamma)(x - z).
#pragma once

#include "clock.h"
#include "update.h"

namespace deeprelax::DR_ISA {

struct EntropySGD {
  static constexpr const char* kName = "entropy_sgd";
  static constexpr uint32_t kAlways = 0, kMay = kNoise | kStochasticRounding;
  static constexpr uint32_t kUnread = 0;
  static constexpr bool kCounts = false;
  static constexpr bool writes_unread(uint32_t) { return false; }
  static constexpr int blocks(int weight_bytes, bool fast, uint32_t on) {
    if (weight_bytes == 8) return 2;
    if (fast) return (weight_bytes == 4 ? 4 : 3) - (on & kNoise ? 1 : 0);
    return weight_bytes == 4 && !(on & kNoise) ? 3 : 2;
  }

  // kernels/scalars.py, entropy_sgd.
  static DR_HD void derive(const Hyper& h, const CycleState& cycle, Scalars<double>& s) {
    const bool absorb = (h.flags & kAbsorbGamma) != 0;
    s.inner_lr = cycle.inner_lr;
    s.inv_gamma = 1.0 / cycle.gamma;
    s.pull = cycle.inner_lr / cycle.gamma;
    s.denominator = 1.0 + cycle.inner_lr / cycle.gamma;
    s.alpha = h.alpha;
    s.one_minus_alpha = 1.0 - h.alpha;
    s.inner_momentum = h.inner_momentum;
    s.noise_scale = noise_scale(cycle.inner_lr, h.temperature);
    s.outer_step = absorb ? cycle.lr : cycle.lr / cycle.gamma;
    s.outer_scale = absorb ? 1.0 : 1.0 / cycle.gamma;
    if (cycle.first && !(h.flags & kCarryInnerMomentum)) s.flags |= kFreshVelocity;
  }

  // y is the float32 inner point of a bf16 or fp16 weight; with stochastic rounding, and for other weights, the weight
  // is y itself. v is the inner momentum, n the noise.
  template <class P, class V, bool HasGrad, class Q, class C>
  static DR_HD void update(const Q& q, const C& c, int64_t i) {
    constexpr bool kHasY = kWide<P> && !C::may(kStochasticRounding);
    const bool first = c.has(kFirst), last = c.has(kLast), implicit = c.has(kImplicit);
    const bool momentum = c.has(kInnerMomentum), fresh = c.has(kFreshVelocity);
    if (!HasGrad && !first && !last) return;

    V x{}, y{}, z{}, v{}, n{}, point{};
    Read<V, Q> w{}, g{};
    if (!first || kWide<P>) x = load<V>(q.x + i);
    if (HasGrad && !first && kHasY) y = load<V>(q.y + i);
    if (!first) z = load<V>(q.acc + i);
    if (HasGrad && momentum && !fresh) v = load<V>(q.velocity + i);
    const V m = load_momentum<V>(q, c, i);
    if (first || (HasGrad && !kHasY)) w = q.template weight<V>(i);
    if constexpr (HasGrad) g = q.template grad<V>(i);
    if constexpr (HasGrad && C::may(kNoise)) {
      if (c.has(kNoise)) n = q.template normals<V>(i);
    }

    if (first) {
      point = w;
      x = y = z = take_x<P>(x, point);
    } else if (HasGrad && !kHasY) {
      y = w;
    }
    if constexpr (HasGrad) {
      // The weight is y rounded to its type: rounding y again avoids reading it.
      if (!first && c.has(kWeightDecay)) point = kHasY ? round_to<P>(y) : y;
      V d = force(V(g), point, c);
      if (!first && !implicit) d = d + (y - x) * c.inv_gamma;
      if (momentum) {
        v = fresh ? d : v * c.inner_momentum + d;
        d = c.has(kNesterov) ? d + v * c.inner_momentum : v;
        store(q.velocity + i, v);
      }
      y = y - d * c.inner_lr;
      if (implicit) y = y + x * c.pull;
      if (C::may(kNoise) && c.has(kNoise)) y = y + n * c.noise_scale;
      if (implicit) y = y / c.denominator;
      z = average(z, y, c);
    } else if (first && momentum && fresh) {
      store(q.velocity + i, V{});
    }
    if (last) {
      x = outer_step(q, c, i, x, x - z, m);
      q.set_weight(i, x);
      if (kWide<P>) store(q.x + i, x);  // else the weight is x from here on
      return;
    }
    if (first) store(q.x + i, x);
    store(q.acc + i, z);
    if (kHasY) store(q.y + i, y);
    if constexpr (!HasGrad) return;
    if constexpr (C::may(kStochasticRounding)) {
      q.set_weight_stochastically(i, y);
    } else {
      q.set_weight(i, y);
    }
  }
};

}  // namespace deeprelax::DR_ISA
