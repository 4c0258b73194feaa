// The loops of the CPU backend: over chunks, over tiles of a chunk, over the vectors of a tile. The rules are in
// updates.h. Compiled once per instruction set by cpu_rules_*.cpp.
#pragma once

#include <type_traits>

#include "cpu.h"
#include "cpu_noise.h"
#include "updates.h"

namespace deeprelax::DR_ISA {

template <class P, class T>
struct Tile : Operands<P, T> {
  static constexpr bool kWide = sizeof(P) != sizeof(T);
  const float* drawn = nullptr;     // normals
  const uint32_t* words = nullptr;  // random words for rounding

  // The same operands, `by` elements further on; without noise, which is drawn anew for each tile.
  Tile after(int64_t by) const {
    const auto moved = [by](auto* p) { return p ? p + by : nullptr; };
    return {{moved(this->w), moved(this->g), moved(this->x), moved(this->y), moved(this->average),
             moved(this->momentum), moved(this->velocity)}};
  }

  template <class V>
  DR_HD V weight(int64_t i) const {
    return load<V>(this->w + i);
  }
  template <class V>
  DR_HD V grad(int64_t i) const {
    return load<V>(this->g + i);
  }
  template <class V>
  DR_HD V normals(int64_t i) const {
    return load<V>(drawn + i);
  }
  template <class V>
  DR_HD void set_weight(int64_t i, V v) const {
    store(this->w + i, v);
  }
  // A weight that the call has not read (HJ, Heat).
  template <class V, class S>
  DR_HD void set_unread_weight(int64_t i, V v, const S&) const {
    if constexpr (S::kPastCache) {
      store_past_cache(this->w + i, v);
    } else {
      store(this->w + i, v);
    }
  }
  DR_HD void set_weight_stochastically(int64_t i, float y) const { this->w[i] = narrow_bf16(y, words[i]); }
  DR_HD void set_weight_stochastically(int64_t i, F y) const {
    const U b = (U)y, word = load_raw<U>(words + i) & 0xffffu;
    const U quiet = U{} + 0x7fc0u;
    store_raw(this->w + i, __builtin_convertvector((U)(y != y ? quiet : (b + word) >> 16), H));
  }
};

template <class P, class R, bool First, bool Last>
void run_rule(const Call& call, int64_t begin, int64_t end) {
  using T = typename Compute<P>::type;
  using V = typename Vector<T>::type;
  constexpr int64_t kStep = sizeof(V) / sizeof(T);
  constexpr bool kWritesUnread = R::writes_unread(First);
  const PhasedScalars<T, First, Last> c(scalars_of(call.numbers, T{}));
  const PlainScalars<T, First, Last, R::kDraws> plain_scalars(c);
  const PlainScalars<T, First, Last, R::kDraws, kWritesUnread> plain_past_cache(c);
  const bool plain = R::plain(c);
  const bool past_cache = kWritesUnread && sizeof(P) == sizeof(T) && (call.numbers.flags & kPastCache) != 0;
  const Stream stream{call.numbers.key0, call.numbers.key1, call.numbers.step};
  alignas(64) float normals[kMaxGroups * kGroup];
  alignas(64) uint32_t words[kMaxGroups * kGroup];

  for (int64_t k = begin; k < end; ++k) {
    const Chunk chunk = call.chunks[k];
    const Tensor tensor = call.tensors[chunk.tensor];
    const auto state = [&](void* base) { return base ? static_cast<T*>(base) + tensor.offset : nullptr; };
    const Tile<P, T> whole{{reinterpret_cast<P*>(call.weights[chunk.tensor]),
                            reinterpret_cast<const P*>(call.grads[chunk.tensor]), state(call.x), state(call.y),
                            state(call.average), state(call.momentum), state(call.velocity)}};
    // Without noise there is nothing to refill.
    const int64_t most = R::kDraws || R::kRounds ? kTile : chunk.length;
    for (int64_t done = 0; done < chunk.length; done += most) {
      const int64_t length = chunk.length - done < most ? chunk.length - done : most;
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
        tile.drawn = normals + skip;
      }
      if (R::kRounds && !Last) {
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
  const bool noise = (call.numbers.flags & kNoise) != 0;
  if constexpr (std::is_same_v<P, bfloat16>) {
    if (call.numbers.flags & kStochasticRounding) {
      if (noise) return run_rule<P, EntropySGD<P, T, true, true>, First, Last>(call, begin, end);
      return run_rule<P, EntropySGD<P, T, false, true>, First, Last>(call, begin, end);
    }
  }
  if (noise) return run_rule<P, EntropySGD<P, T, true, false>, First, Last>(call, begin, end);
  run_rule<P, EntropySGD<P, T, false, false>, First, Last>(call, begin, end);
}

template <class P, bool First, bool Last>
void run_phase(const Call& call, int64_t begin, int64_t end) {
  using T = typename Compute<P>::type;
  switch (call.rule) {
    case Rule::kEntropySGD:
      return run_entropy_sgd<P, First, Last>(call, begin, end);
    case Rule::kHJ:
      return run_rule<P, HJ<P, T>, First, Last>(call, begin, end);
    case Rule::kHeat:
      return run_rule<P, Heat<P, T>, First, Last>(call, begin, end);
  }
}

template <class P>
void run_dtype(const Call& call, int64_t begin, int64_t end) {
  const bool first = call.numbers.flags & kFirst, last = call.numbers.flags & kLast;
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
