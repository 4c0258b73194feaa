"""Rules by which γ changes in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeprelax.kernels.reference import take_x
from deeprelax.optim.groups import Plan, ready
from deeprelax.optim.sharding import is_sharded

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation

SMALLEST, LARGEST = 1e-3, 1e1  # bounds of γ in HJ-MAD's program


def adaptive_gamma(
    gamma: float,
    norm: float,
    previous_norm: float,
    *,
    theta: float = 0.9,
    shrink: float = 0.9,
    grow: float = 1.1,
    smallest: float = SMALLEST,
    largest: float = LARGEST,
) -> float:
    """The time rule of HJ-MAD: γ grows while the smoothed gradient falls fast, and shrinks otherwise.

    γ ← min(grow·γ, largest) if ``norm`` ≤ theta·``previous_norm``, else max(shrink·γ, smallest). Where ∇u goes down
    quickly, x is settling into a basin of u: more smoothing opens it. A γ beyond a bound stays where the rule would
    move it farther away, and otherwise goes by the rule: no bound makes it jump. Source: Heaton, Wu Fung, Osher,
    "Global solutions to nonconvex problems by evolution of Hamilton-Jacobi PDEs" (Commun. Appl. Math. Comput. 6, 2023;
    arXiv 2202.11014), in the form and with the defaults of its authors' program, which compares the norms of the whole
    update γ∇u = x - E[y], not those of ∇u. Its step x ← x - a γ∇u needs a between 1 - √shrink and 1 + √grow; a = 1 is
    the proximal point iteration (Remark 7).

    The program's update may be an exponential average of vectors, with which it steps as well, a momentum. An average
    of norms does not replace it: with a decay of theta or more it cannot fall by more than theta, and γ would never
    grow. If noise dominates the update, its norms stay about the same, so γ shrinks to ``smallest``.

    Args:
        gamma: γ at present.
        norm: of the last update γ∇u, over all parameters.
        previous_norm: of the one before.
        theta: 0 < theta < 1, the fall that counts as fast.
        shrink: 0 < shrink < 1.
        grow: > 1.
        smallest, largest: bounds of the rule; 0 < smallest ≤ largest.

    Returns:
        The next γ.

    Raises:
        ValueError: a number out of its range; a norm that is negative or not finite.
    """
    for name, value, allowed, wanted in (
        ("gamma", gamma, gamma > 0, "> 0"),
        ("norm", norm, norm >= 0, ">= 0"),
        ("previous_norm", previous_norm, previous_norm >= 0, ">= 0"),
        ("theta", theta, 0 < theta < 1, "between 0 and 1"),
        ("shrink", shrink, 0 < shrink < 1, "between 0 and 1"),
        ("grow", grow, grow > 1, "> 1"),
        ("smallest", smallest, 0 < smallest <= largest, f"> 0 and at most largest, {largest}"),
        ("largest", largest, True, ""),
    ):
        if not (math.isfinite(value) and allowed):
            raise ValueError(f"{name} is {value}; a finite number {wanted} is needed")
    if norm <= theta * previous_norm:
        return min(grow * gamma, max(largest, gamma))
    return max(shrink * gamma, min(smallest, gamma))


# Of γ = lr/2, where the outer step of EntropySGD would overshoot on a steep loss; one growth of the rule.
ABOVE_LR_HALF = 1.1


def smallest_gamma(group: Mapping[str, Any]) -> float:
    """The smallest γ that ``AdaptiveGamma`` sets for a group: under gradient noise it gets there.

    EntropySGD divides by γ. With the explicit coupling y keeps 1 - inner_lr/γ of its distance from x in each call: γ ≥
    inner_lr keeps that from overshooting, and is stable up to a curvature of 1/inner_lr, half of what plain gradient
    descent allows. Without ``absorb_gamma`` the outer step is lr/γ: stable for every curvature while γ > lr/2.
    """
    bounds = [SMALLEST]
    if group.get("coupling") == "explicit":
        bounds.append(float(group["inner_lr"]))
    if group.get("absorb_gamma") is False:
        bounds.append(ABOVE_LR_HALF * float(group["lr"]) / 2)
    return max(bounds)


class AdaptiveGamma:
    """γ by the rule of HJ-MAD (``adaptive_gamma``), from the norms of the outer updates. Stepped like a scheduler:

        opt = deeprelax.HJ(model.parameters(), scoping=0)
        gamma = AdaptiveGamma(opt)
        ...
        opt.step()
        gamma.step()

    After every outer update it compares how far x has moved with the update before, group by group, and writes γ of
    the next cycle to the group. It keeps a copy of x (4 bytes per float32 parameter) and reads one norm a cycle to the
    host. Heat draws the first point of a cycle in the call before it, with the γ of the old cycle.

    Args:
        opt: an optimizer with ``scoping=0`` and ``momentum=0``, not ``capturable``.

    Attributes:
        norms: for each group the norms of the last two outer updates, or fewer at the beginning.

    Raises:
        ValueError: the optimizer has another setting.
    """

    def __init__(self, opt: Relaxation) -> None:
        for i, group in enumerate(opt.param_groups):
            for name, expected in (("scoping", 0), ("momentum", 0)):
                if group[name] != expected:
                    raise ValueError(f"param_groups[{i}] has {name}={group[name]}; AdaptiveGamma needs {expected}")
        if opt._step_supports_amp_scaling:
            raise ValueError("AdaptiveGamma needs an optimizer with capturable=False: it reads norms to the host")
        if any(is_sharded(p) for group in opt.param_groups for p in group["params"]):
            raise ValueError("AdaptiveGamma does not support sharded parameters: it needs norms of whole ones")
        self._opt = opt
        self.norms: list[tuple[float, ...]] = [() for _ in opt.param_groups]
        self._positions = self._found()

    @torch.no_grad()
    def _found(self) -> list[list[Tensor]]:
        """Copies of x, which the parameters hold or the state does, group by group."""
        return [self._of(plan) for plan in ready(self._opt)]

    def _of(self, plan: Plan) -> list[Tensor]:
        shown = self._opt._x_is_shown(plan.clock.numbers())
        return [
            take_x(x, p.detach()) if shown else x.clone()
            for bucket in plan.buckets
            for p, x in zip(bucket.params, bucket.views["x"])
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Call it after every ``opt.step()``; it does something after an outer update only."""
        if not self._opt.outer_step_happened:
            return
        found = self._found()
        for i, (group, before, after) in enumerate(zip(self._opt.param_groups, self._positions, found)):
            norm = self._norm(group, before, after)
            if norm is None:
                continue
            gamma, self.norms[i] = float(group["gamma"]), (*self.norms[i][-1:], norm)
            if len(self.norms[i]) == 2:
                previous, last = self.norms[i]
                smallest = smallest_gamma(group)
                largest = max(smallest, LARGEST)
                group["gamma"] = adaptive_gamma(gamma, last, previous, smallest=smallest, largest=largest)
        self._positions = found

    def _norm(self, group: Mapping[str, Any], before: Sequence[Tensor], after: Sequence[Tensor]) -> float | None:
        """The norm of γ∇u over all parameters, from how far an outer update has moved x, summed in float64; None if it
        is undefined."""
        lr, gamma = float(group["lr"]), float(group["cycle_gamma"])
        scale = lr if group.get("absorb_gamma") else lr / gamma
        if scale == 0 or len(before) != len(after) or not after:
            return None
        squares = [(new - old).double().square().sum() for new, old in zip(after, before)]
        moved = math.sqrt(float(torch.stack(squares).sum()))
        return moved / scale if math.isfinite(moved) else None

    def state_dict(self) -> dict[str, Any]:
        """The norms and the positions that the next comparison needs."""
        return {"norms": list(self.norms), "positions": [list(each) for each in self._positions]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict()`` returned.

        Raises:
            ValueError: it is that of other groups or parameters.
        """
        positions = state_dict["positions"]
        shapes = [[t.shape for t in each] for each in positions]
        if shapes != [[t.shape for t in each] for each in self._positions]:
            raise ValueError("the saved state of AdaptiveGamma is that of an optimizer with other groups or parameters")
        self.norms = [tuple(each) for each in state_dict["norms"]]
        self._positions = [
            [own.copy_(saved) for own, saved in zip(mine, each)] for mine, each in zip(self._positions, positions)
        ]
