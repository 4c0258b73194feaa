// The scalars of a call as the rules read them, and which of its options are known at compile time.
#pragma once

#include <type_traits>

#include "abi.h"
#include "scalar.h"

namespace deeprelax {

// Options are the flags of a call and, in bits that Python does not use, which optional terms it has.
enum Option : uint32_t {
  kUnscale = 1u << 20,  // inv_scale is not 1
  kWeightDecay = 1u << 21,
  kInnerMomentum = 1u << 22,
  kMomentum = 1u << 23,
};

constexpr uint32_t kPhase = kFirst | kLast;
// Options of the inner update. Most calls have none of them but noise.
constexpr uint32_t kInner = kUnscale | kMaximize | kWeightDecay | kImplicit | kInnerMomentum | kWarmStart | kTakeParam |
                            kNoise | kPull | kAverage;

namespace DR_ISA {

// The options of a call that has these scalars.
DR_HD uint32_t options_of(const Scalars<double>& s) {
  uint32_t options = s.flags;
  if (s.inv_scale != 1) options |= kUnscale;
  if (s.weight_decay != 0) options |= kWeightDecay;
  if (s.inner_momentum != 0) options |= kInnerMomentum;
  if (s.momentum != 0) options |= kMomentum;
  if (!(s.flags & kFirst)) options &= ~kWarmStart;
  return options;
}

// The same scalars rounded to T.
template <class T>
DR_HD Scalars<T> rounded(const Scalars<double>& s) {
#define DR_ROUNDED(type, name) static_cast<type>(s.name),
  return {DR_SCALARS(DR_ROUNDED, T)};
#undef DR_ROUNDED
}

// The scalars of a call. The options in Known are compiled in, on if they are in On; the others are tested at run time.
template <class T, uint32_t Known, uint32_t On>
struct Call : Scalars<T> {
  static_assert((On & ~Known) == 0, "what is on is known");

  DR_HD explicit Call(const Scalars<T>& s) : Scalars<T>(s) {}

  // Whether a call may have the option, for the compiler.
  static constexpr bool may(uint32_t option) { return ((Known & option ? On : ~0u) & option) != 0; }
  DR_HD bool has(uint32_t option) const { return ((Known & option ? On : this->flags) & option) != 0; }
};

// Calls f with the options that are in Bits as a compile-time constant.
template <uint32_t Bits, uint32_t On = 0, class F>
auto compile_in(uint32_t options, F f) {
  if constexpr (Bits == 0) {
    return f(std::integral_constant<uint32_t, On>{});
  } else {
    constexpr uint32_t bit = Bits & (0u - Bits);
    return options & bit ? compile_in<Bits & ~bit, On | bit>(options, f) : compile_in<Bits & ~bit, On>(options, f);
  }
}

// Calls f with every choice of Bits in turn, until one returns something other than 0.
template <uint32_t Bits, uint32_t On = 0, class F>
int each_choice(F f) {
  if constexpr (Bits == 0) {
    return f(std::integral_constant<uint32_t, On>{});
  } else {
    constexpr uint32_t bit = Bits & (0u - Bits);
    const int result = each_choice<Bits & ~bit, On>(f);
    return result ? result : each_choice<Bits & ~bit, On | bit>(f);
  }
}

}  // namespace DR_ISA
}  // namespace deeprelax
