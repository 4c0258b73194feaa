"""A group's step, phase, L, γ and seed: on the host, or on the device for steps that a CUDA graph may replay.

The group (``opt.param_groups[i]``) holds them, as plain numbers or as device tensors. A clock takes in what was written
to the group, derives the scalars of the next call, launches it and advances.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from deeprelax.kernels import CycleState, Hyper, Rule, Scalars
from deeprelax.kernels.device_table import capturing
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.hyperparameters import Range, check, hyper, plain

# What a group holds next to its hyper-parameters. ``cycle_steps`` and ``cycle_gamma`` are L and γ of the running cycle;
# ``fresh``: x is what the parameters hold, whatever the state says.
CLOCK = ("step", "phase", "cycle_steps", "cycle_gamma", "seed", "training", "fresh")

# Gradients of a bucket: in their weights' layouts, their addresses, and whether any is missing.
Gathered: TypeAlias = "tuple[Bucket, list[Tensor | None], array[int], bool]"

Warn = Callable[[str, str], None]


class Clock(Protocol):
    """One group's clock."""

    group: dict[str, Any]
    outer_step_happened: bool

    def take_in(self, inner_steps: int) -> bool:
        """Check what was written to the group, as plain numbers; returns whether anything was."""

    def prepare(self, work: Sequence[Gathered]) -> None:
        """Do everything that can fail in a step: derive the scalars of the next call."""

    def launch(self, work: Sequence[Gathered], scaler: Mapping[str, Tensor | None]) -> None:
        """Make the call that was prepared, and advance."""

    def finish(self, buckets: Sequence[Bucket]) -> bool:
        """End the cycle with the gradients that it had; returns whether there were any."""

    def numbers(self) -> dict[str, Any]:
        """The group as plain numbers. Synchronises if they are on a device."""

    def portable(self) -> dict[str, Any]:
        """The group for another device or process: plain numbers, but rates as tensors where they are tensors."""

    def set(self, **values: Any) -> None:
        """Write to the group, on the host or on the device."""


def cycle_state(group: Mapping[str, Any], rule: Rule, replica: int = 0) -> CycleState:
    """The state of the cycle of a group of plain numbers."""
    outer, inner = rule.rates
    first = group["phase"] == 0
    cycle_steps, gamma = (
        (group["inner_steps"], group["gamma"]) if first else (group["cycle_steps"], group["cycle_gamma"])
    )
    last = group["phase"] + 1 >= cycle_steps
    return CycleState(
        lr=plain(group[outer]),
        inner_lr=plain(group[inner]) if inner else 0.0,
        gamma=gamma,
        next_gamma=group["gamma"] * (1 - group["scoping"]) if last else gamma,
        step=group["step"],
        phase=group["phase"],
        cycle_steps=cycle_steps,
        fresh=group["fresh"],
        seed=group["seed"],
        replica=replica,
    )


def run(bucket: Bucket, scalars: Scalars, grads: list[Tensor | None], addresses: array[int]) -> None:
    """One kernel on one bucket, with scalars from the host."""
    if bucket.gaps:
        bucket.read_in()
    bucket.update.run(scalars, grads, addresses)
    bucket.written()


class HostClock:
    """The clock of a group of plain numbers.

    Args:
        rule: the update rule.
        group: the group, which has the entries of ``CLOCK``.
        ranges: the allowed values of its hyper-parameters.
        stochastic_rounding: of the optimizer.
        params_hold_x: whether the parameters, and not the state, say what x is at phase 0.
        warn: called with a kind and a text.
        warn_of_gamma: called with the group, the γ of a cycle and the γ after it.
        replica: of the noise.
    """

    def __init__(
        self,
        rule: Rule,
        group: dict[str, Any],
        ranges: Mapping[str, Range],
        stochastic_rounding: bool,
        params_hold_x: bool,
        warn: Warn,
        warn_of_gamma: Callable[[Mapping[str, Any], float, float], None],
        replica: int,
    ) -> None:
        self.group = group
        self.outer_step_happened = bool(group["phase"] == 0 and not group["fresh"])
        self._rule, self._ranges, self._warn, self._warn_of_gamma = rule, ranges, warn, warn_of_gamma
        self._stochastic_rounding, self._params_hold_x = stochastic_rounding, params_hold_x
        self._values = itemgetter(*ranges, "seed", "cycle_steps", "cycle_gamma", "fresh")
        self._replica = replica
        self._seen: tuple[Any, ...] | None = None
        self._hyper: Hyper
        self._scalars: dict[tuple[bool, bool], Scalars] = {}
        self._next: tuple[Scalars, CycleState | None, bool]

    def take_in(self, inner_steps: int) -> bool:
        """Check the group if its values differ from those of the last step."""
        values, lr = self._values(self.group), self.group["lr"]
        try:
            if values == self._seen and not isinstance(lr, Tensor):
                return False
        except (RuntimeError, ValueError):  # a tensor or an array that has no truth value
            pass
        numbers = {name: plain(self.group[name]) for name in self._ranges}
        check(numbers, self._ranges, inner_steps)
        if isinstance(lr, Tensor):  # a scheduler holds on to it
            numbers["lr"] = lr
        self.group.update(numbers)
        self._hyper = hyper(self.group, self._stochastic_rounding)
        self._scalars.clear()
        self._seen = self._values(self.group)
        return True

    def prepare(self, work: Sequence[Gathered]) -> None:
        """Derive the scalars of the next call. Calls of one kind in a cycle differ in the noise's step only."""
        for bucket, *_ in work:
            if capturing(bucket.table.device):
                raise RuntimeError("step() is being captured in a CUDA graph, which needs capturable=True")
        group = self.group
        phase = group["phase"]
        if phase == 0 and not self._params_hold_x and not group["fresh"]:
            self._take_up_foreign_writes(work)
        kind = phase == 0 or group["fresh"], phase + 1 >= (group["inner_steps"] if phase == 0 else group["cycle_steps"])
        scalars = self._scalars.get(kind)
        cycle = None
        if scalars is None or kind[1] or self._rule.counts:
            cycle = cycle_state(group, self._rule, self._replica)
            scalars = self._scalars[kind] = self._rule.scalars(self._hyper, cycle)
        else:
            scalars.step = group["step"] + self._rule.ahead & 0xFFFFFFFF
        if cycle is not None and cycle.last:
            self._warn_of_gamma(group, cycle.gamma, cycle.next_gamma)
            if phase > 0:
                for bucket, *_ in work:
                    for t in bucket.foreign_writes()[:1]:
                        self._warn("mid-cycle", f"{bucket.names[t]} was written to by other code in mid-cycle: {CURE}")
        self._next = scalars, cycle, phase == 0

    def _take_up_foreign_writes(self, work: Sequence[Gathered]) -> None:
        """Weights that other code has written over x + w are x."""
        for bucket, *_ in work:
            for t in bucket.foreign_writes()[:1]:
                self._warn("loaded", f"{bucket.names[t]} was written to by other code and is taken up as x: {CURE}")
                self.set(fresh=True)
                return

    def launch(self, work: Sequence[Gathered], scaler: Mapping[str, Tensor | None]) -> None:
        """Make the call, and advance."""
        scalars, cycle, first = self._next
        for bucket, grads, addresses, missing in work:
            run(bucket, scalars, grads, addresses)
            if missing:
                bucket.count_missing(grads)
            if first:
                bucket.note_versions()
        group = self.group
        group["step"] += 1
        last = cycle is not None and cycle.last
        if first:
            group["cycle_steps"], group["cycle_gamma"] = group["inner_steps"], group["gamma"]
        if last:
            group["phase"], group["gamma"] = 0, cycle.next_gamma  # type: ignore[union-attr]
            if not self._params_hold_x:
                for bucket, *_ in work:
                    bucket.note_versions()
        else:
            group["phase"] += 1
        group["fresh"] = False
        self.outer_step_happened = last
        # The derived scalars hold for the next call unless the seed, L, γ or ``fresh`` has changed.
        if last or self._seen is None or self._seen[-4:] != self._values(group)[-4:]:
            self._scalars.clear()
            if not last:  # after an outer update take_in checks the new gamma
                self._seen = self._values(group)

    def finish(self, buckets: Sequence[Bucket]) -> bool:
        """End the cycle with the gradients that it had."""
        finished = finish(self.group, self._rule, self._hyper, buckets)
        if finished is None:
            return False
        self.group.update(finished)
        self.outer_step_happened = True
        return True

    def numbers(self) -> dict[str, Any]:
        """The group itself."""
        return self.group

    def portable(self) -> dict[str, Any]:
        """A copy of the group."""
        return dict(self.group)

    def set(self, **values: Any) -> None:
        """Write to the group."""
        self.group.update(values)


CURE = (
    "load weights between two cycles (opt.outer_step_happened), call opt.restart() after loading them, or look at x "
    "inside `with opt.at_x():`"
)


def finish(group: Mapping[str, Any], rule: Rule, h: Hyper, buckets: Sequence[Bucket]) -> dict[str, Any] | None:
    """Make the outer update of a cycle that has had fewer gradients than L. Returns the group's new values, or None if
    there was no gradient."""
    if group["phase"] == 0:
        return None
    cycle = cycle_state({**group, "cycle_steps": group["phase"]}, rule)
    scalars = rule.scalars(h, cycle)
    for bucket in buckets:
        run(bucket, scalars, *bucket.no_gradients())
        bucket.note_versions()
    return {"phase": 0, "gamma": cycle.next_gamma, "fresh": False}
