// The loop of the CUDA backend: a block takes one chunk of one tensor, a thread every kCudaThreads-th pack of it. The
// rules are in updates.h. run_thread is host code as well: threads share nothing, so the tests run them one by one.
#pragma once

#include <type_traits>

#include "cuda.h"
#include "normal.h"
#include "pack.h"
#include "philox.h"
#include "updates.h"

namespace deeprelax::DR_ISA {

// Elements of a pack: 16 bytes of weights, and at least the 4 of one Philox call.
template <class P>
constexpr int kPack = sizeof(P) == 2 ? 8 : 4;

// What a kernel is launched with.
template <class P, class T>
struct Arguments {
  Scalars<T> scalars;
  Stream stream;
  const Numbers* ticked;
  const int64_t *weights, *grads;
  const Tensor* tensors;
  const CudaChunk* chunks;
  T *x, *y, *average, *momentum, *velocity;
};

template <class P, class T>
struct CudaTile : Operands<P, T> {
  static constexpr bool kWide = sizeof(P) != sizeof(T);
  Stream stream;
  uint32_t index;
  uint64_t start;                      // global index of the first element
  bool aligned_reads, aligned_writes;  // multiples of 16 bytes: where weights and gradients are read, and written

  template <class V>
  DR_HD auto weight(int64_t i) const {
    return read(this->w + i, aligned_reads, V{});
  }
  template <class V>
  DR_HD auto grad(int64_t i) const {
    return read(this->g + i, aligned_reads, V{});
  }
  template <class V>
  DR_HD void set_weight(int64_t i, V v) const {
    write(this->w + i, v, aligned_writes);
  }
  template <class V, class S>
  DR_HD void set_unread_weight(int64_t i, V v, const S&) const {
    write(this->w + i, v, aligned_writes);
  }

  // One element makes a Philox call of its own, a pack one for each 4 elements.
  template <class V>
  DR_HD V normals(int64_t i) const {
    return draw(i, V{});
  }
  DR_HD void set_weight_stochastically(int64_t i, float y) const {
    uint32_t words[4];
    random_words(stream, index, (start + i) / 4, kRoundingStream, words);
    put(this->w + i, narrow_bf16(y, pick((start + i) % 4, words)));
  }
  template <int N>
  DR_HD void set_weight_stochastically(int64_t i, Pack<float, N> y) const {
    Pack<P, N> rounded;
    DR_UNROLL for (int k = 0; k < N; k += 4) {
      uint32_t words[4];
      random_words(stream, index, (start + i + k) / 4, kRoundingStream, words);
      DR_UNROLL for (int j = 0; j < 4; ++j) rounded.v[k + j] = narrow_bf16(y.v[k + j], words[j]);
    }
    if (aligned_writes) {
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
    random_words(stream, index, element / 4, 0, words);
    float cosine, sine;
    box_muller(element & 2 ? words[2] : words[0], element & 2 ? words[3] : words[1], cosine, sine);
    return element & 1 ? sine : cosine;
  }
  template <int N>
  DR_HD Pack<T, N> draw(int64_t i, Pack<T, N> n) const {
    DR_UNROLL for (int k = 0; k < N; k += 4) {
      uint32_t words[4];
      random_words(stream, index, (start + i + k) / 4, 0, words);
      float drawn[4];
      box_muller(words[0], words[1], drawn[0], drawn[1]);
      box_muller(words[2], words[3], drawn[2], drawn[3]);
      DR_UNROLL for (int j = 0; j < 4; ++j) n.v[k + j] = drawn[j];
    }
    return n;
  }
};

template <class R, class V, class Q, class S>
DR_HD void run_packs(const Q& q, const S& c, int packs, int thread) {
  constexpr int kSize = sizeof(V) / sizeof(c.gamma);
#pragma unroll 1
  for (int k = thread; k < packs; k += kCudaThreads) R::template at<V>(q, c, static_cast<int64_t>(k) * kSize);
}

// What the fast kernels compute with: the place in the cycle is known to the compiler, and options with a formula of
// their own are off. The sign of `maximize` goes into the factor that unscales, which may well be 1: multiplying by it
// changes no bit. Weight decay is a branch over a few instructions, after the loads.
template <class T, bool First, bool Last, class R>
struct FastScalars : PhasedScalars<T, First, Last> {
  static constexpr bool has_noise = R::kDraws, scaled = true, maximize = false;
  static constexpr bool implicit = false, has_inner_momentum = false, warm_start = false, read_param = false,
                        take_param = false;
  DR_HD explicit FastScalars(const Scalars<T>& c) : PhasedScalars<T, First, Last>(c) {
    if (c.maximize) this->inv_scale = -this->inv_scale;
  }
};

// kernels/native.py, is_fast, says what it knows of this before the launch.
template <class R, class T>
DR_HD bool is_fast(const Scalars<T>& c) {
  return !(c.implicit || c.has_inner_momentum || c.warm_start || (c.read_param && !c.first) || c.take_param ||
           (c.first && c.last) || c.has_noise != R::kDraws);
}

// All packs of a thread. Returns how many packs were taken: none where the caller could not know that a ticked call
// is none of the fast ones (Heat's very first gradient), which then goes element by element.
template <class R, class V, class Q, class T>
DR_HD int run_fast_packs(const Q& q, const Scalars<T>& c, int packs, int thread) {
  if (!is_fast<R>(c)) return 0;
  if (c.first) {
    run_packs<R, V>(q, FastScalars<T, true, false, R>(c), packs, thread);
  } else if (c.last) {
    run_packs<R, V>(q, FastScalars<T, false, true, R>(c), packs, thread);
  } else {
    run_packs<R, V>(q, FastScalars<T, false, false, R>(c), packs, thread);
  }
  return packs;
}

// Fetched anew for each loop: held over all of them, they would take a register each.
template <class P, class T>
DR_HD Scalars<T> scalars_of(const Arguments<P, T>& a) {
  return a.ticked ? scalars_of(*a.ticked, T{}) : a.scalars;
}

template <class P, class T, class R, bool Fast>
DR_HD void run_thread(const Arguments<P, T>& a, int64_t block, int thread) {
  using V = Pack<T, kPack<P>>;
  const Numbers* ticked = a.ticked;
  const bool skip = ticked && (ticked->flags & kSkip) != 0;
  const CudaChunk chunk = a.chunks[block];
  const Tensor tensor = a.tensors[chunk.tensor];
  const int64_t begin = static_cast<int64_t>(chunk.number) * kCudaChunk;
  const int64_t rest = tensor.size - begin;
  // To return where the flag is read would be to wait for it before the chunk is asked for.
  const int length = skip ? 0 : static_cast<int>(rest < kCudaChunk ? rest : kCudaChunk);
  const int64_t grad = a.grads[chunk.tensor];
  P* const w = reinterpret_cast<P*>(a.weights[chunk.tensor]) + begin;
  const P* const g = reinterpret_cast<const P*>(grad) + begin;
  const auto state = [&](T* base) { return base + (tensor.offset + begin); };
  CudaTile<P, T> q{{w, g, state(a.x), state(a.y), state(a.average), state(a.momentum), state(a.velocity)},
                   ticked ? Stream{ticked->key0, ticked->key1, ticked->step} : a.stream,
                   static_cast<uint32_t>(tensor.index),
                   static_cast<uint64_t>(tensor.start + begin),
                   false,
                   reinterpret_cast<uintptr_t>(w) % 16 == 0};
  if (grad == 0) {
    const Scalars<T> c = scalars_of(a);
    for (int i = thread; i < length; i += kCudaThreads) R::template rest<T>(q, c, i);
    return;
  }
  int packs = 0;
  // A pack's elements have to be those of whole Philox calls.
  if (!(R::kDraws || R::kRounds) || q.start % 4 == 0) {
    const Scalars<T> c = scalars_of(a);
    const bool aligned = q.aligned_writes && reinterpret_cast<uintptr_t>(g) % 16 == 0;
    packs = length / kPack<P>;
    if (!Fast) {
      q.aligned_reads = aligned;
      run_packs<R, V>(q, c, packs, thread);
    } else if (aligned) {
      // Loops of their own: with a branch inside, a loop would wait for some of its loads before it makes the others.
      q.aligned_reads = q.aligned_writes = true;
      packs = run_fast_packs<R, V>(q, c, packs, thread);
    } else {
      packs = run_fast_packs<R, V>(q, c, packs, thread);
    }
  }
  const int done = packs * kPack<P>;
  if (done == length) return;
  const Scalars<T> c = scalars_of(a);
  for (int i = done + thread; i < length; i += kCudaThreads) R::template at<T>(q, c, i);
}

// Where sm_120 would spill at 4 blocks, it has a third of the memory bandwidth to keep busy.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kMostBlocks = 3;
#else
constexpr int kMostBlocks = 4;
#endif

template <class P, class T, class R, bool Fast, int Blocks>
__global__ void __launch_bounds__(kCudaThreads, (Blocks < kMostBlocks ? Blocks : kMostBlocks) * 256 / kCudaThreads)
    update(const __grid_constant__ Arguments<P, T> a) {
  run_thread<P, T, R, Fast>(a, blockIdx.x, threadIdx.x);
}

template <class P, class R, bool Fast, int Blocks, class T>
int start(const Arguments<P, T>& a, int64_t blocks, CUstream_st* stream, Do what) {
  const auto kernel = reinterpret_cast<const void*>(update<P, T, R, Fast, Blocks>);
  if (what == Do::kLoad) return load_kernel(kernel);
  if (what == Do::kEmulate) {
    for (int64_t block = 0; block < blocks; ++block)
      for (int thread = 0; thread < kCudaThreads; ++thread) run_thread<P, T, R, Fast>(a, block, thread);
    return 0;
  }
  void* arguments[] = {const_cast<Arguments<P, T>*>(&a)};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kCudaThreads), arguments, 0, stream);
}

// Blocks: how many of 256 threads the registers of a multiprocessor are to hold, first for the fast kernel.
template <class P, class R, int FastBlocks, int Blocks>
int launch(const CudaCall& call, CUstream_st* stream, Do what) {
  using T = typename Compute<P>::type;
  const Arguments<P, T> a{scalars_of(call.numbers, T{}),
                          {call.numbers.key0, call.numbers.key1, call.numbers.step},
                          call.ticked,
                          call.weights,
                          call.grads,
                          call.tensors,
                          call.chunks,
                          static_cast<T*>(call.x),
                          static_cast<T*>(call.y),
                          static_cast<T*>(call.average),
                          static_cast<T*>(call.momentum),
                          static_cast<T*>(call.velocity)};
  if (what == Do::kLoad) {
    const int error = start<P, R, true, FastBlocks>(a, 0, stream, what);
    return error ? error : start<P, R, false, Blocks>(a, 0, stream, what);
  }
  return call.fast ? start<P, R, true, FastBlocks>(a, call.n_chunks, stream, what)
                   : start<P, R, false, Blocks>(a, call.n_chunks, stream, what);
}

}  // namespace deeprelax::DR_ISA
