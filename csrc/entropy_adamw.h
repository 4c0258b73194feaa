// AdamW inside Entropy-SGD's two loops: m <- beta1 m + (1 - beta1) d and v <- beta2 v + (1 - beta2) d^2 with d = g + (y
// - x) / gamma; y <- (1 - eta' lambda) y - eta' m^ / (sqrt(v^) + epsilon) + sqrt(eta'/beta) n; z <- alpha z + (1 -
// alpha) y; with the last gradient of a cycle x <- an outer step on x - z.
#pragma once

#include "clock.h"
#include "update.h"

namespace deeprelax::DR_ISA {

struct EntropyAdamW {
  static constexpr const char* kName = "entropy_adamw";
  static constexpr uint32_t kAlways = 0, kMay = kNoise | kStochasticRounding;
  static constexpr uint32_t kUnread = kWeightDecay;  // it is in `decay`, which may be 1
  static constexpr bool kCounts = true;
  static constexpr bool writes_unread(uint32_t) { return false; }
  static constexpr int blocks(int weight_bytes, bool fast, uint32_t on) {
    if (weight_bytes == 8) return 1;
    return weight_bytes == 4 && fast && !(on & kNoise) ? 3 : 2;
  }

  // kernels/scalars.py, entropy_adamw.
  static DR_HD void derive(const Hyper& h, const CycleState& cycle, Scalars<double>& s) {
    s.inner_lr = cycle.inner_lr;
    s.inv_gamma = 1.0 / cycle.gamma;
    s.alpha = h.alpha;
    s.one_minus_alpha = 1.0 - h.alpha;
    s.noise_scale = noise_scale(cycle.inner_lr, h.temperature);
    s.outer_step = 1.0 - cycle.lr;
    s.outer_scale = 1.0;
    s.beta1 = h.beta1;
    s.one_minus_beta1 = 1.0 - h.beta1;
    s.beta2 = h.beta2;
    s.one_minus_beta2 = 1.0 - h.beta2;
    s.epsilon = h.epsilon;
    s.decay = 1.0 - cycle.inner_lr * h.weight_decay;
    s.wide_rate = cycle.inner_lr;
    s.wide_beta1 = h.beta1;
    s.wide_beta2 = h.beta2;
    s.count = static_cast<double>(cycle.step + 1);
    const BiasCorrection<double> b(s, cycle.step + 1);
    s.step_size = b.step_size;
    s.inv_root_bias2 = b.inv_root_bias2;
    if (s.inv_gamma != 0) s.flags |= kPull;
    if (h.alpha != 0) s.flags |= kAverage;
  }

  // y is the float32 inner point of a bf16 or fp16 weight; with stochastic rounding, and for other weights, the weight
  // is y itself. m and v are AdamW's averages, b the outer momentum. z is not kept if alpha is 0.
  template <class P, class V, bool HasGrad, class Q, class C>
  static DR_HD void update(const Q& q, const C& c, int64_t i) {
    constexpr bool kHasY = kWide<P> && !C::may(kStochasticRounding);
    const bool first = c.has(kFirst), last = c.has(kLast), pull = c.has(kPull), averages = c.has(kAverage);
    if (!HasGrad && !first && !last) return;

    V x{}, y{}, z{}, m{}, v{};
    Read<V, Q> w{}, g{};
    const bool reads_y = !first && (HasGrad || !averages);
    if constexpr (HasGrad) {
      m = load<V>(q.velocity + i);
      v = load<V>(q.square + i);
    }
    if (first ? kWide<P> : last || pull) x = load<V>(q.x + i);
    if (kHasY && reads_y) y = load<V>(q.y + i);
    if (!first && averages) z = load<V>(q.acc + i);
    V b = load_momentum<V>(q, c, i);
    if (first || (!kHasY && reads_y)) w = q.template weight<V>(i);
    if constexpr (HasGrad) g = q.template grad<V>(i);

    if (first) {
      const V point = w;
      x = y = take_x<P>(x, point);
    } else if (!kHasY && reads_y) {
      y = w;
    }
    if (first || !averages) z = y;
    if constexpr (HasGrad) {
      V d = unscaled(V(g), c);
      if (!first && pull) d = d + (y - x) * c.inv_gamma;
      m = m * c.beta1 + d * c.one_minus_beta1;
      v = v * c.beta2 + d * d * c.one_minus_beta2;
      store(q.velocity + i, m);
      store(q.square + i, v);
      y = y * c.decay - m / (square_root(v) * q.bias.inv_root_bias2 + c.epsilon) * q.bias.step_size;
      if (C::may(kNoise) && c.has(kNoise)) y = y + q.template normals<V>(i) * c.noise_scale;
      z = averages ? average(z, y, c) : y;
    }
    if (last) {
      // This form, without momentum, makes x exactly z for eta = 1.
      x = c.has(kMomentum) ? outer_step(q, c, i, x, x - z, b) : z + (x - z) * c.outer_step;
      q.set_weight(i, x);
      if (kWide<P>) store(q.x + i, x);
      return;
    }
    if (first) store(q.x + i, x);
    if (averages) store(q.acc + i, z);
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
