// The update rules over the memory of a tile: what is read, what rules.h makes of it, what is written. V is one element
// or a vector of them, P the weight's type in memory, T the type of its state. One source for all devices: Q, the tile,
// knows how weights and gradients are reached and where the noise comes from; S, the scalars, may know the place in the
// cycle and the options at compile time.
#pragma once

#include <utility>

#include "rules.h"

namespace deeprelax::DR_ISA {

// Each rule first loads all that it needs, the weight and the gradient last: a GPU's thread waits for a load where it
// first computes with it, and a conversion is a computation. So a tile may hand out these two as Read, as they lie in
// memory; what is computed with them converts them to V.
template <class V, class Q>
using Read = decltype(std::declval<const Q&>().template grad<V>(0));

// Where a tile's operands lie; null where the call has none. `average` is z, p or s.
template <class P, class T>
struct Operands {
  P* w;
  const P* g;
  T *x, *y, *average, *momentum, *velocity;
};

// The momentum of the outer update, where the call makes one.
template <class V, class Q, class S>
DR_HD V load_momentum(const Q& q, const S& c, int64_t i) {
  V m{};
  if (c.last && c.outer.has_momentum) m = load<V>(q.momentum + i);
  return m;
}

// x after the outer update with force f; stores the momentum m of it.
template <class V, class Q, class S>
DR_HD V outer_update(const Q& q, const S& c, int64_t i, V x, V f, V m) {
  x = outer_step(x, f, m, c.outer);
  if (c.outer.has_momentum) store(q.momentum + i, m);
  return x;
}

// The end of a cycle where the weight becomes x (Entropy-SGD, HJ).
template <class V, class Q, class S>
DR_HD void end_cycle(const Q& q, const S& c, int64_t i, V x, V f, V m) {
  x = outer_update(q, c, i, x, f, m);
  if (Q::kWide) store(q.x + i, x);
  q.set_weight(i, x);
}

template <class P, class T, bool Noise, bool Rounding>
struct EntropySGD {
  static constexpr bool kDraws = Noise, kRounds = Rounding;
  static constexpr bool kWide = sizeof(P) != sizeof(T);  // the state is wider than the weight
  static constexpr bool kHasY = kWide && !Rounding;
  static constexpr bool writes_unread(bool) { return false; }
  template <class S>
  static DR_HD bool plain(const S& c) {
    return is_plain<Noise>(c);
  }

  template <class V, class Q, class S>
  static DR_HD void at(const Q& q, const S& c, int64_t i) {
    V x{}, y{}, z{}, at{}, velocity{}, n{};
    Read<V, Q> w{};
    if (!c.first || kWide) x = load<V>(q.x + i);
    if (!c.first && kHasY) y = load<V>(q.y + i);
    if (!c.first) z = load<V>(q.average + i);
    if (c.has_inner_momentum && !c.fresh_velocity) velocity = load<V>(q.velocity + i);
    const V m = load_momentum<V>(q, c, i);
    if (c.first || !kHasY) w = q.template weight<V>(i);
    const Read<V, Q> read = q.template grad<V>(i);

    if (Noise && c.has_noise) n = q.template normals<V>(i);
    const V g = read;
    if (c.first) {
      at = w;
      x = y = z = kWide ? take_x<P>(x, at) : at;
    } else {
      if (!kHasY) y = w;
      if (c.has_weight_decay) at = kHasY ? round_to<P>(y) : y;
    }
    y = entropy_inner(y, x, force(g, at, c), n, velocity, c);
    z = average(z, y, c);
    if (c.has_inner_momentum) store(q.velocity + i, velocity);
    if (c.last) {
      end_cycle(q, c, i, x, x - z, m);
      return;
    }
    if (c.first) store(q.x + i, x);
    store(q.average + i, z);
    if (kHasY) store(q.y + i, y);
    if constexpr (Rounding) {
      q.set_weight_stochastically(i, y);
    } else {
      q.set_weight(i, y);
    }
  }

  // A weight without a gradient: starts and ends the cycle with the others, and rests in between.
  template <class V, class Q>
  static DR_HD void rest(const Q& q, const Scalars<T>& c, int64_t i) {
    if (!c.first && !c.last) return;
    V x, z;
    if (c.first) {
      const V w = q.template weight<V>(i);
      x = z = kWide ? take_x<P>(load<V>(q.x + i), w) : w;
      if (c.has_inner_momentum && c.fresh_velocity) store(q.velocity + i, V{});
    } else {
      x = load<V>(q.x + i);
      z = load<V>(q.average + i);
    }
    if (c.last) {
      end_cycle(q, c, i, x, x - z, load_momentum<V>(q, c, i));
    } else {
      store(q.x + i, x);
      store(q.average + i, z);
      if (kHasY) store(q.y + i, x);
    }
  }
};

template <class P, class T>
struct HJ {
  static constexpr bool kDraws = false, kRounds = false;
  static constexpr bool kWide = sizeof(P) != sizeof(T);
  static constexpr bool writes_unread(bool first) { return !first; }
  template <class S>
  static DR_HD bool plain(const S& c) {
    return is_plain<false>(c);
  }

  template <class V, class Q, class S>
  static DR_HD void at(const Q& q, const S& c, int64_t i) {
    V x{}, p{}, at{};
    Read<V, Q> w{};
    if (!c.first || kWide) x = load<V>(q.x + i);
    if (!c.first) p = load<V>(q.average + i);
    const V m = load_momentum<V>(q, c, i);
    if (c.first || (c.has_weight_decay && c.read_param)) w = q.template weight<V>(i);
    const Read<V, Q> read = q.template grad<V>(i);

    const V g = read;
    if (c.first) {
      at = w;
      x = kWide ? take_x<P>(x, at) : at;
    } else if (c.has_weight_decay) {
      at = c.read_param ? V(w) : round_to<P>(x - p * c.gamma);
    }
    const V d = force(g, at, c);
    if (c.first) {
      p = c.warm_start ? d : d * c.one_minus_alpha;
    } else {
      p = average(p, d, c);
    }
    if (c.last) {
      end_cycle(q, c, i, x, p, m);
      return;
    }
    if (c.first) store(q.x + i, x);
    store(q.average + i, p);
    q.set_unread_weight(i, x - p * c.gamma, c);
  }

  template <class V, class Q>
  static DR_HD void rest(const Q& q, const Scalars<T>& c, int64_t i) {
    if (!c.first && !c.last) return;
    V x, p{};
    if (c.first) {
      const V w = q.template weight<V>(i);
      x = kWide ? take_x<P>(load<V>(q.x + i), w) : w;
    } else {
      x = load<V>(q.x + i);
      p = load<V>(q.average + i);
    }
    if (c.last) {
      end_cycle(q, c, i, x, p, load_momentum<V>(q, c, i));
    } else {
      store(q.x + i, x);
      store(q.average + i, p);
    }
  }
};

template <class P, class T>
struct Heat {
  static constexpr bool kDraws = true, kRounds = false;
  static constexpr bool kWide = sizeof(P) != sizeof(T);
  static constexpr bool writes_unread(bool) { return true; }
  template <class S>
  static DR_HD bool plain(const S& c) {
    return is_plain<true>(c);
  }

  template <class V, bool HasGrad, class Q, class S>
  static DR_HD void step(const Q& q, const S& c, int64_t i) {
    V x{}, s{}, at{};
    Read<V, Q> w{}, read{};
    if (!c.take_param || kWide) x = load<V>(q.x + i);
    if (!c.first) s = load<V>(q.average + i);
    const V m = load_momentum<V>(q, c, i);
    if (c.take_param || (HasGrad && c.has_weight_decay)) w = q.template weight<V>(i);
    if (HasGrad) read = q.template grad<V>(i);

    if (c.take_param || c.has_weight_decay) at = w;
    if (c.take_param) x = kWide ? take_x<P>(x, at) : at;
    if (HasGrad) {
      const V d = force(V(read), at, c);
      s = c.first ? d : s + d;
    }
    if (c.last) {
      x = outer_update(q, c, i, x, s, m);
    } else {
      store(q.average + i, s);
    }
    if (c.last || c.take_param) store(q.x + i, x);
    if (HasGrad) {
      q.set_unread_weight(i, x + q.template normals<V>(i) * c.noise_scale, c);
    } else {
      q.set_unread_weight(i, x, c);
    }
  }

  template <class V, class Q, class S>
  static DR_HD void at(const Q& q, const S& c, int64_t i) {
    step<V, true>(q, c, i);
  }
  template <class V, class Q>
  static DR_HD void rest(const Q& q, const Scalars<T>& c, int64_t i) {
    step<V, false>(q, c, i);
  }
};

}  // namespace deeprelax::DR_ISA
