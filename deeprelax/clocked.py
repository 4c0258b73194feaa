"""``capturable=True``: the clock, the learning rates and γ live on the device, where a captured step reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels import Backend, Clock, get
from deeprelax.kernels.device_table import capturing
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

    def assigned(self, group: dict[str, Any]) -> dict[str, Any]:
        """What was assigned to ``group[name]`` since ``settle``, in the place of a tensor of ours."""
        return {name: group[name] for name, tensor in self.tensors.items() if group[name] is not tensor}

    def put_back(self, group: dict[str, Any]) -> None:
        """Our tensors again, with the values that they have."""
        group.update({name: self.tensors[name] for name in self.assigned(group)})

    def settle(self, group: dict[str, Any]) -> None:
        """Take over what was assigned, and put our tensors back in its place."""
        for name, value in self.assigned(group).items():
            self.tensors[name].fill_(as_number(name, value))
            if name in SCHEDULED:
                self.known[name] = as_number(name, value)
        self.put_back(group)
        for name in SCHEDULED:
            if name in group and name not in self.known:
                self.known[name] = as_number(name, group[name])


class Clocked(ParameterSets):
    """Groups whose clocks may be on the device."""

    def _host_view(self, i: int) -> dict[str, Any]:
        """The group, with what lies on the device as the host knows it."""
        group = self.param_groups[i]
        if not self._capturable:
            return group
        assigned = {name: as_number(name, value) for name, value in self._clocks[i].assigned(group).items()}
        return {**group, **self._clocks[i].known, **assigned}

    def _check_and_settle(self) -> None:
        """ValueError, with nothing changed, if a group is out of range; then assigned values go to the device."""
        for group, held in zip(self.param_groups, self._clocks):
            assigned = held.assigned(group)
            if assigned and capturing(held.clock.words.device):
                held.put_back(group)
                raise RuntimeError(
                    f"{', '.join(assigned)} was assigned to a group, and the graph that is being captured would assign "
                    "it again at every replay: write to the group's tensor with fill_, or run one step() first"
                )
        try:
            for i in range(len(self.param_groups)):
                self._check_group(self._host_view(i), self._host_view(0))
        except BaseException:
            for group, held in zip(self.param_groups, self._clocks):
                held.put_back(group)
            raise
        for group, held in zip(self.param_groups, self._clocks):
            held.settle(group)

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

    def _note_outer_step(self, happened: bool) -> None:
        super()._note_outer_step(happened)
        if self._clocks:
            self._clocks[0].clock.set("outer_step_happened", happened)

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

    def _adopt_group(self, i: int) -> None:
        if self._capturable:
            self._device()  # refuses half of a move before anything is done
        super()._adopt_group(i)

    def _adopt(self, *, at_any_phase: bool = False) -> None:
        super()._adopt(at_any_phase=at_any_phase)
        devices = {params.table.device for sets in self._sets for params in sets}
        if self._capturable and any(devices - {c.clock.words.device} for c in self._clocks):
            happened = bool(self._clocks[0].clock.counter("outer_step_happened").item())
            self._rebuild_clocks(self._portable_groups())
            self._note_outer_step(happened)

    def _portable_groups(self) -> list[dict[str, Any]]:
        """The groups with plain numbers, but rates as tensors of their own dtype: for another device, or a copy."""
        if not self._capturable:
            return [dict(group) for group in self.param_groups]
        groups = []
        for i, group in enumerate(self.param_groups):
            rates = {n: group[n].clone() for n in ("lr", "inner_lr") if isinstance(group.get(n), Tensor)}
            groups.append({**self._numbers(i), **rates})
        return groups

    def _rebuild_clocks(self, groups: list[dict[str, Any]]) -> None:
        """New clocks that stand where ``groups`` says."""
        device = self._device() if self._capturable else None
        for values in (*groups, self.defaults):
            for name in ("lr", "inner_lr"):
                if device is not None and isinstance(values.get(name), Tensor):
                    values[name] = values[name].to(device)
        self._clocks = []
        for i, values in enumerate(groups):
            self.param_groups[i].update(values)
            self._add_clock(i)
