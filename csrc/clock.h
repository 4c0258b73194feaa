// The clock of a captured step (capturable=True), in device memory: one thread derives the scalars of the next call
// from it, then advances it. kernels/scalars.py and kernels/clock.py are the reference.
#pragma once

#include "options.h"

namespace deeprelax::DR_ISA {

DR_HD double read(const void* value, bool is_double) {
  if (!value) return 0.0;
  return is_double ? *static_cast<const double*>(value) : static_cast<double>(*static_cast<const float*>(value));
}

// Where a group stands in its cycle when a gradient arrives.
struct CycleState {
  double lr, inner_lr, gamma, next_gamma;
  int64_t step, cycle_steps;
  bool first, last, fresh;
};

// The float32 square root of the float32 product.
DR_HD double noise_scale(double a, double b) {
  return static_cast<double>(square_root(static_cast<float>(a) * static_cast<float>(b)));
}

// Derives the scalars of the next call of rule R and advances the clock; does neither if the gradients overflowed.
template <class R>
DR_HD void tick(const Hyper& h, const Sources& from, ClockWords& clock, DeviceScalars& out) {
  clock.outer_step_happened = 0;
  if (from.found_inf && *from.found_inf != 0) {
    out.wide.flags = out.narrow.flags = kSkip;
    return;
  }
  if (clock.phase == 0) {
    clock.cycle_steps = h.inner_steps;
    clock.cycle_gamma = clock.gamma;
  }
  const bool first = clock.fresh || clock.phase == 0, last = clock.phase + 1 >= clock.cycle_steps;
  const double gamma = clock.cycle_gamma, next_gamma = last ? clock.gamma * h.keep : gamma;
  const CycleState cycle{read(from.lr, from.lr_is_double),
                         read(from.inner_lr, from.inner_lr_is_double),
                         gamma,
                         next_gamma,
                         clock.step,
                         clock.cycle_steps,
                         first,
                         last,
                         clock.fresh != 0};
  Scalars<double> s{};
  s.flags = (h.flags & ~(kAbsorbGamma | kCarryInnerMomentum)) | (first ? kFirst : 0u) | (last ? kLast : 0u);
  s.key0 = static_cast<uint32_t>(clock.seed);
  s.key1 = static_cast<uint32_t>(static_cast<uint64_t>(clock.seed) >> 32) ^ static_cast<uint32_t>(clock.replica);
  s.step = static_cast<uint32_t>(clock.step);
  R::derive(h, cycle, s);
  s.lr = cycle.lr;
  s.momentum = h.momentum;
  s.weight_decay = h.weight_decay;
  s.inv_scale = from.grad_scale ? static_cast<float>(1.0 / static_cast<double>(*from.grad_scale)) : 1.0;
  if (s.noise_scale != 0) s.flags |= kNoise;
  s.flags = options_of(s);
  out.wide = s;
  out.narrow = rounded<float>(s);
  if (last) clock.gamma = next_gamma;
  clock.step += 1;
  clock.phase = last ? 0 : clock.phase + 1;
  clock.fresh = 0;
  clock.outer_step_happened = last;
}

}  // namespace deeprelax::DR_ISA
