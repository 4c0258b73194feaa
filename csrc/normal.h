// Box-Muller in +, -, x, sqrt and integer operations only, each correctly rounded and in this order, so that all
// machines draw the same normals. kernels/noise.py, box_muller, is the reference. The polynomials are evaluated in
// Estrin's order, whose chain of dependent operations is half as long as Horner's.
#pragma once

#include "scalar.h"

namespace deeprelax::DR_ISA {

template <class F>
DR_HD F log_polynomial(F f) {  // -2 ln(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1]
  const F f2 = f * f;
  const F low = (f * 1.0000069f + -1.9999999f) + f2 * (f * 0.4994312f + -0.66671216f);
  const F high = (f * 0.34424853f + -0.39768472f) + f2 * (f * 0.20757426f + -0.32676288f);
  return low + (f2 * f2) * high;
}

template <class F>
DR_HD F sin_polynomial(F t2) {  // sin(pi/4 t) / t
  return (t2 * -0.080745436f + 0.7853982f) + (t2 * t2) * (t2 * -3.595451e-05f + 0.002490007f);
}

template <class F>
DR_HD F cos_polynomial(F t2) {  // cos(pi/4 t)
  return (t2 * -0.30842426f + 1.0f) + (t2 * t2) * (t2 * -0.0003188805f + 0.015849914f);
}

// Two standard normals from two random words.
template <class F, class U>
DR_HD void box_muller(U w0, U w1, F& cosine, F& sine) {
  using Int = typename Lanes<F>::Int;
  constexpr uint32_t kSqrtHalf = 0x3F3504F3u;  // the bits of sqrt(1/2)
  // Radius: u = v / 2^31 in (0, 1], r = sqrt(-2 ln u).
  const F v = to_float((Int)((w0 >> 1) | 1u));
  const U bits = as_uint(v) - kSqrtHalf;
  const F exponent = to_float((Int)(31u - (bits >> 23)));
  const F f = as_float((bits & 0x7FFFFFu) + kSqrtHalf) - 1.0f;
  const F r = root_of_normal(exponent * 1.3862944f + f * log_polynomial(f));
  // Angle: two bits for the quadrant, thirty for the position in it.
  const F t = to_float((Int)(w1 << 2)) * 0x1p-31f;
  const F t2 = t * t;
  const F s = t * sin_polynomial(t2), c = cos_polynomial(t2);
  const U swap = w1 << 1;  // its top bit decides
  const U cosine_sign = (w1 ^ swap) & 0x80000000u, sine_sign = w1 & 0x80000000u;
  cosine = r * as_float(as_uint(by_top_bit(swap, s, c)) ^ cosine_sign);
  sine = r * as_float(as_uint(by_top_bit(swap, c, s)) ^ sine_sign);
}

}  // namespace deeprelax::DR_ISA
