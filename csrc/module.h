// What the Python modules share: numbers and settings as pybind11 hands them over.
#pragma once

#include <array>
#include <tuple>

#include "clock.h"

namespace deeprelax {

// (inner_steps, [keep, momentum, weight_decay, alpha, temperature, inner_momentum], flags, absorb_gamma,
// carry_inner_momentum, missing)
using TickSettings = std::tuple<int64_t, std::array<double, 6>, uint32_t, bool, bool, bool>;

// Addresses (0: none) of lr, inner_lr, grad_scale and found_inf, and whether the first two are float64.
using TickSources = std::tuple<std::array<uintptr_t, 4>, std::array<bool, 2>>;

inline Numbers numbers_of(const double* reals, uint32_t flags, const uint32_t* stream) {
  Numbers n{};
  for (int k = 0; k < kReals; ++k) {
    n.reals[k] = reals[k];
    n.narrow[k] = static_cast<float>(reals[k]);
  }
  n.flags = flags;
  n.key0 = stream[0];
  n.key1 = stream[1];
  n.step = stream[2];
  return n;
}

namespace DR_ISA {

inline Settings settings_of(const TickSettings& from) {
  const auto& [inner_steps, reals, flags, absorb_gamma, carry_inner_momentum, missing] = from;
  return {inner_steps,          reals[0], reals[1], reals[2], reals[3], reals[4], reals[5], flags, absorb_gamma,
          carry_inner_momentum, missing};
}

inline Sources sources_of(const TickSources& from) {
  const auto& [addresses, is_double] = from;
  const auto pointer = [&](int k) { return reinterpret_cast<const void*>(addresses[k]); };
  return {{pointer(0), is_double[0]},
          {pointer(1), is_double[1]},
          static_cast<const float*>(pointer(2)),
          static_cast<const float*>(pointer(3))};
}

}  // namespace DR_ISA
}  // namespace deeprelax
