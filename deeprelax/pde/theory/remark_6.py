"""Remark 6: the fixed point iteration (17) and the damped one of section 6.2, where they converge and where not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from deeprelax.pde.closed_forms import quartic_well
from deeprelax.pde.grid import Array
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.theory.statement import BLACK, BLUE, GREEN, RED, Numbers, Statement, floats, legend

LOSS = tilted_well(0.0)
X = 1.5
ALPHA = 0.75  # of section 6.2
LIMIT = (1 + ALPHA) / (1 - ALPHA)  # of γ∇²f, where α - (1 - α)γ∇²f is -1
STEPS, LAST = 400, 20
OFFSET = 1e-3  # from the fixed point, at the start
EXAMPLES = ((0.0, 0.8), (0.0, 1.2), (ALPHA, 6.5), (ALPHA, 7.5))  # α and γ∇²f


def iterate(gamma: float, alpha: float) -> tuple[float, Array]:
    """γ∇²f at the proximal point of ``X``, and |p - p*| after each of ``STEPS`` iterations from p* + ``OFFSET``.

    p ← αp + (1 - α)∇f(x - γp); it is (17) for α = 0. Distances are limited to 10⁶.
    """
    point = float(quartic_well(np.asarray(X), gamma)[1])
    fixed = (X - point) / gamma
    p, found = fixed + OFFSET, []
    for _ in range(STEPS):
        p = alpha * p + (1 - alpha) * float(LOSS.gradient(X - gamma * p)) if abs(p) < 1e6 else float("nan")
        found.append(abs(p - fixed))
    return gamma * float(LOSS.curvature(point)), np.minimum(np.nan_to_num(found, nan=1e6), 1e6)


def gamma_for(curvature: float) -> float:
    """The γ for which γ∇²f is ``curvature`` at the proximal point; γ∇²f grows with γ."""
    low, high = 0.0, 10.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        point = float(quartic_well(np.asarray(X), middle)[1])
        low, high = (middle, high) if middle * float(LOSS.curvature(point)) < curvature else (low, middle)
    return high


def measure() -> Numbers:
    """For many γ, how far both iterations end from the fixed point, and by what factor they begin."""
    sweep: Numbers = {}
    for name, alpha in (("plain", 0.0), ("damped", ALPHA)):
        sweep[name] = []
        for gamma in floats(np.linspace(0.05, 4.5, 90)):
            curvature, error = iterate(gamma, alpha)
            sweep[name].append(
                {
                    "gamma_curvature": curvature,
                    "error": float(error[-LAST:].max()),  # of a cycle, the farthest place
                    "ratio": float(error[0] / OFFSET),
                    "expected_ratio": abs(alpha - (1 - alpha) * curvature),
                }
            )
    examples = [
        {"alpha": alpha, "gamma_curvature": curvature, "error": floats(iterate(gamma_for(curvature), alpha)[1])}
        for alpha, curvature in EXAMPLES
    ]
    return {**sweep, "limits": {"plain": 1.0, "damped": LIMIT}, "examples": examples}


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    left, right = axes
    for name, marker, style, label in (
        ("plain", "o", BLACK, "(17)"),
        ("damped", "s", RED, f"damped, α = {ALPHA}"),
    ):
        errors = [max(i["error"], 1e-17) for i in n[name]]
        left.semilogy([i["gamma_curvature"] for i in n[name]], errors, marker=marker, mfc="none", ms=3, **style,
                      label=label)  # fmt: skip
        left.axvline(n["limits"][name], color="0.6", linewidth=1)
    left.set(xlabel="γ ∇²f at the proximal point", title=f"|p − p*| after {STEPS} iterations", ylim=(1e-18, 1e8))
    left.set_xticks(range(0, 11))
    legend(left, loc="center")
    for e, style in zip(n["examples"], (BLACK, BLUE, RED, GREEN)):
        label = f"{'damped' if e['alpha'] else '(17)'}, γ∇²f = {e['gamma_curvature']:g}"
        right.semilogy(range(1, 101), np.maximum(e["error"][:100], 1e-17), **style, label=label)
    right.set(xlabel="iterations", title="|p − p*|", ylim=(1e-18, 1e8))
    legend(right)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""

    def ends(name: str, low: float, high: float) -> list[float]:
        limit = n["limits"][name]
        return [i["error"] for i in n[name] if low * limit < i["gamma_curvature"] < high * limit]

    highest = max(i["gamma_curvature"] for i in n["damped"])
    return (
        f"f = {LOSS.formula}, x = {X:g}, from p* + 10⁻³, {STEPS} iterations. (17): where γ|∇²f| < 0.9 at the proximal "
        f"point it ends at most {max(ends('plain', 0, 0.9)):.0e} from p*, where γ|∇²f| > 1.1 at least "
        f"{min(ends('plain', 1.1, 99)):.2g}: it has been thrown out to a cycle or to infinity. The damped iteration "
        "of section 6.2 multiplies a small error by α − (1 − α)γ∇²f, and so converges from nearby as long as γ∇²f < "
        f"(1 + α)/(1 − α) = {LIMIT:g}: below {0.95 * LIMIT:.2f} it ends at most {max(ends('damped', 0, 0.95)):.0e} "
        f"from p*, and from {1.05 * LIMIT:.2f} to {highest:.1f} at least {min(ends('damped', 1.05, 99)):.2g}."
    )


STATEMENT = Statement("remark_6", "Remark 6: the fixed point iteration", measure, draw, tell)
