// The clock of a captured step (capturable=True): it lies on the device, and one thread derives from it the scalars of
// the call that follows, then advances it. kernels/settings.py is the reference, same names and same order.
#pragma once

#include <cmath>

#include "call.h"
#include "scalar.h"

namespace deeprelax::DR_ISA {

// kernels/clock.py has this layout.
struct Clock {
  int64_t step, phase, cycle_steps, fresh, outer_step_happened, seed;
  double gamma, placed_gamma;  // placed_gamma: NaN where it is not known
};

// What stays on the host: the group's other hyper-parameters. kernels/native.py fills it.
struct Settings {
  int64_t inner_steps;
  double keep, momentum, weight_decay, alpha, temperature, inner_momentum;
  uint32_t flags;  // kMaximize, kImplicit, kNesterov (outer), kInnerNesterov, kStochasticRounding, kWarmStart
  bool absorb_gamma, carry_inner_momentum, missing;
};

// Where a value lies that a scheduler or a GradScaler writes.
struct Source {
  const void* at;
  bool is_double;

  DR_HD double value() const {
    if (!at) return 0.0;
    return is_double ? *static_cast<const double*>(at) : static_cast<double>(*static_cast<const float*>(at));
  }
};

struct Sources {
  Source lr, inner_lr;
  const float *grad_scale, *found_inf;  // null: there is no scaler
};

struct Derived {
  double reals[kReals] = {};
  uint32_t flags = 0;
  int64_t ahead = 0;  // of the noise's step counter
};

// The float32 square root of the float32 product.
DR_HD double noise_scale(double a, double b) {
  return static_cast<double>(square_root(static_cast<float>(a) * static_cast<float>(b)));
}

DR_HD void outer(Derived& d, const Settings& s, double lr, double step, double scale) {
  d.reals[kOuterStep] = step;
  d.reals[kOuterScale] = scale;
  d.reals[kOuterLr] = lr;
  d.reals[kOuterMomentum] = s.momentum;
}

DR_HD void entropy_sgd(Derived& d, const Settings& s, double gamma, double lr, double inner_lr, bool first) {
  d.reals[kInnerLr] = inner_lr;
  d.reals[kInvGamma] = 1.0 / gamma;
  d.reals[kPull] = inner_lr / gamma;
  d.reals[kDenominator] = 1.0 + inner_lr / gamma;
  d.reals[kAlpha] = s.alpha;
  d.reals[kOneMinusAlpha] = 1.0 - s.alpha;
  d.reals[kInnerMomentum] = s.inner_momentum;
  d.reals[kNoiseScale] = noise_scale(inner_lr, s.temperature);
  outer(d, s, lr, s.absorb_gamma ? lr : lr / gamma, s.absorb_gamma ? 1.0 : 1.0 / gamma);
  if (first && !s.carry_inner_momentum) d.flags |= kFreshVelocity;
}

DR_HD void hj(Derived& d, const Settings& s, double gamma, double placed_gamma, double lr) {
  d.reals[kAlpha] = s.alpha;
  d.reals[kOneMinusAlpha] = 1.0 - s.alpha;
  d.reals[kGamma] = gamma;
  outer(d, s, lr, lr, 1.0);
  if (s.weight_decay != 0 && gamma != placed_gamma) d.flags |= kReadParam;
}

DR_HD void heat(Derived& d, const Settings& s, double next_gamma, double lr, int64_t steps, bool fresh) {
  d.reals[kNoiseScale] = noise_scale(next_gamma, 1.0);
  outer(d, s, lr, lr / static_cast<double>(steps), 1.0 / static_cast<double>(steps));
  if (fresh) d.flags |= kTakeParam;
  d.ahead = 1;
}

// Derives the scalars of the next call and advances the clock; with infinities in the gradients neither.
DR_HD void tick(Rule rule, const Settings& s, const Sources& from, Clock& clock, Numbers& out) {
  clock.outer_step_happened = 0;
  if (from.found_inf && *from.found_inf != 0) {
    out.flags = kSkip;
    return;
  }
  if (clock.phase == 0) clock.cycle_steps = s.inner_steps;
  const bool first = clock.fresh || clock.phase == 0, last = clock.phase + 1 >= clock.cycle_steps;
  const double gamma = clock.gamma, next_gamma = last ? gamma * s.keep : gamma, lr = from.lr.value();
  Derived d;
  d.flags = s.flags | (first ? kFirst : 0u) | (last ? kLast : 0u);
  switch (rule) {
    case Rule::kEntropySGD:
      entropy_sgd(d, s, gamma, lr, from.inner_lr.value(), first);
      break;
    case Rule::kHJ:
      hj(d, s, gamma, clock.placed_gamma, lr);
      break;
    case Rule::kHeat:
      heat(d, s, next_gamma, lr, clock.cycle_steps, clock.fresh != 0);
      break;
  }
  d.reals[kWeightDecay] = s.weight_decay;
  d.reals[kInvScale] = from.grad_scale ? static_cast<float>(1.0 / static_cast<double>(*from.grad_scale)) : 1.0;
  if (d.reals[kNoiseScale] != 0) d.flags |= kNoise;
  for (int k = 0; k < kReals; ++k) {
    out.reals[k] = d.reals[k];
    out.narrow[k] = static_cast<float>(d.reals[k]);
  }
  out.flags = d.flags;
  out.key0 = static_cast<uint32_t>(clock.seed);
  out.key1 = static_cast<uint32_t>(static_cast<uint64_t>(clock.seed) >> 32);
  out.step = static_cast<uint32_t>(clock.step + d.ahead);
  if (!(first || gamma == clock.placed_gamma || !s.missing)) {
    clock.placed_gamma = NAN;
  } else {
    clock.placed_gamma = gamma;
  }
  clock.gamma = next_gamma;
  clock.step += 1;
  clock.phase = last ? 0 : clock.phase + 1;
  clock.fresh = 0;
  clock.outer_step_happened = last;
}

}  // namespace deeprelax::DR_ISA
