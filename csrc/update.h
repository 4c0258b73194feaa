// What the rules share: access to memory, and arithmetic that occurs in more than one of them, in the order and with
// the names of kernels/reference.py. V is the type computed in (float, double or a vector of them), P a weight's type
// in memory, T the type of its state; Q is the tile, which loads weights and gradients, stores weights and draws noise;
// C is a Call of options.h.
#pragma once

#include <utility>

#include "options.h"

namespace deeprelax::DR_ISA {

// The addresses of a tile's operands; null if the launch has none. `acc` is z, p or s, `square` AdamW's second average.
template <class P, class T>
struct Operands {
  P* w;
  const P* g;
  T *x, *y, *acc, *momentum, *velocity, *square;
};

// Whether the state is wider than the weight.
template <class P>
constexpr bool kWide = sizeof(P) != sizeof(typename Compute<P>::type);

// Each rule first loads all its operands, the weight and the gradient last: a GPU's thread waits for a load when it
// first computes with the value, and a conversion is a computation. So a tile may return these two as Read, in their
// type in memory; the first computation converts them to V.
template <class V, class Q>
using Read = decltype(std::declval<const Q&>().template grad<V>(0));

// base^exponent by multiplications alone, which have the same result on every machine.
DR_HD double power(double base, int64_t exponent) {
  double result = 1.0;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// AdamW's bias correction for a weight that has had `count` gradients.
template <class T>
struct BiasCorrection {
  T step_size, inv_root_bias2;

  // For a weight that has had a gradient in every call.
  DR_HD explicit BiasCorrection(const Scalars<T>& s) : step_size(s.step_size), inv_root_bias2(s.inv_root_bias2) {}
  template <class From>
  DR_HD BiasCorrection(const Scalars<From>& s, int64_t count)
      : step_size(static_cast<T>(s.wide_rate / (1.0 - power(s.wide_beta1, count)))),
        inv_root_bias2(static_cast<T>(1.0 / square_root(1.0 - power(s.wide_beta2, count)))) {}
  // For a weight that has had no gradient in `missed` of the calls so far.
  static DR_HD BiasCorrection after(const Scalars<T>& s, int64_t missed) {
    return missed ? BiasCorrection(s, static_cast<int64_t>(s.count) - missed) : BiasCorrection(s);
  }
};

// g unscaled, with the sign of `maximize`.
template <class V, class C>
DR_HD V unscaled(V g, const C& c) {
  if (c.has(kUnscale)) g = g * c.inv_scale;
  if (c.has(kMaximize)) g = -g;
  return g;
}

// The same with weight decay at w, the point where g was taken.
template <class V, class C>
DR_HD V force(V g, V w, const C& c) {
  g = unscaled(g, c);
  if (c.has(kWeightDecay)) g = g + w * c.weight_decay;
  return g;
}

// torch.optim.SGD's momentum: m becomes the new buffer, the direction is returned.
template <class V, class T>
DR_HD V momentum_step(V& m, V d, T momentum, bool nesterov) {
  m = m * momentum + d;
  return nesterov ? d + m * momentum : m;
}

// The momentum of the outer update, if the call makes one.
template <class V, class Q, class C>
DR_HD V load_momentum(const Q& q, const C& c, int64_t i) {
  V m{};
  if (c.has(kLast) && c.has(kMomentum)) m = load<V>(q.momentum + i);
  return m;
}

// x after the outer update with force f (section 6: x - (eta/gamma)(x - z), x - eta p, x - (eta/L) s); stores the
// momentum m.
template <class V, class Q, class C>
DR_HD V outer_step(const Q& q, const C& c, int64_t i, V x, V f, V m) {
  if (!c.has(kMomentum)) return x - f * c.outer_step;
  const V d = momentum_step(m, f * c.outer_scale, c.momentum, c.has(kNesterov));
  store(q.momentum + i, m);
  return x - d * c.lr;
}

// x at the start of a cycle: what the weight holds, or the state's wider value if that rounds to the weight.
template <class P, class V>
DR_HD V take_x(V x, V w) {
  if constexpr (kWide<P>) return where_equal(round_to<P>(x), w, x, w);
  return w;
}

// z <- alpha z + (1 - alpha) y, also HJ's p <- alpha p + (1 - alpha) g.
template <class V, class C>
DR_HD V average(V old_average, V value, const C& c) {
  return old_average * c.alpha + value * c.one_minus_alpha;
}

}  // namespace deeprelax::DR_ISA
