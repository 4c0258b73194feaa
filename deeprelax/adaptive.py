"""``gamma_schedule="adaptive"``: what the rule of ``schedules.py`` needs to know of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels.eager import take_x
from deeprelax.kernels.settings import Moment
from deeprelax.param_set import ParamSet
from deeprelax.parameter_sets import NOT_KNOWN
from deeprelax.schedules import LARGEST, SMALLEST, adaptive_gamma

State = Mapping[Tensor, Mapping[str, Tensor]]


# Of γ = lr/2, where the outer step of EntropySGD would overshoot on a steep loss; one growth of the rule.
ABOVE_LR_HALF = 1.1


def smallest_gamma(group: Mapping[str, Any]) -> float:
    """How far down the rule may take γ: under gradient noise it goes there.

    EntropySGD divides by γ. With the explicit coupling y keeps 1 - inner_lr/γ of its distance from x in each call: γ ≥
    inner_lr keeps that from overshooting, and leaves half of what plain gradient descent bears of the loss's curvature,
    1/inner_lr. Without ``absorb_gamma`` the outer step is lr/γ: stable for every curvature while γ > lr/2.
    """
    bounds = [SMALLEST]
    if group.get("coupling") == "explicit":
        bounds.append(float(group["inner_lr"]))
    if group.get("absorb_gamma") is False:
        bounds.append(ABOVE_LR_HALF * float(group["lr"]) / 2)
    return max(bounds)


def planned_gamma(group: Mapping[str, Any]) -> float:
    """γ of the next cycle. It has to be known before the update that ends this one, which may draw noise with it: so
    the two updates before that one decide, and the first two cycles have the same γ."""
    norm, before = group["norm"], group["norm_before"]
    gamma = float(group["gamma"])
    if NOT_KNOWN in (norm, before):
        return gamma
    smallest = smallest_gamma(group)
    return adaptive_gamma(gamma, norm, before, smallest=smallest, largest=max(smallest, LARGEST))


def positions(sets: Sequence[ParamSet], state: State, in_params: bool) -> list[Tensor]:
    """Copies of x, which the parameters hold or the state does."""
    params = [p for each in sets for p in each.params]
    return [take_x(state[p]["x"], p.detach()) if in_params else state[p]["x"].clone() for p in params]


def note_norm(group: dict[str, Any], before: Sequence[Tensor], after: Sequence[Tensor], at: Moment) -> None:
    """The norm of γ∇u over all parameters, from how far an outer update has moved x; summed in float64. Without a step
    there is nothing to learn."""
    scale = at.lr if group.get("absorb_gamma") else at.lr / at.gamma
    if scale == 0 or not before:
        return
    squares = [(new - old).double().square().sum() for new, old in zip(after, before)]
    moved = math.sqrt(float(torch.stack(squares).sum()))
    if math.isfinite(moved):
        group.update(norm=moved / scale, norm_before=group["norm"])
