"""Rules by which γ changes in the course of a run, as pure functions of numbers."""

from __future__ import annotations

import math

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
    update γ∇u = x - E[y], not those of ∇u. Its step x ← x - a γ∇u wants a between 1 - √shrink and 1 + √grow; a = 1 is
    the proximal point iteration (Remark 7).

    The program's update may be an exponential average of vectors, with which it steps as well, a momentum. An average
    of norms is no substitute: one that keeps theta or more of itself cannot fall by more than theta, and γ would never
    grow. Where noise dominates the update, its norms stay about the same, so γ shrinks to ``smallest``.

    Args:
        gamma: γ at present.
        norm: of the last update γ∇u, over all parameters.
        previous_norm: of the one before.
        theta: 0 < theta < 1, the fall that counts as fast.
        shrink: 0 < shrink < 1.
        grow: > 1.
        smallest, largest: how far γ is moved; 0 < smallest ≤ largest.

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
