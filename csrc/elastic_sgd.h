// Eq. 3 on one worker: w <- w - eta'(g(w) + (w - x)/gamma) + sqrt(eta'/beta) n, or its implicit form, toward the centre
// x, which the workers move together between the calls. The first call of a run takes x from the weight.
#pragma once

#include "clock.h"
#include "update.h"

namespace deeprelax::DR_ISA {

struct ElasticSGD {
  static constexpr const char* kName = "elastic_sgd";
  static constexpr uint32_t kAlways = 0, kMay = kNoise | kStochasticRounding;
  static constexpr uint32_t kUnread = 0;
  static constexpr bool kCounts = false;
  static constexpr bool writes_unread(uint32_t) { return false; }
  static constexpr int blocks(int weight_bytes, bool fast, uint32_t on) {
    if (weight_bytes == 8) return 2;
    if (fast) return weight_bytes == 4 ? (on & kNoise ? 3 : 4) : (on & (kNoise | kStochasticRounding) ? 2 : 3);
    return weight_bytes == 4 && !(on & kNoise) ? 3 : 2;
  }

  // kernels/scalars.py, elastic_sgd.
  static DR_HD void derive(const Hyper& h, const CycleState& cycle, Scalars<double>& s) {
    s.inner_lr = cycle.inner_lr;
    s.inv_gamma = 1.0 / cycle.gamma;
    s.pull = cycle.inner_lr / cycle.gamma;
    s.denominator = 1.0 + cycle.inner_lr / cycle.gamma;
    s.inner_momentum = h.inner_momentum;
    s.noise_scale = noise_scale(cycle.inner_lr, h.temperature);
    if (cycle.first && !(h.flags & kCarryInnerMomentum)) s.flags |= kFreshVelocity;
    if (cycle.fresh) s.flags |= kTakeParam;
  }

  // y is the float32 point of a bf16 or fp16 weight; with stochastic rounding, and for other weights, the weight is y
  // itself. v is the inner momentum, n the noise.
  template <class P, class V, bool HasGrad, class Q, class C>
  static DR_HD void update(const Q& q, const C& c, int64_t i) {
    constexpr bool kHasY = kWide<P> && !C::may(kStochasticRounding);
    const bool take = c.has(kTakeParam), implicit = c.has(kImplicit);
    const bool momentum = c.has(kInnerMomentum), fresh = c.has(kFreshVelocity);
    if (!HasGrad && !take && !(momentum && fresh)) return;

    V x{}, y{}, v{}, n{}, point{};
    Read<V, Q> w{}, g{};
    if (HasGrad || kWide<P>) x = load<V>(q.x + i);
    if (HasGrad && !take && kHasY) y = load<V>(q.y + i);
    if (HasGrad && momentum && !fresh) v = load<V>(q.velocity + i);
    if (take || (HasGrad && !kHasY)) w = q.template weight<V>(i);
    if constexpr (HasGrad) g = q.template grad<V>(i);
    if constexpr (HasGrad && C::may(kNoise)) {
      if (c.has(kNoise)) n = q.template normals<V>(i);
    }

    if (take) {
      point = w;
      x = y = take_x<P>(x, point);
      store(q.x + i, x);
    } else if (HasGrad && !kHasY) {
      y = w;
    }
    if constexpr (!HasGrad) {
      if (momentum && fresh) store(q.velocity + i, V{});
      if (take && kHasY) store(q.y + i, y);
    } else {
      // The weight is y rounded to its type: rounding y again avoids reading it.
      if (!take && c.has(kWeightDecay)) point = kHasY ? round_to<P>(y) : y;
      V d = force(V(g), point, c);
      if (!implicit) d = d + (y - x) * c.inv_gamma;
      if (momentum) {
        v = fresh ? d : v * c.inner_momentum + d;
        d = c.has(kNesterov) ? d + v * c.inner_momentum : v;
        store(q.velocity + i, v);
      }
      y = y - d * c.inner_lr;
      if (implicit) y = y + x * c.pull;
      if (C::may(kNoise) && c.has(kNoise)) y = y + n * c.noise_scale;
      if (implicit) y = y / c.denominator;
      if (kHasY) store(q.y + i, y);
      if constexpr (C::may(kStochasticRounding)) {
        q.set_weight_stochastically(i, y);
      } else {
        q.set_weight(i, y);
      }
    }
  }
};

}  // namespace deeprelax::DR_ISA
