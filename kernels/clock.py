"""The clock of a captured step (``capturable=True``): a group's counters and gamma on its device.

A backend's ``tick`` derives the scalars of the next call from it and advances it, without telling the host: a CUDA
graph of one step replays the whole cycle. ``csrc/clock.h`` has the same layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .settings import AnySettings, Moment, advance, float32, placed_gamma

COUNTERS = ("step", "phase", "cycle_steps", "fresh", "outer_step_happened", "seed")

# Of csrc/call.h, Numbers: float64 reals, the same in float32, flags, two words of the key and the step.
REALS = 15
NUMBERS_WORDS = 25  # of 8 bytes


class Clock:
    """Counters (int64) and gammas (float64) of one parameter group.

    Args:
        device: where the group's parameters lie.

    Attributes:
        words: int64, shape (8,): the counters in the order of ``COUNTERS``, then the bits of gamma and placed_gamma.
        gamma: float64, shape (): γ.
        placed_gamma: float64, shape (): HJ's γ at which the weights stand at x - γp; NaN: not known.
        numbers: int64, shape (25,): what ``tick`` derives, as bytes of ``Numbers`` in csrc/call.h.
    """

    def __init__(self, device: torch.device) -> None:
        self.words = torch.zeros(8, dtype=torch.int64, device=device)
        self.numbers = torch.zeros(NUMBERS_WORDS, dtype=torch.int64, device=device)
        reals = self.words.view(torch.float64)
        self.gamma, self.placed_gamma = reals[6], reals[7]
        self.placed_gamma.fill_(math.nan)

    def counter(self, name: str) -> Tensor:
        """int64, shape (): the counter of that name, in this clock's memory."""
        return self.words[COUNTERS.index(name)]

    def set(self, name: str, value: int | float) -> None:
        """Write a counter, ``gamma`` or ``placed_gamma``."""
        if name in COUNTERS:
            self.counter(name).fill_(signed64(int(value)))
        else:
            getattr(self, name).fill_(value)


def signed64(value: int) -> int:
    """A 64-bit word as int64 holds it: seeds are unsigned."""
    return ((value & 0xFFFFFFFFFFFFFFFF) ^ (1 << 63)) - (1 << 63)


@dataclass(frozen=True, slots=True)
class Tick:
    """One captured step of one group.

    Attributes:
        settings: the hyper-parameters that stay on the host.
        clock: the group's clock.
        lr, inner_lr: float32 or float64, one element, on the clock's device; inner_lr None where there is none.
        grad_scale, found_inf: float32, one element: what ``torch.amp.GradScaler`` offers, or None.
        missing: whether a parameter of the group has no gradient.
    """

    settings: AnySettings
    clock: Clock
    lr: Tensor
    inner_lr: Tensor | None
    grad_scale: Tensor | None
    found_inf: Tensor | None
    missing: bool

    def moment(self) -> Moment | None:
        """Where the run stands, read to the host; None if the gradients overflowed and the call is skipped."""
        if self.found_inf is not None and float(self.found_inf) != 0:
            return None
        step, phase, cycle_steps, fresh, _, seed, _, _ = self.clock.words.tolist()
        placed = float(self.clock.placed_gamma)
        return Moment(
            lr=float(self.lr),
            inner_lr=0.0 if self.inner_lr is None else float(self.inner_lr),
            gamma=float(self.clock.gamma),
            step=step,
            phase=phase,
            cycle_steps=self.settings.inner_steps if phase == 0 else cycle_steps,
            fresh=bool(fresh),
            seed=seed & 0xFFFFFFFFFFFFFFFF,
            placed_gamma=None if math.isnan(placed) else placed,
            inv_scale=1.0 if self.grad_scale is None else float32(1 / float(self.grad_scale)),
        )

    def advance(self, at: Moment | None) -> None:
        """The reference of what a backend's ``tick`` does to the clock."""
        clock = self.clock
        clock.set("outer_step_happened", at is not None and at.last)
        if at is None:
            return
        for name, value in advance(self.settings, at).items():
            clock.set(name, value)
        placed = placed_gamma(at, self.missing)
        clock.set("placed_gamma", math.nan if placed is None else placed)
