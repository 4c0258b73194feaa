// The loops of the CUDA backend: a block takes one chunk of one tensor, a thread every kCudaThreads-th pack of it.
// Compiled once per rule (DR_RULE, in DR_HEADER): see setup.py. run_thread is host code as well: threads share nothing,
// so the tests run them one after the other.
#include <algorithm>
#include <type_traits>

#include "cuda.h"
#include "normal.h"
#include "pack.h"
#include "philox.h"

#include DR_HEADER

namespace deeprelax::DR_ISA {

// Elements of a pack: 16 bytes of weights, and at least the 4 of one Philox call.
template <class P>
constexpr int kPack = sizeof(P) == 2 ? 8 : 4;

// What a kernel is launched with.
template <class P, class T>
struct Arguments {
  Scalars<T> scalars;
  const Scalars<T>* ticked;  // on the device; if null, the call's are `scalars`
  const CudaTensor* tensors;
  const CudaChunk* chunks;
  T *x, *y, *acc, *momentum, *velocity, *square;
  const int64_t* missed;
  int64_t first_tensor;
  int64_t grads[kCudaTensors];  // of first_tensor and those after it
};
static_assert(kCudaTensors > 460 || sizeof(Arguments<double, double>) <= 4096, "what every driver takes");

template <class P, class T>
struct CudaTile : Operands<P, T> {
  Draw source;
  uint32_t index;
  uint64_t start;                     // global index of element 0
  bool aligned_weight, aligned_grad;  // multiples of 16 bytes
  BiasCorrection<T> bias;

  template <class V>
  DR_HD auto weight(int64_t i) const {
    return read(this->w + i, aligned_weight, V{});
  }
  template <class V>
  DR_HD auto grad(int64_t i) const {
    return read(this->g + i, aligned_grad, V{});
  }
  template <class V>
  DR_HD void set_weight(int64_t i, V v) const {
    write(this->w + i, v, aligned_weight);
  }
  template <class V, class C>
  DR_HD void set_unread_weight(int64_t i, V v, const C&) const {
    write(this->w + i, v, aligned_weight);
  }

  // A single element takes one Philox call, a pack one for every 4 elements.
  template <class V>
  DR_HD V normals(int64_t i) const {
    return draw(i, V{});
  }
  DR_HD void set_weight_stochastically(int64_t i, float y) const {
    uint32_t words[4];
    random_words(source, index, (start + i) / 4, kRoundingBit, words);
    put(this->w + i, narrow_bf16(y, pick((start + i) % 4, words)));
  }
  template <int N>
  DR_HD void set_weight_stochastically(int64_t i, Pack<float, N> y) const {
    Pack<P, N> rounded;
    DR_UNROLL for (int k = 0; k < N; k += 4) {
      uint32_t words[4];
      random_words(source, index, (start + i + k) / 4, kRoundingBit, words);
      DR_UNROLL for (int j = 0; j < 4; ++j) rounded.v[k + j] = narrow_bf16(y.v[k + j], words[j]);
    }
    if (aligned_weight) {
      Memory<Pack<T, N>, P>::store_narrow(this->w + i, rounded);
    } else {
      DR_UNROLL for (int k = 0; k < N; ++k) put(this->w + i + k, rounded.v[k]);
    }
  }

 private:
  static DR_HD T read(const P* p, bool, T) { return load<T>(p); }
  template <int N>
  static DR_HD Lines<T, P, N> read(const P* p, bool aligned, Pack<T, N>) {
    return Lines<T, P, N>::load(p, aligned);
  }
  static DR_HD void write(P* p, T v, bool) { store(p, v); }
  template <int N>
  static DR_HD void write(P* p, Pack<T, N> v, bool aligned) {
    if (aligned) return store(p, v);
    DR_UNROLL for (int k = 0; k < N; ++k) store(p + k, v.v[k]);
  }

  // words[which] without an array in local memory.
  static DR_HD uint32_t pick(uint64_t which, const uint32_t words[4]) {
    const uint32_t low = which & 1 ? words[1] : words[0], high = which & 1 ? words[3] : words[2];
    return which & 2 ? high : low;
  }
  DR_HD T draw(int64_t i, T) const {
    const uint64_t element = start + i;
    uint32_t words[4];
    random_words(source, index, element / 4, 0, words);
    float cosine, sine;
    box_muller(element & 2 ? words[2] : words[0], element & 2 ? words[3] : words[1], cosine, sine);
    return element & 1 ? sine : cosine;
  }
  template <int N>
  DR_HD Pack<T, N> draw(int64_t i, Pack<T, N> n) const {
    DR_UNROLL for (int k = 0; k < N; k += 4) {
      uint32_t words[4];
      random_words(source, index, (start + i + k) / 4, 0, words);
      float drawn[4];
      box_muller(words[0], words[1], drawn[0], drawn[1]);
      box_muller(words[2], words[3], drawn[2], drawn[3]);
      DR_UNROLL for (int j = 0; j < 4; ++j) n.v[k + j] = drawn[j];
    }
    return n;
  }
};

// Options that change the formula. The fast kernels do not support them.
constexpr uint32_t kSlow = kImplicit | kInnerMomentum | kWarmStart | kTakeParam;

// Whether a fast kernel can serve a call. A cycle of one call is compiled into the general kernel only.
DR_HD constexpr bool is_fast(uint32_t options) { return !(options & kSlow) && (options & kPhase) != kPhase; }

template <class P, class R, class V, class Q, class C>
DR_HD void run_packs(const Q& q, const C& c, int begin, int end) {
  constexpr int kStep = kCudaThreads * kPack<P>;
#pragma unroll 1
  for (int i = begin; i < end; i += kStep) R::template update<P, V, true>(q, c, i);
}

// With the phase compiled in. The sign of `maximize` is in the unscaling factor; multiplying by it changes no bit if it
// is 1. Weight decay is a branch over a few instructions, after the loads.
template <class P, class R, uint32_t On, class V, class Q, class T>
DR_HD void run_fast_packs(const Q& q, Scalars<T> s, int begin, int end) {
  if (s.flags & kMaximize) s.inv_scale = -s.inv_scale;
  constexpr uint32_t kKnown = kPhase | kSlow | kNoise | kStochasticRounding | kUnscale | kMaximize;
  run_packs<P, R, V>(q, Call<T, kKnown, On | kUnscale>(s), begin, end);
}

// Options with which a call draws random numbers. Only bfloat16 is rounded stochastically; other types ignore the flag.
template <class P, class R>
constexpr uint32_t kDraws =
    (R::kMay | R::kAlways) & (std::is_same_v<P, bfloat16> ? kNoise | kStochasticRounding : kNoise);

// All packs of a thread. Returns false, having done nothing, for a ticked call that the fast kernels do not support and
// that the host could not recognise (Heat's first gradient): it is then computed element by element.
template <class P, class R, uint32_t On, class V, class Q, class T>
DR_HD bool run_fast_packs_of_phase(const Q& q, const Scalars<T>& s, int begin, int end) {
  if (!is_fast(s.flags) || ((s.flags ^ On) & R::kMay & kNoise) != 0) return false;
  if (s.flags & kFirst) {
    run_fast_packs<P, R, On | kFirst, V>(q, s, begin, end);
  } else if (s.flags & kLast) {
    run_fast_packs<P, R, On | kLast, V>(q, s, begin, end);
  } else {
    run_fast_packs<P, R, On, V>(q, s, begin, end);
  }
  return true;
}

// Scalars and bounds are loaded again for each loop: kept across the loops, each would take a register.
template <class P, class T>
DR_HD Scalars<T> scalars_of(const Arguments<P, T>& a) {
  return a.ticked ? *a.ticked : a.scalars;
}

// Elements begin ... end - 1 of a chunk belong to its run; packs_begin ... packs_end - 1 of them form whole packs.
template <int N>
struct Bounds {
  int begin, end;

  // A skipped call has no elements. An early return instead would wait for the flag before the chunk is loaded.
  template <class Scalars>
  DR_HD Bounds(const CudaChunk& chunk, const Scalars* ticked)
      : begin(chunk.bounds % kCudaLeads), end(ticked && (ticked->flags & kSkip) ? 0 : chunk.bounds / kCudaLeads) {}

  DR_HD int packs_begin() const { return begin ? N : 0; }
  DR_HD int packs_end() const { return end / N * N; }
};

// On: which of noise and stochastic rounding the kernel supports.
template <class P, class T, class R, uint32_t On, bool Fast>
DR_HD void run_thread(const Arguments<P, T>& a, int64_t block, int thread) {
  constexpr int kSize = kPack<P>;
  using V = Pack<T, kSize>;
  // A kernel that can draw noise may serve a ticked call without noise.
  using AnyCall = Call<T, kStochasticRounding | ((On & R::kMay & kNoise) ? 0u : kNoise), On & ~(R::kMay & kNoise)>;
  const Scalars<T>* ticked = a.ticked;
  const CudaChunk chunk = a.chunks[block];
  const CudaTensor tensor = a.tensors[chunk.tensor];
  const int64_t grad = a.grads[chunk.tensor - a.first_tensor];
  P* const w = reinterpret_cast<P*>(tensor.weight) + chunk.first;
  const P* const g = reinterpret_cast<const P*>(grad) + chunk.first;
  const auto state = [&](T* base) { return base + chunk.place; };
  CudaTile<P, T> q{
      {w, g, state(a.x), state(a.y), state(a.acc), state(a.momentum), state(a.velocity), state(a.square)},
      ticked ? Draw{ticked->key0, ticked->key1, ticked->step} : Draw{a.scalars.key0, a.scalars.key1, a.scalars.step},
      static_cast<uint32_t>(tensor.index),
      static_cast<uint64_t>(chunk.start),
      reinterpret_cast<uintptr_t>(w) % 16 == 0,
      reinterpret_cast<uintptr_t>(g) % 16 == 0,
      BiasCorrection<T>::after(scalars_of(a), R::kCounts ? a.missed[chunk.tensor] : 0)};
  if (grad == 0) {
    const Bounds<kSize> b(chunk, ticked);
    const AnyCall c(scalars_of(a));
    for (int i = b.begin + thread; i < b.end; i += kCudaThreads) R::template update<P, T, false>(q, c, i);
    return;
  }
  bool taken = true;
  {
    const Bounds<kSize> b(chunk, ticked);
    const int from = b.packs_begin() + thread * kSize, to = b.packs_end();
    const Scalars<T> s = scalars_of(a);
    // Packs would write each sector of an unaligned weight in several parts; single elements are contiguous across the
    // lanes of a warp. But each would take a whole Philox call, so a call that draws takes packs all the same.
    taken = q.aligned_weight || (s.flags & kDraws<P, R>);
    if (!taken) {
    } else if (!Fast) {
      run_packs<P, R, V>(q, AnyCall(s), from, to);
    } else if (q.aligned_weight && q.aligned_grad) {
      // Two loops: with a branch inside, a loop would wait for some of its loads before it issues the others.
      q.aligned_weight = q.aligned_grad = true;
      taken = run_fast_packs_of_phase<P, R, On, V>(q, s, from, to);
    } else {
      if (!(On & kDraws<P, R>)) q.aligned_weight = true;
      taken = run_fast_packs_of_phase<P, R, On, V>(q, s, from, to);
    }
  }
  // The remaining elements, one by one.
  const Bounds<kSize> b(a.chunks[block], ticked);
  const bool packs = taken && b.packs_begin() < b.packs_end();
  const int before = packs ? b.packs_begin() - b.begin : 0, after = packs ? b.packs_end() : b.begin;
  const int left = before + b.end - after;
  if (left <= 0) return;
  const AnyCall c(scalars_of(a));
  for (int k = thread; k < left; k += kCudaThreads) {
    R::template update<P, T, true>(q, c, k < before ? b.begin + k : after + (k - before));
  }
}

// At 4 blocks some kernels would spill on sm_120, which has a third of the memory bandwidth to keep busy.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kMostBlocks = 3;
#else
constexpr int kMostBlocks = 4;
#endif

// Blocks: how many blocks of 256 threads must fit into the registers of a multiprocessor.
template <class P, class T, class R, uint32_t On, bool Fast, int Blocks>
__global__ void __launch_bounds__(kCudaThreads, (Blocks < kMostBlocks ? Blocks : kMostBlocks) * 256 / kCudaThreads)
    update(const __grid_constant__ Arguments<P, T> a) {
  run_thread<P, T, R, On, Fast>(a, blockIdx.x, threadIdx.x);
}

// The runtime loads a kernel when its attributes are first queried.
inline int load_kernel(const void* kernel) {
  cudaFuncAttributes unused;
  return cudaFuncGetAttributes(&unused, kernel);
}

template <class P, class R, uint32_t On, bool Fast, class T>
int start(const Arguments<P, T>& a, int64_t blocks, CUstream_st* stream, Do what) {
  constexpr int kBlocks = R::blocks(sizeof(P), Fast, On);
  const auto kernel = reinterpret_cast<const void*>(update<P, T, R, On, Fast, kBlocks>);
  if (what == Do::kLoad) return load_kernel(kernel);
  if (what == Do::kEmulate) {
    for (int64_t block = 0; block < blocks; ++block)
      for (int thread = 0; thread < kCudaThreads; ++thread) run_thread<P, T, R, On, Fast>(a, block, thread);
    return 0;
  }
  void* arguments[] = {const_cast<Arguments<P, T>*>(&a)};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kCudaThreads), arguments, 0, stream);
}

DR_HD const Scalars<double>& scalars_of(const DeviceScalars& s, double) { return s.wide; }
DR_HD const Scalars<float>& scalars_of(const DeviceScalars& s, float) { return s.narrow; }

template <class P, class R>
int run_dtype(const CudaLaunch& launch, const DeviceScalars& scalars, const DeviceScalars* ticked, uint32_t options,
              CUstream_st* stream, Do what) {
  using T = typename Compute<P>::type;
  constexpr uint32_t kMay = R::kMay & (std::is_same_v<P, bfloat16> ? ~0u : ~uint32_t{kStochasticRounding});
  Arguments<P, T> a{scalars_of(scalars, T{}),
                    ticked ? &scalars_of(*ticked, T{}) : nullptr,
                    launch.tensors,
                    nullptr,
                    static_cast<T*>(launch.x),
                    static_cast<T*>(launch.y),
                    static_cast<T*>(launch.acc),
                    static_cast<T*>(launch.momentum),
                    static_cast<T*>(launch.velocity),
                    static_cast<T*>(launch.square),
                    launch.missed};
  int64_t blocks = 0;
  // These two types are what models are trained in. The others take the general kernel, which tests at run time whether
  // there is noise, to keep the binary small.
  constexpr bool kHasFast = std::is_same_v<P, float> || std::is_same_v<P, bfloat16>;
  constexpr uint32_t kMayFast = kHasFast ? kMay : 0u, kMayNoise = kMay & kNoise;
  const auto general = [&](auto on) { return start<P, R, decltype(on)::value, false>(a, blocks, stream, what); };
  const auto fast = [&](auto on) {
    if constexpr (kHasFast) return start<P, R, decltype(on)::value, true>(a, blocks, stream, what);
    return 0;
  };
  if (what == Do::kLoad) {
    const int error = each_choice<kMay & ~kNoise, R::kAlways | kMayNoise>(general);
    return error ? error : each_choice<kMayFast, R::kAlways>(fast);
  }
  for (int64_t t = 0, set = 0; t < launch.n_tensors; t += kCudaTensors, ++set) {
    const int64_t left = launch.n_tensors - t;
    blocks = launch.first_chunks[set + 1] - launch.first_chunks[set];
    if (blocks == 0) continue;
    a.first_tensor = t;
    std::copy_n(launch.grads + t, left < kCudaTensors ? left : kCudaTensors, a.grads);
    a.chunks = launch.chunks + launch.first_chunks[set];
    const int error = kHasFast && is_fast(options)
                          ? compile_in<kMayFast, R::kAlways>(options, fast)
                          : compile_in<kMay & ~kNoise, R::kAlways | kMayNoise>(options, general);
    if (error) return error;
  }
  return 0;
}

template <class R>
int run(const CudaLaunch& launch, const DeviceScalars& scalars, const DeviceScalars* ticked, uint32_t options,
        CUstream_st* stream, Do what) {
  switch (launch.dtype) {
#define DR_CASE(P, name) \
  case DType::name:      \
    return run_dtype<P, R>(launch, scalars, ticked, options, stream, what);
    DR_DTYPES(DR_CASE)
  }
  return cudaErrorInvalidValue;
}

template <class R>
__global__ void tick_once(Hyper hyper, Sources sources, ClockWords* clock, DeviceScalars* scalars) {
  tick<R>(hyper, sources, *clock, *scalars);
}

template <class R>
int advance(const Hyper& hyper, const Sources& sources, ClockWords* clock, DeviceScalars* scalars, CUstream_st* stream,
            Do what) {
  const auto kernel = reinterpret_cast<const void*>(tick_once<R>);
  if (what == Do::kLoad) return load_kernel(kernel);
  if (what == Do::kEmulate) {
    tick<R>(hyper, sources, *clock, *scalars);
    return 0;
  }
  void* arguments[] = {const_cast<Hyper*>(&hyper), const_cast<Sources*>(&sources), &clock, &scalars};
  return cudaLaunchKernel(kernel, dim3(1), dim3(1), arguments, 0, stream);
}

template int run<DR_RULE>(const CudaLaunch&, const DeviceScalars&, const DeviceScalars*, uint32_t, CUstream_st*, Do);
template int advance<DR_RULE>(const Hyper&, const Sources&, ClockWords*, DeviceScalars*, CUstream_st*, Do);

}  // namespace deeprelax::DR_ISA
