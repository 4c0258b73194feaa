"""``capturable=True``: the clock, the learning rates and γ live on the device, where a captured step reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels import Backend, Clock, get
from deeprelax.parameter_sets import ParameterSets, require

# Of a group: what a clock counts, and what schedules change.
COUNTED = ("step", "phase", "cycle_steps", "fresh")
SCHEDULED = ("lr", "inner_lr", "gamma")
LR_DTYPES = (torch.float32, torch.float64)


def as_number(name: str, value: Any) -> Any:
    """A tensor of one element as what it stands for in a group that is not capturable."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        return value
    return bool(value.item()) if name == "fresh" else value.item()


class GroupClock:
    """One group's device tensors; ``group[name]`` is one of ``tensors``.

    Attributes:
        clock: counters and γ for the kernels.
        backend: who advances it.
        tensors: of shape (), by the names of ``COUNTED`` and ``SCHEDULED``; a learning rate may have shape (1,).
        known: values of the scheduled ones as the host has last seen them, for checks that must not synchronise.
    """

    def __init__(self, group: dict[str, Any], device: torch.device, backend: str) -> None:
        self.clock = Clock(device)
        self.backend = get(backend, device)
        self.tensors = {name: self.clock.counter(name) for name in COUNTED} | {"gamma": self.clock.gamma}
        self.known: dict[str, Any] = {}
        for name in ("lr", "inner_lr"):
            if name in group:
                given = group[name]
                own = isinstance(given, Tensor) and given.device == device
                self.tensors[name] = given if own else torch.empty((), dtype=torch.float64, device=device)
        self.clock.set("seed", group["seed"])
        self.settle(group)

    def settle(self, group: dict[str, Any]) -> None:
        """Take over what was assigned to ``group[name]`` since, and put the tensors back in its place."""
        for name, tensor in self.tensors.items():
            value = group[name]
            if value is tensor and name in self.known:
                continue
            if name in SCHEDULED:
                self.known[name] = as_number(name, value)
            if value is not tensor:
                tensor.fill_(as_number(name, value))
                group[name] = tensor


class Clocked(ParameterSets):
    """Groups whose clocks may be on the device."""

    def _host_view(self, i: int) -> dict[str, Any]:
        """The group, with what lies on the device as the host knows it."""
        group = self.param_groups[i]
        return {**group, **self._clocks[i].known} if self._capturable else group

    def _numbers(self, i: int) -> dict[str, Any]:
        """The group with plain numbers in the place of device tensors. Synchronises with ``capturable=True``."""
        group = self.param_groups[i]
        if not self._capturable or len(self._clocks) <= i:
            return group
        return {name: value if name == "params" else as_number(name, value) for name, value in group.items()}

    def _set_group(self, i: int, **values: Any) -> None:
        """Write to a group, wherever the value lies."""
        group = self.param_groups[i]
        for name, value in values.items():
            if self._capturable and name in self._clocks[i].tensors:
                self._clocks[i].tensors[name].fill_(value)
            else:
                group[name] = value
            if self._capturable and name == "seed":
                self._clocks[i].clock.set(name, value)

    def _set_clock(self, **values: Any) -> None:
        for i in range(len(self.param_groups)):
            self._set_group(i, **values)

    def _device(self) -> torch.device:
        """The one device of all parameters.

        Raises:
            ValueError: there are several.
        """
        found: dict[torch.device, str] = {}
        for i in range(len(self.param_groups)):
            for name, p in self._named(i):
                found.setdefault(p.device, name)
        if len(found) > 1:
            (a, name_a), (b, name_b) = list(found.items())[:2]
            raise ValueError(
                f"capturable=True needs all parameters on one device; {name_a} is on {a}, {name_b} on {b}: make an "
                "optimizer for each device"
            )
        return next(iter(found), torch.device("cpu"))

    def _tick_backend(self) -> Backend:
        """Who advances the clocks."""
        return self._clocks[0].backend

    def _add_clock(self, i: int) -> None:
        """Move the group's clock to the device."""
        if not self._capturable:
            return
        group, device = self.param_groups[i], self._device()
        for name in ("lr", "inner_lr"):
            given = group.get(name)
            if isinstance(given, Tensor):
                dtype, size = given.dtype, given.numel()
                require(dtype in LR_DTYPES and size == 1, name, given, "a float32 or float64 tensor of one element")
                require(
                    given.device == device, name, f"a tensor on {given.device}", f"one on {device}, as the parameters"
                )
                if any(group[name] is other.tensors.get(name) for other in self._clocks):
                    group[name] = given.clone()  # each group's own, or a scheduler would write all into one
        self._clocks.append(GroupClock(group, device, self._backend))

    def _adopt(self, *, at_any_phase: bool = False) -> None:
        super()._adopt(at_any_phase=at_any_phase)
        devices = {params.table.device for sets in self._sets for params in sets}
        if self._capturable and any(devices - {c.clock.words.device} for c in self._clocks):
            groups = [self._numbers(i) for i in range(len(self.param_groups))]
            self._rebuild_clocks(groups)

    def _rebuild_clocks(self, groups: list[dict[str, Any]]) -> None:
        """New clocks that stand where ``groups``, with plain numbers, say."""
        self._clocks = []
        for i, numbers in enumerate(groups):
            self.param_groups[i].update(numbers)
            self._add_clock(i)
