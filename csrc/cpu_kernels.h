// The loops of the CPU backend: over chunks, over tiles of a chunk, over the vectors of a tile. The arithmetic is in
// rules.h. Compiled once per instruction set by cpu_rules_*.cpp.
#pragma once

#include <type_traits>

#include "cpu.h"
#include "cpu_noise.h"
#include "rules.h"

namespace deeprelax::DR_ISA {

// Where one tile's operands lie. P is the weight's type, T the type of its state.
template <class P, class T>
struct Tile {
  P* w;
  const P* g;
  T *x, *y, *average, *momentum, *velocity;
  const float* normals;
  const uint32_t* words;

  // The same, `by` elements further on; without noise, which is drawn anew for each tile.
  Tile after(int64_t by) const {
    const auto moved = [by](auto* p) { return p ? p + by : nullptr; };
    return {moved(w), moved(g), moved(x), moved(y), moved(average), moved(momentum), moved(velocity), nullptr, nullptr};
  }
};

// x after the outer update with force f, and the momentum with it.
template <class P, class T, class V, class S>
DR_HD V outer_update(const Tile<P, T>& q, const S& c, int64_t i, V x, V f) {
  V m{};
  if (c.outer.has_momentum) m = load<V>(q.momentum + i);
  x = outer_step(x, f, m, c.outer);
  if (c.outer.has_momentum) store(q.momentum + i, m);
  return x;
}

// The end of a cycle where the weight becomes x (Entropy-SGD, HJ).
template <class P, class T, class V, class S>
DR_HD void end_cycle(const Tile<P, T>& q, const S& c, int64_t i, V x, V f) {
  x = outer_update(q, c, i, x, f);
  if (sizeof(P) != sizeof(T)) store(q.x + i, x);
  store(q.w + i, x);
}

// A weight that the call has not read (HJ, Heat).
template <class P, class V, class S>
DR_HD void store_weight(P* w, V v, const S&) {
  if constexpr (S::kPastCache) {
    store_past_cache(w, v);
  } else {
    store(w, v);
  }
}

template <class P, class T, bool First, bool Last, bool Noise, bool Rounding>
struct EntropySGD {
  static constexpr bool kDraws = Noise, kRounds = Rounding && !Last, kWritesUnread = false;
  static constexpr bool kWide = sizeof(P) != sizeof(T);  // the state is wider than the weight
  static constexpr bool kHasY = kWide && !Rounding;

  template <class V, class S>
  static DR_HD void at(const Tile<P, T>& q, const S& c, int64_t i) {
    V x, y, z, velocity{}, n{};
    const V g = load<V>(q.g + i);
    V at = V{};
    if (First) {
      const V w = load<V>(q.w + i);
      x = y = z = kWide ? take_x<P>(load<V>(q.x + i), w) : w;
      at = w;
    } else {
      x = load<V>(q.x + i);
      y = kHasY ? load<V>(q.y + i) : load<V>(q.w + i);
      z = load<V>(q.average + i);
      if (c.has_weight_decay) at = kHasY ? round_to<P>(y) : y;
    }
    if (c.has_inner_momentum && !c.fresh_velocity) velocity = load<V>(q.velocity + i);
    if (Noise) n = load<V>(q.normals + i);
    y = entropy_inner<First, Noise>(y, x, force(g, at, c), n, velocity, c);
    z = average(z, y, c);
    if (c.has_inner_momentum) store(q.velocity + i, velocity);
    if (Last) {
      end_cycle(q, c, i, x, x - z);
      return;
    }
    if (First) store(q.x + i, x);
    store(q.average + i, z);
    if (kHasY) store(q.y + i, y);
    if constexpr (Rounding) {
      store_stochastically(q.w + i, y, q.words + i);
    } else {
      store(q.w + i, y);
    }
  }

  // A weight without a gradient: starts and ends the cycle with the others, and rests in between.
  template <class V>
  static DR_HD void rest(const Tile<P, T>& q, const Scalars<T>& c, int64_t i) {
    V x, z;
    if (First) {
      const V w = load<V>(q.w + i);
      x = z = kWide ? take_x<P>(load<V>(q.x + i), w) : w;
      if (c.has_inner_momentum && c.fresh_velocity) store(q.velocity + i, V{});
    } else {
      x = load<V>(q.x + i);
      z = load<V>(q.average + i);
    }
    if (Last) {
      end_cycle(q, c, i, x, x - z);
    } else if (First) {
      store(q.x + i, x);
      store(q.average + i, z);
      if (kHasY) store(q.y + i, x);
    }
  }

  static DR_HD void store_stochastically(bfloat16* w, float y, const uint32_t* words) { *w = narrow_bf16(y, *words); }
  static DR_HD void store_stochastically(bfloat16* w, F y, const uint32_t* words) {
    const U b = (U)y, word = load_raw<U>(words) & 0xffffu;
    const U quiet = U{} + 0x7fc0u;
    store_raw(w, __builtin_convertvector((U)(y != y ? quiet : (b + word) >> 16), H));
  }
};

template <class P, class T, bool First, bool Last>
struct HJ {
  static constexpr bool kDraws = false, kRounds = false, kWritesUnread = !First;
  static constexpr bool kWide = sizeof(P) != sizeof(T);

  template <class V, class S>
  static DR_HD void at(const Tile<P, T>& q, const S& c, int64_t i) {
    V x, p{};
    const V g = load<V>(q.g + i);
    V at = V{};
    if (First) {
      at = load<V>(q.w + i);
      x = kWide ? take_x<P>(load<V>(q.x + i), at) : at;
    } else {
      x = load<V>(q.x + i);
      p = load<V>(q.average + i);
      if (c.has_weight_decay) at = c.read_param ? load<V>(q.w + i) : round_to<P>(x - p * c.gamma);
    }
    const V d = force(g, at, c);
    if (First) {
      p = c.warm_start ? d : d * c.one_minus_alpha;
    } else {
      p = average(p, d, c);
    }
    if (Last) {
      end_cycle(q, c, i, x, p);
      return;
    }
    if (First) store(q.x + i, x);
    store(q.average + i, p);
    store_weight(q.w + i, x - p * c.gamma, c);
  }

  template <class V>
  static DR_HD void rest(const Tile<P, T>& q, const Scalars<T>& c, int64_t i) {
    V x, p{};
    if (First) {
      const V w = load<V>(q.w + i);
      x = kWide ? take_x<P>(load<V>(q.x + i), w) : w;
    } else {
      x = load<V>(q.x + i);
      p = load<V>(q.average + i);
    }
    if (Last) {
      end_cycle(q, c, i, x, p);
    } else if (First) {
      store(q.x + i, x);
      store(q.average + i, p);
    }
  }
};

template <class P, class T, bool First, bool Last, bool TakeParam>
struct Heat {
  static constexpr bool kDraws = true, kRounds = false, kWritesUnread = !TakeParam;
  static constexpr bool kWide = sizeof(P) != sizeof(T);

  template <class V, bool HasGrad, class S>
  static DR_HD void step(const Tile<P, T>& q, const S& c, int64_t i) {
    V x, w = V{}, s{};
    if (TakeParam || (HasGrad && c.has_weight_decay)) w = load<V>(q.w + i);
    if (TakeParam) {
      x = kWide ? take_x<P>(load<V>(q.x + i), w) : w;
    } else {
      x = load<V>(q.x + i);
    }
    if (!First) s = load<V>(q.average + i);
    if (HasGrad) {
      const V d = force(load<V>(q.g + i), w, c);
      s = First ? d : s + d;
    }
    if (Last) {
      x = outer_update(q, c, i, x, s);
    } else {
      store(q.average + i, s);
    }
    if (Last || TakeParam) store(q.x + i, x);
    store_weight(q.w + i, HasGrad ? x + load<V>(q.normals + i) * c.noise_scale : x, c);
  }

  template <class V, class S>
  static DR_HD void at(const Tile<P, T>& q, const S& c, int64_t i) {
    step<V, true>(q, c, i);
  }
  template <class V>
  static DR_HD void rest(const Tile<P, T>& q, const Scalars<T>& c, int64_t i) {
    step<V, false>(q, c, i);
  }
};

template <class P, class T>
Scalars<T> scalars(const Call& call) {
  const double* r = call.reals;
  const auto has = [&](Flag f) { return (call.flags & f) != 0; };
  const auto t = [&](Real which) { return static_cast<T>(r[which]); };
  return {t(kInnerLr),
          t(kInvGamma),
          t(kPull),
          t(kDenominator),
          t(kAlpha),
          t(kOneMinusAlpha),
          t(kGamma),
          t(kWeightDecay),
          t(kInnerMomentum),
          t(kNoiseScale),
          has(kMaximize),
          r[kWeightDecay] != 0,
          has(kImplicit),
          r[kInnerMomentum] != 0,
          has(kInnerNesterov),
          has(kFreshVelocity),
          has(kWarmStart),
          has(kReadParam),
          {t(kOuterStep), t(kOuterScale), t(kOuterLr), t(kOuterMomentum), r[kOuterMomentum] != 0, has(kNesterov)}};
}

template <class P, class R>
void run_rule(const Call& call, int64_t begin, int64_t end) {
  using T = typename Compute<P>::type;
  using V = typename Vector<T>::type;
  constexpr int64_t kStep = sizeof(V) / sizeof(T);
  const Scalars<T> c = scalars<P, T>(call);
  const PlainScalars<T, false> plain_scalars(c);
  const PlainScalars<T, R::kWritesUnread> plain_past_cache(c);
  const bool plain = plain_scalars.describes(c);
  const bool past_cache = R::kWritesUnread && sizeof(P) == sizeof(T) && (call.flags & kPastCache) != 0;
  const Stream stream{call.key0, call.key1, call.step};
  alignas(64) float normals[kMaxGroups * kGroup];
  alignas(64) uint32_t words[kMaxGroups * kGroup];

  for (int64_t k = begin; k < end; ++k) {
    const Chunk chunk = call.chunks[k];
    const Tensor tensor = call.tensors[chunk.tensor];
    const auto state = [&](void* base) { return base ? static_cast<T*>(base) + tensor.offset : nullptr; };
    const Tile<P, T> whole{reinterpret_cast<P*>(call.weights[chunk.tensor]),
                           reinterpret_cast<const P*>(call.grads[chunk.tensor]),
                           state(call.x),
                           state(call.y),
                           state(call.average),
                           state(call.momentum),
                           state(call.velocity),
                           nullptr,
                           nullptr};
    for (int64_t done = 0; done < chunk.length; done += kTile) {
      const int64_t length = chunk.length - done < kTile ? chunk.length - done : kTile;
      Tile<P, T> tile = whole.after(chunk.start + done);
      int64_t i = 0;
      if (!tile.g) {
        for (; i + kStep <= length; i += kStep) R::template rest<V>(tile, c, i);
        for (; i < length; ++i) R::template rest<T>(tile, c, i);
        continue;
      }
      const uint64_t global = static_cast<uint64_t>(tensor.start + chunk.start + done);
      const int skip = static_cast<int>(global % 4);
      const int groups = static_cast<int>((length + skip + kGroup - 1) / kGroup);
      if (R::kDraws) {
        Ahead ahead;
        if (done + 2 * kTile <= chunk.length) {
          const Tile<P, T> next = tile.after(kTile);
          if (!past_cache) ahead.add(next.w);
          ahead.add(next.g);
          T* const buffers[] = {next.x, next.y, next.average, next.momentum, next.velocity};
          for (T* buffer : buffers) ahead.add(buffer);
        }
        fill_normals(normals, stream, static_cast<uint32_t>(tensor.index), global / 4, groups, ahead);
        tile.normals = normals + skip;
      }
      if (R::kRounds) {
        fill_words(words, stream, static_cast<uint32_t>(tensor.index), global / 4, groups);
        tile.words = words + skip;
      }
      if (plain && past_cache && reinterpret_cast<uintptr_t>(tile.w) % sizeof(V) == 0) {
        for (; i + kStep <= length; i += kStep) R::template at<V>(tile, plain_past_cache, i);
      } else if (plain) {
        for (; i + kStep <= length; i += kStep) R::template at<V>(tile, plain_scalars, i);
      }
      for (; i + kStep <= length; i += kStep) R::template at<V>(tile, c, i);
      for (; i < length; ++i) R::template at<T>(tile, c, i);
    }
  }
  if (past_cache) finish_stores();
}

template <class P, bool First, bool Last>
void run_entropy_sgd(const Call& call, int64_t begin, int64_t end) {
  using T = typename Compute<P>::type;
  const bool noise = call.reals[kNoiseScale] != 0;
  if constexpr (std::is_same_v<P, bfloat16>) {
    if (call.flags & kStochasticRounding) {
      if (noise) return run_rule<P, EntropySGD<P, T, First, Last, true, true>>(call, begin, end);
      return run_rule<P, EntropySGD<P, T, First, Last, false, true>>(call, begin, end);
    }
  }
  if (noise) return run_rule<P, EntropySGD<P, T, First, Last, true, false>>(call, begin, end);
  run_rule<P, EntropySGD<P, T, First, Last, false, false>>(call, begin, end);
}

template <class P, bool First, bool Last>
void run_phase(const Call& call, int64_t begin, int64_t end) {
  using T = typename Compute<P>::type;
  switch (call.rule) {
    case Rule::kEntropySGD:
      return run_entropy_sgd<P, First, Last>(call, begin, end);
    case Rule::kHJ:
      return run_rule<P, HJ<P, T, First, Last>>(call, begin, end);
    case Rule::kHeat:
      if (call.flags & kTakeParam) return run_rule<P, Heat<P, T, First, Last, true>>(call, begin, end);
      return run_rule<P, Heat<P, T, First, Last, false>>(call, begin, end);
  }
}

template <class P>
void run_dtype(const Call& call, int64_t begin, int64_t end) {
  const bool first = call.flags & kFirst, last = call.flags & kLast;
  if (first && last) return run_phase<P, true, true>(call, begin, end);
  if (first) return run_phase<P, true, false>(call, begin, end);
  if (last) return run_phase<P, false, true>(call, begin, end);
  run_phase<P, false, false>(call, begin, end);
}

void run(const Call& call, int64_t begin, int64_t end) {
  switch (call.dtype) {
    case DType::kFloat64:
      return run_dtype<double>(call, begin, end);
    case DType::kFloat32:
      return run_dtype<float>(call, begin, end);
    case DType::kBFloat16:
      return run_dtype<bfloat16>(call, begin, end);
    case DType::kFloat16:
      return run_dtype<float16>(call, begin, end);
  }
}

}  // namespace deeprelax::DR_ISA
