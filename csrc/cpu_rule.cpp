// The loops of the CPU backend: over chunks, over tiles of a chunk, over the vectors of a tile. Compiled once per rule
// (DR_RULE, in DR_HEADER) and instruction set: see setup.py.
#include <algorithm>
#include <type_traits>

#include "cpu.h"
#include "cpu_noise.h"
#include "vec.h"

#include DR_HEADER

namespace deeprelax::DR_ISA {

template <class P, class T>
struct Tile : Operands<P, T> {
  const float* drawn = nullptr;     // normals
  const uint32_t* words = nullptr;  // random words for rounding
  BiasCorrection<T> bias;

  // The same operands `by` elements further on, without noise, which is drawn for each tile.
  Tile after(int64_t by) const {
    const auto moved = [by](auto* p) { return p ? p + by : nullptr; };
    return {{moved(this->w), moved(this->g), moved(this->x), moved(this->y), moved(this->acc), moved(this->momentum),
             moved(this->velocity), moved(this->square)},
            nullptr,
            nullptr,
            bias};
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
  // For a call that does not read the weight (HJ, Heat).
  template <class V, class C>
  DR_HD void set_unread_weight(int64_t i, V v, const C&) const {
    if constexpr (C::may(kPastCache)) {
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

// On: which of the options that are known at compile time (phase, noise, stochastic rounding) are on.
template <class P, class R, uint32_t On>
void run_chunks(const CpuLaunch& launch, const Scalars<typename Compute<P>::type>& scalars, int64_t begin,
                int64_t end) {
  using T = typename Compute<P>::type;
  using V = typename Vector<T>::type;
  constexpr int64_t kStep = sizeof(V) / sizeof(T);
  constexpr uint32_t kKnown = kPhase | kNoise | kStochasticRounding | kPastCache;
  constexpr bool kDraws = (On & kNoise) != 0, kRounds = (On & kStochasticRounding) != 0;
  // Non-temporal stores avoid reading the cache lines of weights that are written but not read.
  constexpr uint32_t kPast = R::writes_unread(On) && !kWide<P> ? kPastCache : 0u;
  const Call<T, kKnown, On> c(scalars);
  // With every option of the inner update off, the loops contain only arithmetic.
  const Call<T, kKnown | kInner, On> plain(scalars);
  const Call<T, kKnown | kInner, On | kPast> plain_past_cache(scalars);
  const bool is_plain = (scalars.flags & kInner & ~(kNoise | R::kUnread)) == 0;
  const bool past_cache = kPast && (launch.flags & kPastCache) != 0;
  const Draw draw{scalars.key0, scalars.key1, scalars.step};
  alignas(64) float normals[kMaxGroups * kGroup];
  alignas(64) uint32_t words[kMaxGroups * kGroup];

  for (int64_t k = begin; k < end; ++k) {
    const CpuChunk chunk = launch.chunks[k];
    const int64_t index = launch.tensors[chunk.tensor], grad = launch.grads[chunk.tensor];
    const auto state = [&](void* base) { return base ? static_cast<T*>(base) + chunk.place : nullptr; };
    const Tile<P, T> whole{
        {reinterpret_cast<P*>(launch.weights[chunk.tensor]) + chunk.first,
         grad ? reinterpret_cast<const P*>(grad) + chunk.first : nullptr, state(launch.x), state(launch.y),
         state(launch.acc), state(launch.momentum), state(launch.velocity), state(launch.square)},
        nullptr,
        nullptr,
        BiasCorrection<T>::after(scalars, R::kCounts ? launch.missed[chunk.tensor] : 0)};
    // Without random numbers, the whole chunk is one tile.
    const int64_t most = kDraws || kRounds ? kTile : chunk.end;
    for (int64_t done = 0; done < chunk.end; done += most) {
      const int64_t length = chunk.end - done < most ? chunk.end - done : most;
      Tile<P, T> tile = whole.after(done);
      int64_t i = 0;
      if (!tile.g) {
        for (; i + kStep <= length; i += kStep) R::template update<P, V, false>(tile, c, i);
        for (; i < length; ++i) R::template update<P, T, false>(tile, c, i);
        continue;
      }
      const uint64_t global = static_cast<uint64_t>(chunk.start + done);
      const int skip = static_cast<int>(global % 4);
      const int groups = static_cast<int>((length + skip + kGroup - 1) / kGroup);
      // The previous tile's last group holds this tile's first elements, unless tiles consist of whole Philox calls.
      const int kept = skip && done ? 1 : 0;
      const uint64_t block = global / 4 + kept * kLanes;
      if (kept && kDraws) std::copy_n(normals + kTile, kGroup, normals);
      if (kept && kRounds) std::copy_n(words + kTile, kGroup, words);
      if (kDraws) {
        fill_normals(normals + kept * kGroup, draw, static_cast<uint32_t>(index), block, groups - kept);
        tile.drawn = normals + skip;
      }
      if (kRounds) {
        fill_words(words + kept * kGroup, draw, static_cast<uint32_t>(index), block, groups - kept);
        tile.words = words + skip;
      }
      if (is_plain && past_cache && reinterpret_cast<uintptr_t>(tile.w) % sizeof(V) == 0) {
        for (; i + kStep <= length; i += kStep) R::template update<P, V, true>(tile, plain_past_cache, i);
      } else if (is_plain) {
        for (; i + kStep <= length; i += kStep) R::template update<P, V, true>(tile, plain, i);
      }
      for (; i + kStep <= length; i += kStep) R::template update<P, V, true>(tile, c, i);
      for (; i < length; ++i) R::template update<P, T, true>(tile, c, i);
    }
  }
  if (past_cache) finish_stores();
}

DR_HD const Scalars<double>& scalars_of(const DeviceScalars& s, double) { return s.wide; }
DR_HD const Scalars<float>& scalars_of(const DeviceScalars& s, float) { return s.narrow; }

template <class P, class R>
void run_dtype(const CpuLaunch& launch, const DeviceScalars& scalars, int64_t begin, int64_t end) {
  using T = typename Compute<P>::type;
  constexpr uint32_t kMay = R::kMay & (std::is_same_v<P, bfloat16> ? ~0u : ~uint32_t{kStochasticRounding});
  compile_in<kPhase | kMay, R::kAlways>(scalars.wide.flags, [&](auto on) {
    run_chunks<P, R, decltype(on)::value>(launch, scalars_of(scalars, T{}), begin, end);
  });
}

template <class R>
void run(const CpuLaunch& launch, const DeviceScalars& scalars, int64_t begin, int64_t end) {
  switch (launch.dtype) {
#define DR_CASE(P, name) \
  case DType::name:      \
    return run_dtype<P, R>(launch, scalars, begin, end);
    DR_DTYPES(DR_CASE)
  }
}

template void run<DR_RULE>(const CpuLaunch&, const DeviceScalars&, int64_t begin, int64_t end);

}  // namespace deeprelax::DR_ISA
