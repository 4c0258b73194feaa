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

COLLAPSED = 10.0  # effective samples below which a mean of them says little


@dataclass(frozen=True)
class ProximalEstimate:
    """What the samples say, for each point of the batch.

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

    The weights ∝ exp(-f(y)/δ) are normalised in log space, so that no value of f overflows. Their effective number
    falls exponentially with the dimension and with 1/δ; when the weights collapse onto a few samples, a warning says
    so.

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
        ValueError: γ or δ ≤ 0, fewer than one sample, a shape that does not fit, values of f that are not finite.
        TypeError: x is not floating-point.
    """
    positive("gamma", gamma)
    positive("viscosity", viscosity)
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; a floating-point tensor is needed")
    if samples < 1 or x.ndim not in (1, 2):
        raise ValueError(
            f"x of shape {tuple(x.shape)}, {samples} samples: (batch, dimensions) and at least 1 are needed"
        )
    at = x.detach().reshape(-1, x.shape[-1])
    noise = torch.randn((len(at), samples, at.shape[1]), generator=generator, dtype=x.dtype, device=x.device)
    y = at[:, None] + math.sqrt(viscosity * gamma) * noise
    with torch.no_grad():
        values = f(y)
    if values.shape != y.shape[:2]:
        raise ValueError(f"f returned shape {tuple(values.shape)} for points of shape {tuple(y.shape)}; "
                         f"{tuple(y.shape[:2])} is needed")  # fmt: skip
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"f is not finite at {int((~torch.isfinite(values)).sum())} of {values.numel()} samples")
    weights = torch.softmax(-values / viscosity, dim=1)
    effective = 1 / (weights**2).sum(1)
    if float(effective.min()) < COLLAPSED:
        warnings.warn(
            f"the weights have collapsed: {float(effective.min()):.1f} of {samples} samples are effective "
            f"(viscosity {viscosity:.3g}, {at.shape[1]} dimensions). Use a larger viscosity, a smaller gamma or more "
            "samples",
            stacklevel=2,
        )
    point = (weights[:, None] @ y)[:, 0]
    u = -viscosity * (torch.logsumexp(-values / viscosity, dim=1) - math.log(samples))
    shaped = point.reshape(x.shape)
    if x.ndim == 1:
        u, effective = u[0], effective[0]
    return ProximalEstimate(shaped, (x.detach() - shaped) / gamma, u, effective)
