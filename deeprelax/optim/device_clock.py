"""``capturable=True``: a group's clock, learning rates and γ on the device, where a captured step reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from deeprelax.kernels import Backend, ClockMemory, Rule, Tick, get
from deeprelax.kernels.device_table import capturing
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.clock import Gathered, finish
from deeprelax.optim.hyperparameters import Range, check, hyper, plain, require


def refuse_missing(buckets: Sequence[Gathered]) -> None:
    """RuntimeError if a gradient is missing while a CUDA graph is captured."""
    for bucket, grads, _, _ in buckets:
        for name, grad in zip(bucket.names, grads):
            if grad is None and capturing(bucket.table.device):
                raise RuntimeError(
                    f"{name} has no gradient while a CUDA graph is captured, and would never get an update when it is "
                    "replayed: run forward and backward before step(), or freeze it (requires_grad_(False))"
                )


# What the device counts in a capturable group.
COUNTED = ("step", "phase", "cycle_steps", "fresh", "cycle_gamma")
LR_DTYPES = (torch.float32, torch.float64)


def rates(rule: Rule) -> list[str]:
    """The learning rates of a rule."""
    return [name for name in rule.rates if name]


class DeviceClock:
    """The clock of a group of device tensors of one element: ``group[name]`` is one of ``tensors``.

    Args:
        rule: the update rule.
        group: the group; its values become tensors.
        device: where all parameters are.
        backend: a backend, its name, or "auto": advances the clock.
        ranges: the allowed values of the hyper-parameters.
        stochastic_rounding: of the optimizer.
        taken: tensors that belong to other groups; a rate among them is cloned, since a scheduler would write to both.
        replica: of the noise.

    Attributes:
        memory: counters and γ for the kernels.
        tensors: of shape (), by the names of ``COUNTED``, the rates and gamma; a rate may have shape (1,).
        known: values of the rates and of γ as the host has last seen them, for checks that must not synchronise.
    """

    def __init__(
        self,
        rule: Rule,
        group: dict[str, Any],
        device: torch.device,
        backend: str | Backend,
        ranges: Mapping[str, Range],
        stochastic_rounding: bool,
        taken: Sequence[Tensor],
        replica: int,
    ) -> None:
        check({name: plain(group[name]) for name in ranges}, ranges, plain(group["inner_steps"]))
        self.group, self.memory = group, ClockMemory(device)
        self.backend = get(backend, device) if isinstance(backend, str) else backend
        self._rule, self._ranges, self._stochastic_rounding = rule, ranges, stochastic_rounding
        self._rates = rates(rule)
        self.tensors = {name: self.memory.value(name) for name in (*COUNTED, "gamma")}
        self.known: dict[str, Any] = {}
        self._seed: int | None = None
        for name in self._rates:
            given = group[name]
            if isinstance(given, Tensor) and given.device == device:
                self.tensors[name] = given.clone() if any(given is other for other in taken) else given
            else:
                self.tensors[name] = torch.empty((), dtype=torch.float64, device=device)
        self.memory.set("replica", replica)
        self.memory.set("outer_step_happened", plain(group["phase"]) == 0 and not plain(group["fresh"]))
        self._write()

    @property
    def outer_step_happened(self) -> bool:
        """Whether the last call made the outer update; waits for the device."""
        return bool(self.memory.value("outer_step_happened").item())

    @outer_step_happened.setter
    def outer_step_happened(self, happened: bool) -> None:
        self.memory.set("outer_step_happened", happened)

    def _assigned(self) -> dict[str, Any]:
        """What was assigned to ``group[name]`` in place of one of our tensors."""
        return {name: self.group[name] for name, tensor in self.tensors.items() if self.group[name] is not tensor}

    def _put_back(self) -> None:
        self.group.update({name: self.tensors[name] for name in self._assigned()})

    def _write(self) -> None:
        """Take over what was assigned, and put our tensors back in its place."""
        for name, value in self._assigned().items():
            number = plain(value)
            self.tensors[name].fill_(number)
            if name not in COUNTED:
                self.known[name] = number
        for name in self.tensors:
            if name not in COUNTED and name not in self.known:
                self.known[name] = plain(self.group[name])
        self._put_back()

    def take_in(self, inner_steps: int) -> bool:
        """Check what was assigned to the group and write it to the device.

        Raises:
            ValueError: a value is out of its range. Nothing has changed.
            RuntimeError: it was assigned during a capture, and a replay would assign it again.
        """
        assigned = self._assigned()
        if assigned and capturing(self.memory.words.device):
            self._put_back()
            raise RuntimeError(
                f"{', '.join(assigned)} was assigned to a group, and the graph that is being captured would assign "
                "it again at every replay: write to the group's tensor with fill_, or run one step() first"
            )
        numbers = {name: plain(self.group[name]) for name in self._ranges if name not in self.tensors}
        values = {**self.known, **{name: plain(value) for name, value in assigned.items()}, **numbers}
        try:
            check(values, self._ranges, inner_steps)
        except ValueError:
            self._put_back()
            raise
        self.group.update(numbers)
        if assigned:
            self._write()
        if self._seed != self.group["seed"]:
            self._seed = self.group["seed"]
            self.memory.set("seed", self.group["seed"])
        return True

    def prepare(self, work: Sequence[Gathered]) -> None:
        """Refuse what cannot be replayed."""
        for bucket, *_ in work:
            if not bucket.backend.capturable and capturing(bucket.table.device):
                raise RuntimeError(
                    f"the {bucket.backend.name!r} backend cannot be captured in a CUDA graph: it needs a host-device "
                    "synchronisation"
                )
        refuse_missing(work)

    def launch(self, work: Sequence[Gathered], scaler: Mapping[str, Tensor | None]) -> None:
        """Derive the scalars and advance on the device, then make the call."""
        device = self.memory.words.device
        # A scaler's tensors may be on another device; they are held until everything is launched.
        scale, found_inf = (
            None if t is None else t.to(device=device, dtype=torch.float32, non_blocking=True)
            for t in (scaler["grad_scale"], scaler["found_inf"])
        )
        h = hyper(self.group, self._stochastic_rounding)
        outer, inner = self._rule.rates
        inner_rate = self.group[inner] if inner else None
        tick = Tick(self._rule, h, self.memory, self.group[outer], inner_rate, scale, found_inf)
        step = self.memory.value("step")
        before = step.clone() if self._rule.counts and any(missing for *_, missing in work) else None
        self.backend.tick(tick)
        for bucket, grads, addresses, missing in work:
            if bucket.gaps:
                bucket.read_in()
            bucket.update.run_ticked(tick, grads, addresses)
            bucket.written()
            if missing and before is not None:
                bucket.count_missing(grads, step - before)  # none if the gradients overflowed
            bucket.forget_versions()  # the host does not know the device's phase

    def finish(self, buckets: Sequence[Bucket]) -> bool:
        """End the cycle with the gradients that it had; waits for the device."""
        finished = finish(self.numbers(), self._rule, hyper(self.group, self._stochastic_rounding), buckets)
        if finished is None:
            return False
        self.set(**finished)
        self.outer_step_happened = True
        return True

    def numbers(self) -> dict[str, Any]:
        """The group with plain numbers in place of the tensors; waits for the device."""
        numbers = {name: value if name == "params" else plain(value) for name, value in self.group.items()}
        return {**numbers, "fresh": bool(numbers["fresh"])}

    def portable(self) -> dict[str, Any]:
        """The same with rates as tensors of their own dtype."""
        return {**self.numbers(), **{name: self.tensors[name] for name in self._rates}}

    def set(self, **values: Any) -> None:
        """Write to the group's tensors."""
        for name, value in values.items():
            if name in self.tensors:
                self.tensors[name].fill_(value)
            else:
                self.group[name] = value
            if name == "gamma":
                self.known[name] = value


def check_rate(name: str, given: Any, device: torch.device) -> None:
    """ValueError unless a learning rate that is a tensor can be read by the kernels."""
    if isinstance(given, Tensor):
        fits = given.dtype in LR_DTYPES and given.numel() == 1
        require(fits, name, given, "a float32 or float64 tensor of one element")
        require(given.device == device, name, f"a tensor on {given.device}", f"one on {device}, as the parameters")


def refuse_new_in_capture(name: str) -> NoReturn:
    """RuntimeError: a buffer made during a capture would belong to the graph."""
    raise RuntimeError(f"{name} is needed from this step on: run one step() before capturing one")
