"""The viscous proximal operator from samples: Osher, Heaton and Wu Fung, "A Hamilton-Jacobi-based proximal operator",
PNAS 120 (2023). Values of f are enough; no gradient is taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deeprelax.pde.grid import positive

# With fewer effective samples a mean is not reliable; with fewer than 20 samples in all, less than half must count.
COLLAPSED = 10.0


@dataclass(frozen=True)
class ProximalEstimate:
    """Estimates from the samples, for each point of the batch.

    Attributes:
        point: the mean of the samples under their weights, (batch, dimensions): prox_γf(x) as δ → 0.
        gradient: (x - point)/γ, an estimate of ∇u of viscosity δ (Lemma 3).
        u: -δ log of the mean of exp(-f/δ), (batch,): Hopf-Cole.
        effective_samples: (batch,), 1/Σw², from 1 (one sample has all the weight) to their number.
    """

    point: Tensor
    gradient: Tensor
    u: Tensor
    effective_samples: Tensor


def sampled_proximal(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    gamma: float,
    viscosity: float,
    samples: int = 1000,
    generator: torch.Generator | None = None,
) -> ProximalEstimate:
    """E[y] over the density (12), ∝ exp(-(f(y) + |x - y|²/2γ)/δ), by weighted samples y ~ N(x, δγI).

    The weights ∝ exp(-f(y)/δ) are taken relative to the lowest value of f, in float32 or wider: no value of f
    overflows, and a constant added to f costs no digits. Their effective number falls exponentially with the dimension
    and with 1/δ; when it is less than 10, or than half of the samples where they are fewer than 20, a warning says so.

    Args:
        f: takes points (batch, samples, dimensions) and returns values (batch, samples).
        x: floating-point, (batch, dimensions), or (dimensions,) for a single point.
        gamma: γ > 0.
        viscosity: δ > 0. Larger: more effective samples, and further from the proximal point.
        samples: per point of the batch.
        generator: of the noise, on x's device; None takes torch's.

    Returns:
        Estimates with x's batch, dtype and device.

    Raises:
        ValueError: γ or δ ≤ 0, fewer than one sample, no point, a shape that does not fit, values of f that are not
            finite.
        TypeError: x is not floating-point.
    """
    positive("gamma", gamma)
    positive("viscosity", viscosity)
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; a floating-point tensor is needed")
    if samples < 1 or x.ndim not in (1, 2) or x.numel() == 0:
        raise ValueError(
            f"x of shape {tuple(x.shape)}, {samples} samples: (batch, dimensions), neither 0, and at least 1 are needed"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    base = x.detach().reshape(-1, x.shape[-1]).to(wide)
    noise = torch.randn((len(base), samples, base.shape[1]), generator=generator, dtype=wide, device=x.device)
    y = (base[:, None] + math.sqrt(viscosity * gamma) * noise).to(x.dtype)
    with torch.no_grad():
        values = f(y)
    if values.shape != y.shape[:2]:
        raise ValueError(f"f returned shape {tuple(values.shape)} for points of shape {tuple(y.shape)}; "
                         f"{tuple(y.shape[:2])} is needed")  # fmt: skip
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"f is not finite at {int((~torch.isfinite(values)).sum())} of {values.numel()} samples")
    values = values.to(torch.promote_types(values.dtype, wide))
    lowest = values.min(dim=1, keepdim=True).values
    relative = torch.exp(-(values - lowest) / viscosity)
    weights = relative / relative.sum(1, keepdim=True)
    effective = 1 / (weights**2).sum(1)
    if float(effective.min()) < min(COLLAPSED, samples / 2):
        warnings.warn(
            f"the weights have collapsed: {float(effective.min()):.1f} of {samples} samples are effective "
            f"(viscosity {viscosity:.3g}, {base.shape[1]} dimensions). Use a larger viscosity, a smaller gamma or more "
            "samples",
            stacklevel=2,
        )
    point = (weights[:, None] @ y.to(weights.dtype))[:, 0]
    gradient = (base - point) / gamma
    # A mean of at least 1/samples: its logarithm is safe, and 0 for a constant f.
    u = lowest[:, 0] - viscosity * relative.mean(1).log()
    if x.ndim == 1:
        u, effective = u[0], effective[0]
    point, gradient = (t.reshape(x.shape).to(x.dtype) for t in (point, gradient))
    return ProximalEstimate(point, gradient, u.to(x.dtype), effective.to(x.dtype))
