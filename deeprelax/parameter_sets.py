"""Parameter groups, split into the sets that one launch serves; made anew when parameters move."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprelax.memory import refuse_overlaps, supported
from deeprelax.param_set import ParamSet

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# What a group holds beside its hyper-parameters, all plain numbers, so that state_dict carries them.
CLOCK = ("step", "phase", "cycle_steps", "seed", "training", "fresh", "norm", "norm_before")


# Of "norm" and "norm_before", the last two outer updates' norms that gamma_schedule="adaptive" goes by.
NOT_KNOWN = -1.0

# Buffers that come and go: the momenta with their hyper-parameters, the inner point with eval mode.
OPTIONAL = {"momentum_buffer", "inner_momentum_buffer", "inner"}


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """ValueError unless the hyper-parameter is as expected."""
    if not condition:
        raise ValueError(f"invalid {name}: {value!r}; expected {expected}")


class ParameterSets(Optimizer):
    """An optimizer whose groups are split into sets of one device and one dtype, each with a table and flat state."""

    #: Per-weight buffers in the compute dtype that exist from construction on.
    _kept: ClassVar[tuple[str, ...]]
    #: Hyper-parameters beyond the common ones that are finite and not negative.
    _non_negative: ClassVar[tuple[str, ...]] = ()
    _constructing = False

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        seed: int | None,
        flatten: bool,
        backend: str,
        capturable: bool,
    ) -> None:
        if not isinstance(capturable, bool):
            raise TypeError(f"capturable must be True or False, not {type(capturable).__name__}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an integer or None, not {type(seed).__name__}")
        self._backend = backend
        self._flatten = flatten
        self._capturable = capturable
        self._clocks: list[Any] = []  # with capturable, per group a GroupClock
        # torch.amp.GradScaler asks for this, and hands over its scale and whether a gradient overflowed.
        self._step_supports_amp_scaling = capturable
        self._seed_is_torchs = seed is None
        self._outer_step_happened = False
        self._warned = False
        self._sets: list[list[ParamSet]] = []  # per group
        self._constructing = True
        seed = (torch.initial_seed() if seed is None else seed) & 0xFFFFFFFFFFFFFFFF
        clock = {"step": 0, "phase": 0, "cycle_steps": defaults["inner_steps"], "seed": seed, "training": True}
        self._clock_defaults = {**clock, "fresh": True, "norm": NOT_KNOWN, "norm_before": NOT_KNOWN}
        super().__init__(params, defaults)
        self._constructing = False
        self._refuse_overlaps()

    # What a subclass says.

    def _check(self, group: dict[str, Any]) -> None:
        """ValueError if a hyper-parameter of the group is out of range."""
        raise AssertionError("a subclass defines it")

    def _check_parameter(self, name: str, p: Tensor) -> None:
        """TypeError or ValueError if the parameter cannot be served."""
        supported(p, name)

    def _x_is_in_params(self, group: dict[str, Any]) -> bool:
        """Whether the parameters, not the state, say what x is now."""
        return bool(group["fresh"] or group["phase"] == 0)

    def _numbers(self, i: int) -> dict[str, Any]:
        """The group with plain numbers, wherever its clock lies."""
        raise AssertionError("a subclass defines it")

    def _note_outer_step(self, happened: bool) -> None:
        """Remember whether the last step made the outer update."""
        self._outer_step_happened = happened

    def _add_clock(self, i: int) -> None:
        """Move the group's clock to where it belongs."""
        raise AssertionError("a subclass defines it")

    # Groups and sets.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; in mid-cycle they join at the current phase with x = what they hold.

        Args:
            param_group: ``{"params": …}`` and hyper-parameters of its own; the others are the defaults.

        Raises:
            ValueError: a hyper-parameter is out of range, ``inner_steps`` differs from the other groups', or a
                parameter shares memory with another.
            TypeError: a parameter's dtype or layout is not supported.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            clock = self._numbers(0) if len(self.param_groups) > 1 else self._clock_defaults
            group.update({name: clock[name] for name in CLOCK})
            group["fresh"] = True
            if len(self.param_groups) == 1:
                group["cycle_steps"] = group["inner_steps"]
            self._check_group(group)
            for name, p in self._named(len(self.param_groups) - 1):
                self._check_parameter(name, p)
            if not self._constructing:  # the constructor asks once for all groups
                self._refuse_overlaps()
            self._add_clock(len(self.param_groups) - 1)
            self._sets.append(self._make_sets(len(self.param_groups) - 1, {}))
        except BaseException:
            self.param_groups.pop()
            del self._clocks[len(self.param_groups) :]
            kept = {p for other in self.param_groups for p in other["params"]}
            for p in [p for p in group["params"] if p not in kept]:
                self.state.pop(p, None)
            raise

    def _refuse_overlaps(self) -> None:
        refuse_overlaps(entry for i in range(len(self.param_groups)) for entry in self._named(i))

    def _named(self, group_index: int) -> list[tuple[str, Tensor]]:
        group = self.param_groups[group_index]
        names = group.get("param_names")
        if names is None:
            names = [f"param_groups[{group_index}]['params'][{i}]" for i in range(len(group["params"]))]
        return list(zip(names, group["params"]))

    def _check_group(self, group: dict[str, Any], reference: dict[str, Any] | None = None) -> None:
        """ValueError if a value of the group is out of range, or its inner_steps are not the reference group's."""
        reference = reference or self.param_groups[0]
        try:
            lr = float(group["lr"])
        except (TypeError, ValueError, RuntimeError):
            lr = math.nan
        require(math.isfinite(lr) and lr >= 0, "lr", group["lr"], "a finite number >= 0, or a tensor of one")
        steps = group["inner_steps"]
        require(type(steps) is int and steps >= 1, "inner_steps", steps, "an integer >= 1")
        require(
            steps == reference["inner_steps"],
            "inner_steps",
            steps,
            f"{reference['inner_steps']} as in the first group: it is one value per optimizer",
        )
        require(0 <= group["scoping"] < 1, "scoping", group["scoping"], "0 <= scoping < 1")
        gamma = group["gamma"]
        require(math.isfinite(gamma) and gamma > 0, "gamma", gamma, "a number > 0")
        for name in ("momentum", "weight_decay", *self._non_negative):
            require(math.isfinite(group[name]) and group[name] >= 0, name, group[name], "a finite number >= 0")
        for name in ("maximize", "nesterov"):
            require(isinstance(group[name], bool), name, group[name], "True or False")
        schedule = group["gamma_schedule"]
        require(schedule in ("scoping", "adaptive"), "gamma_schedule", schedule, "'scoping' or 'adaptive'")
        if schedule == "adaptive":
            require(not self._capturable, "capturable", True, "False: gamma_schedule='adaptive' asks the host")
            require(group["momentum"] == 0, "momentum", group["momentum"], "0 with gamma_schedule='adaptive'")
        self._check(group)

    def _make_sets(self, group_index: int, old_state: dict[Tensor, dict[str, Any]]) -> list[ParamSet]:
        """Tables and buffers for the group's parameters; values of ``old_state`` are taken over where they fit."""
        group = self.param_groups[group_index]
        base = sum(len(g["params"]) for g in self.param_groups[:group_index])
        members: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, p in enumerate(group["params"]):
            members.setdefault((p.device, p.dtype), []).append(i)
        named = self._named(group_index)
        sets = []
        for which in members.values():
            params = [group["params"][i] for i in which]
            new = ParamSet(params, which, base, [named[i][0] for i in which], self._backend, self._flatten)
            for p in params:
                self.state[p] = {}
            # Momenta wait until they are needed, but a buffer made while a graph is captured would be the graph's.
            for name in self._buffers_of(new) + (self._extra_buffers(group) if self._capturable else []):
                new.add_buffer(name, self.state)
            new.backend.prepare(new.table, self._capturable)
            new.copy_in()
            for t, p in enumerate(params):
                self.state[p]["x"].copy_(p.detach())
                if "y" in self.state[p]:
                    self.state[p]["y"].copy_(p.detach())
                self._take_over(new, t, old_state.get(p, {}))
            sets.append(new)
        return sets

    def _buffers_of(self, params: ParamSet) -> list[str]:
        return list(self._kept)

    def _extra_buffers(self, group: dict[str, Any]) -> list[str]:
        """Buffers that the group's present hyper-parameters need beyond ``_kept``."""
        return ["momentum_buffer"] if group["momentum"] != 0 else []

    def _take_over(self, params: ParamSet, t: int, old: dict[str, Any]) -> None:
        """Copy saved state of one parameter into its buffers, making those that the set has not yet."""
        p = params.params[t]
        for name, value in old.items():
            if name not in OPTIONAL and name not in params.buffers:
                continue  # the float32 y of a model that was cast to float32 since
            if name not in params.buffers:
                params.add_buffer(name, self.state, params.dtype if name == "inner" else None)
            if self.state[p][name].shape == value.shape:
                self.state[p][name].copy_(value)

    def _adopt(self, *, at_any_phase: bool = False) -> None:
        """Make new tables where a parameter's object, device, dtype or storage has changed."""
        for i, (group, sets) in enumerate(zip(self.param_groups, self._sets)):
            params = group["params"]
            if sum(len(s.params) for s in sets) != len(params) or not all(s.is_current(params) for s in sets):
                if not at_any_phase and not self._between_cycles(i):
                    self._refuse_to_adopt(i)
                self._adopt_group(i)

    def _between_cycles(self, i: int) -> bool:
        """Whether the group's parameters alone say where the run stands."""
        return self.param_groups[i]["phase"] == 0 and not any("inner" in s.buffers for s in self._sets[i])

    def _refuse_to_adopt(self, i: int) -> NoReturn:
        group, named = self.param_groups[i], self._named(i)
        known = {j: s for s in self._sets[i] for j in s.positions}
        changed = [name for j, (name, p) in enumerate(named) if j not in known or not known[j].holds(j, p)]
        where = f"phase {group['phase']}" if group["phase"] else "eval mode"
        raise RuntimeError(
            f"{', '.join(changed[:3]) or 'a parameter'} was replaced, moved or cast in {where}; do that before "
            "the first step or at phase 0 (outer_step_happened), or call restart() after it"
        )

    def _adopt_group(self, i: int) -> None:
        group, sets, named = self.param_groups[i], self._sets[i], self._named(i)
        for name, p in named:
            self._check_parameter(name, p)
        self._refuse_overlaps()
        # State follows the parameter; one that is new takes over from the one that stood in its place and is gone.
        before = {j: p for s in sets for j, p in zip(s.positions, s.params)}
        entries = {p: dict(self.state.pop(p, {})) for p in before.values()}
        staying = set(group["params"])
        old = {}
        for j, p in enumerate(group["params"]):
            source = p if p in entries else before.get(j)
            if source is not None and (source is p or source not in staying):
                old[p] = entries[source]
        try:
            self._sets[i] = self._make_sets(i, old)
        except BaseException:
            for p in group["params"]:
                self.state.pop(p, None)
            self.state.update(entries)
            raise
