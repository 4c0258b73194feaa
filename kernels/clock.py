"""The clock of a captured step (``capturable=True``): a group's counters and γ on its device.

A backend's ``tick`` derives the scalars of the next call from it and advances it without a host-device
synchronisation, so that a CUDA graph of one step replays the whole cycle. ``csrc/clock.h`` does the same on a GPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from .abi import ClockWords, DeviceScalars, Hyper, Scalars
from .scalars import CycleState, Rule, float32

WORDS = {field[0]: k for k, field in enumerate(ClockWords._fields_)}
GAMMAS = ("gamma", "cycle_gamma")


class ClockMemory:
    """The counters (int64) and gammas (float64) of one parameter group.

    Args:
        device: that of the group's parameters.

    Attributes:
        words: int64, shape (9,): the bytes of ``ClockWords``.
        scalars: int64: the bytes of ``DeviceScalars``, which ``tick`` derives.
        host_scalars: what ``tick`` derived, on backends that read the clock to the host; None if the call is skipped.
    """

    def __init__(self, device: torch.device) -> None:
        self.words = torch.zeros(ctypes.sizeof(ClockWords) // 8, dtype=torch.int64, device=device)
        self.scalars = torch.zeros(ctypes.sizeof(DeviceScalars) // 8, dtype=torch.int64, device=device)
        self.host_scalars: Scalars | None = None
        self._reals = self.words.view(torch.float64)

    def value(self, name: str) -> Tensor:
        """The word of that name, shape (), in this clock's memory: int64, or float64 for the gammas."""
        return (self._reals if name in GAMMAS else self.words)[WORDS[name]]

    def set(self, name: str, value: float) -> None:
        """Write a word."""
        self.value(name).fill_(value if name in GAMMAS else signed64(int(value)))


def signed64(value: int) -> int:
    """A 64-bit word as int64 holds it: seeds are unsigned."""
    return ((value & 0xFFFFFFFFFFFFFFFF) ^ (1 << 63)) - (1 << 63)


@dataclass(frozen=True, slots=True)
class Tick:
    """One captured step of one group.

    Attributes:
        rule: the update rule.
        hyper: the hyper-parameters that stay on the host.
        clock: the group's clock.
        lr, inner_lr: float32 or float64, one element, on the clock's device; inner_lr None where there is none.
        grad_scale, found_inf: float32, one element: what ``torch.amp.GradScaler`` offers, or None.
    """

    rule: Rule
    hyper: Hyper
    clock: ClockMemory
    lr: Tensor
    inner_lr: Tensor | None
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def state(self) -> CycleState | None:
        """Where the group stands, read to the host; None if the gradients overflowed and the call is skipped."""
        if self.found_inf is not None and float(self.found_inf) != 0:
            return None
        step, phase, cycle_steps, fresh, _, seed, replica, _, _ = self.clock.words.tolist()
        gamma, cycle_gamma = (float(self.clock.value(name)) for name in GAMMAS)
        if phase == 0:
            cycle_steps, cycle_gamma = self.hyper.inner_steps, gamma
        last = phase + 1 >= cycle_steps
        return CycleState(
            lr=float(self.lr),
            inner_lr=0.0 if self.inner_lr is None else float(self.inner_lr),
            gamma=cycle_gamma,
            next_gamma=gamma * self.hyper.keep if last else cycle_gamma,
            step=step,
            phase=phase,
            cycle_steps=cycle_steps,
            fresh=bool(fresh),
            seed=seed & 0xFFFFFFFFFFFFFFFF,
            replica=replica,
            inv_scale=1.0 if self.grad_scale is None else float32(1 / float(self.grad_scale)),
        )

    def on_host(self) -> None:
        """Derive the scalars of the next call on the host, and advance the clock: the reference of ``tick``."""
        state, clock = self.state(), self.clock
        clock.set("outer_step_happened", state is not None and state.last)
        clock.host_scalars = None if state is None else self.rule.scalars(self.hyper, state)
        if state is None:
            return
        if state.last:
            clock.set("gamma", state.next_gamma)
        clock.set("cycle_gamma", state.gamma)
        clock.set("cycle_steps", state.cycle_steps)
        clock.set("step", state.step + 1)
        clock.set("phase", 0 if state.last else state.phase + 1)
        clock.set("fresh", 0)
