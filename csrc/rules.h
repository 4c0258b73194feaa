// The update rules for one element or one vector of elements, in the order and with the names of kernels/eager.py.
// V is the type computed in (float, double or a vector of them), T its scalar, P the weight's type in memory.
#pragma once

#include "call.h"
#include "scalar.h"

namespace deeprelax::DR_ISA {

// The outer step on a force: kernels/calls.py, Outer.
template <class T>
struct Outer {
  T step, scale, lr, momentum;
  bool has_momentum, nesterov;
};

// What kernels/settings.py derives, rounded to T. One struct for all rules: each reads what its equation names.
template <class T>
struct Scalars {
  static constexpr bool kPastCache = false;
  T inner_lr, inv_gamma, pull, denominator, alpha, one_minus_alpha, gamma, weight_decay, inner_momentum, noise_scale,
      inv_scale;
  bool first, last, has_noise, maximize, has_weight_decay, implicit, has_inner_momentum, inner_nesterov, fresh_velocity,
      warm_start, read_param, take_param, scaled;
  Outer<T> outer;
};

template <class T>
DR_HD Scalars<T> scalars(const T* r, uint32_t flags) {
  return {r[kInnerLr],
          r[kInvGamma],
          r[kPull],
          r[kDenominator],
          r[kAlpha],
          r[kOneMinusAlpha],
          r[kGamma],
          r[kWeightDecay],
          r[kInnerMomentum],
          r[kNoiseScale],
          r[kInvScale],
          (flags & kFirst) != 0,
          (flags & kLast) != 0,
          (flags & kNoise) != 0,
          (flags & kMaximize) != 0,
          r[kWeightDecay] != 0,
          (flags & kImplicit) != 0,
          r[kInnerMomentum] != 0,
          (flags & kInnerNesterov) != 0,
          (flags & kFreshVelocity) != 0,
          (flags & kWarmStart) != 0,
          (flags & kReadParam) != 0,
          (flags & kTakeParam) != 0,
          r[kInvScale] != 1,
          {r[kOuterStep], r[kOuterScale], r[kOuterLr], r[kOuterMomentum], r[kOuterMomentum] != 0,
           (flags & kNesterov) != 0}};
}

DR_HD Scalars<float> scalars_of(const Numbers& n, float) { return scalars(n.narrow, n.flags); }
DR_HD Scalars<double> scalars_of(const Numbers& n, double) { return scalars(n.reals, n.flags); }

// The same with the place in the cycle known to the compiler.
template <class T, bool First, bool Last>
struct PhasedScalars : Scalars<T> {
  static constexpr bool first = First, last = Last;
  DR_HD explicit PhasedScalars(const Scalars<T>& c) : Scalars<T>(c) {}
};

// And with every option of the inner update off: the loops then hold arithmetic only. PastCache: weights that are
// written but not read go to memory directly, which spares reading their lines first.
template <class T, bool First, bool Last, bool Noise, bool PastCache = false>
struct PlainScalars : PhasedScalars<T, First, Last> {
  static constexpr bool kPastCache = PastCache, has_noise = Noise;
  static constexpr bool maximize = false, has_weight_decay = false, implicit = false, has_inner_momentum = false,
                        warm_start = false, take_param = false, scaled = false;
  using PhasedScalars<T, First, Last>::PhasedScalars;
};

template <bool Noise, class T>
DR_HD bool is_plain(const Scalars<T>& c) {
  return !(c.maximize || c.has_weight_decay || c.implicit || c.has_inner_momentum || c.warm_start || c.take_param ||
           c.scaled || c.has_noise != Noise);
}

// g unscaled, with the sign of `maximize` and the weight decay of the point w where it was taken.
template <class V, class S>
DR_HD V force(V g, V w, const S& c) {
  if (c.scaled) g = g * c.inv_scale;
  if (c.maximize) g = -g;
  if (c.has_weight_decay) g = g + w * c.weight_decay;
  return g;
}

// torch.optim.SGD's momentum: m becomes the new buffer, the direction is returned.
template <class V, class T>
DR_HD V momentum_step(V& m, V d, T momentum, bool nesterov) {
  m = m * momentum + d;
  return nesterov ? d + m * momentum : m;
}

// x after the outer update with force f (section 6: x - (eta/gamma)(x - z), x - eta p, x - (eta/L) s).
template <class V, class T>
DR_HD V outer_step(V x, V f, V& m, const Outer<T>& c) {
  if (!c.has_momentum) return x - f * c.step;
  return x - momentum_step(m, f * c.scale, c.momentum, c.nesterov) * c.lr;
}

// x at the start of a cycle: what the weight holds, or the state's wider value if that rounds to the weight.
template <class P, class V>
DR_HD V take_x(V x, V w) {
  return where_equal(round_to<P>(x), w, x, w);
}

// Section 6.1: y <- y - eta'(g + (y - x)/gamma) + sqrt(eta'/beta) n, or its implicit form. n is not read without noise.
template <class V, class S>
DR_HD V entropy_inner(V y, V x, V d, V n, V& velocity, const S& c) {
  if (!c.first && !c.implicit) d = d + (y - x) * c.inv_gamma;
  if (c.has_inner_momentum) {
    velocity = c.fresh_velocity ? d : velocity * c.inner_momentum + d;
    d = c.inner_nesterov ? d + velocity * c.inner_momentum : velocity;
  }
  y = y - d * c.inner_lr;
  if (c.implicit) y = y + x * c.pull;
  if (c.has_noise) y = y + n * c.noise_scale;
  if (c.implicit) y = y / c.denominator;
  return y;
}

// z <- alpha z + (1 - alpha) y, also HJ's p <- alpha p + (1 - alpha) g.
template <class V, class S>
DR_HD V average(V old_average, V value, const S& c) {
  return old_average * c.alpha + value * c.one_minus_alpha;
}

}  // namespace deeprelax::DR_ISA
