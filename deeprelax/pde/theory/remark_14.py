"""Remark 14: the alternative form of noise-free Entropy-SGD has HJ's inner iterates, and another outer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from deeprelax import HJ
from deeprelax.pde.closed_forms import quartic_well
from deeprelax.pde.losses import tilted_well
from deeprelax.pde.theory.statement import BLACK, GREEN, RED, Numbers, Statement, fitted_slope, floats, legend

LOSS = tilted_well(0.0)
GAMMA, INNER_LR, X, STEPS = 0.4, 0.1, 1.7, 60


def measure() -> Numbers:
    """γp of ``deeprelax.HJ`` against y of Remark 14, and the gap of their outer steps, after L = 1, 2, … gradients."""
    alpha = 1 - INNER_LR / GAMMA
    p = torch.nn.Parameter(torch.full((1,), X, dtype=torch.float64))
    opt = HJ([p], lr=1.0, gamma=GAMMA, alpha=alpha, inner_steps=STEPS + 1)
    gradient: Callable[[Any], Any] = LOSS.gradient  # of a tensor too
    y, ps, ys = 0.0, [], []
    for _ in range(STEPS):
        p.grad = gradient(p.detach())
        opt.step()
        ps.append(float(opt.state[p]["p"]))
        y = (1 - INNER_LR / GAMMA) * y + INNER_LR * float(LOSS.gradient(X - y))
        ys.append(y)
    force = np.asarray([float(LOSS.gradient(X - y)) for y in ys])
    point = float(quartic_well(np.asarray(X), GAMMA)[1])
    gaps = np.abs(force - np.asarray(ps))
    ratio = abs(alpha - (1 - alpha) * GAMMA * float(LOSS.curvature(point)))
    clear = gaps > 1e-11
    steps = np.arange(1, STEPS + 1)
    return {
        "iterates_differ": float(np.abs(GAMMA * np.asarray(ps) - np.asarray(ys)).max()),
        "steps": [int(s) for s in steps],
        "gap": floats(gaps),
        "error": floats(np.abs(np.asarray(ps) - (X - point) / GAMMA)),
        "ratio": ratio,
        "measured_ratio": float(np.exp(fitted_slope(np.exp(steps[clear][5:] * 1.0), gaps[clear][5:]))),
        "fixed_point": (X - point) / GAMMA,
    }


def draw(n: Numbers, axes: Sequence[Axes]) -> None:
    """Plot the numbers."""
    (ax,) = axes
    ax.semilogy(n["steps"], np.maximum(n["gap"], 1e-17), marker="o", ms=3, **BLACK, label="|∇f(x − y) − p|")
    ax.semilogy(n["steps"], np.maximum(n["error"], 1e-17), marker="s", ms=3, **RED, label="|p − p*|")
    ax.semilogy(n["steps"], n["gap"][0] * n["ratio"] ** np.asarray(n["steps"]), **GREEN, label=f"{n['ratio']:.2f}ᴸ")
    ax.set(xlabel="L", title="the outer steps of the two forms", ylim=(1e-17, 10))
    legend(ax)


def tell(n: Numbers) -> str:
    """The text of the section, in Markdown."""
    gaps = {step: n["gap"][step - 1] for step in (1, 5, 20, 60)}
    shown = ", ".join(f"{gap:.1e} at L = {step}" for step, gap in gaps.items())
    return (
        f"y ← (1 − η′/γ)y + η′∇f(x − y) and `deeprelax.HJ` with α = 1 − η′/γ (η′ = {INNER_LR}, γ = {GAMMA}, x = "
        f"{X}, f = {LOSS.formula}): y and γp differ by at most {n['iterates_differ']:.0e} over {STEPS} gradients. "
        "The outer steps are other ones: x moves by η∇f(x − y) in Remark 14 and by ηp in (HJ), which are equal at "
        f"the fixed point only. The gap is {shown}; it falls by the factor {n['measured_ratio']:.3f} per gradient "
        f"(|α − (1 − α)γ∇²f(y*)| = {n['ratio']:.3f})."
    )


STATEMENT = Statement("remark_14", "Remark 14: Entropy-SGD without noise, and HJ", measure, draw, tell, panels=1)
