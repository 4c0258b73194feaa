"""State in and out: state_dict, deepcopy and pickle, and the checks before anything of a saved state is taken over."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deeprelax.clocked import Clocked
from deeprelax.kernels.eager import take_x
from deeprelax.parameter_sets import CLOCK, OPTIONAL

# Attributes that deepcopy and pickle carry.
KEPT = (
    "_backend",
    "_flatten",
    "_capturable",
    "_step_supports_amp_scaling",
    "_seed_is_torchs",
    "_outer_step_happened",
    "_warned",
    "_clock_defaults",
)


def check_groups(
    optimizer: str, groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], expected: Collection[str]
) -> None:
    """ValueError unless the saved groups are of this optimizer and of as many parameters each."""
    if len(groups) != len(saved):
        raise ValueError(
            f"the saved state has {len(saved)} parameter groups, this {optimizer} has {len(groups)}: build the "
            "optimizer with the groups that were there when the state was saved, then add the new ones"
        )
    for i, (group, other) in enumerate(zip(groups, saved)):
        missing = sorted(set(expected) - set(other))
        if missing:
            raise ValueError(
                f"the saved state is not that of {optimizer}: param_groups[{i}] lacks {', '.join(missing)}"
            )
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"param_groups[{i}] has {len(other['params'])} parameters in the saved state, "
                f"{len(group['params'])} in this {optimizer}"
            )


def check_clock(saved: Mapping[str, Any]) -> None:
    """ValueError unless a saved group's counters are possible."""
    steps = [saved[name] for name in ("step", "phase", "cycle_steps", "seed")]
    if not all(type(n) is int for n in steps) or not (
        0 <= saved["phase"] < saved["cycle_steps"] and saved["step"] >= 0
    ):
        raise ValueError(f"the saved state has impossible counters: step, phase, cycle_steps, seed = {steps}")


def check_state(name: str, p: Tensor, entry: Mapping[str, Any], expected: Collection[str]) -> None:
    """ValueError unless one parameter's saved tensors are those expected, in the parameter's shape."""
    tensors = {key for key in entry if key not in OPTIONAL}
    if tensors != set(expected):
        raise ValueError(
            f"{name}: the saved state holds {', '.join(sorted(tensors)) or 'nothing'}, expected "
            f"{', '.join(sorted(expected))}: it is another optimizer's, or of a model of another dtype"
        )
    for key, value in entry.items():
        if not isinstance(value, Tensor) or value.shape != p.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: {key} of the saved state has shape {found}, expected {tuple(p.shape)}")


class Checkpointed(Clocked):
    """Saves and restores the whole run, bit for bit, at any phase."""

    @torch.no_grad()
    def _refresh_x(self) -> None:
        """Where the parameters say what x is, write it into the state."""
        if all(self._between_cycles(i) for i in range(len(self._sets))):
            self._adopt()
        for i, group in enumerate(self.param_groups):
            if any(p not in self.state for p in group["params"]):
                self._refuse_to_adopt(i)
        for group, sets in zip(self.param_groups, self._sets):
            for params in sets if self._x_is_in_params(group) else []:
                for p in params.params:
                    x = self.state[p]["x"]
                    x.copy_(take_x(x, p.detach()))

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as ``torch.optim.Optimizer.state_dict``: tensors per parameter, in its shape, and in
        ``param_groups`` the hyper-parameters, the clock, the seed and the mode as plain numbers."""
        self._refresh_x()
        saved: dict[str, Any] = super().state_dict()
        for i, group in enumerate(saved["param_groups"]):
            numbers = self._numbers(i)
            group.update({name: numbers[name] for name in group if name != "params"})
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into the existing buffers, in their own dtype.

        Load the model's weights as well, in any order; in eval mode both hold what they held when they were saved.

        Args:
            state_dict: what ``state_dict()`` of the same class returned.

        Raises:
            ValueError: another optimizer's, of other groups, parameters or shapes, or with values out of range. Nothing
                is changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved_groups = state_dict["param_groups"]
        check_groups(type(self).__name__, self.param_groups, saved_groups, {*self.defaults, *CLOCK})
        for saved_group in saved_groups:
            self._check_group(saved_group, saved_groups[0])
            check_clock(saved_group)
        self._adopt(at_any_phase=True)
        saved = {
            p: state_dict["state"].get(key, {})
            for group, saved_group in zip(self.param_groups, saved_groups)
            for p, key in zip(group["params"], saved_group["params"])
        }
        for sets in self._sets:
            for params in sets:
                for name, p in zip(params.names, params.params):
                    check_state(name, p, saved[p], self._buffers_of(params))
        for group, saved_group in zip(self.param_groups, saved_groups):
            for name, value in saved_group.items():
                if name == "params":
                    continue
                if isinstance(group.get(name), Tensor):  # schedulers and captured graphs hold on to it
                    group[name].copy_(value) if isinstance(value, Tensor) else group[name].fill_(value)
                else:
                    group[name] = value.clone() if isinstance(value, Tensor) else value
        self._set_loaded()
        self._note_outer_step(bool(self.param_groups[0]["phase"] == 0 and not self.param_groups[0]["fresh"]))
        for sets in self._sets:
            for params in sets:
                for name in [n for n in params.buffers if n not in self._buffers_of(params)]:
                    if name == "inner":
                        params.drop_buffer(name, self.state)
                    else:  # a momentum that was still off when the state was saved
                        params.buffers[name].zero_()
                params.placed_gamma = None
                for t, p in enumerate(params.params):
                    self._take_over(params, t, saved[p])
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _set_loaded(self) -> None:
        """What a loaded clock does not say by itself."""
        self._seed_is_torchs = False
        for group, held in zip(self.param_groups, self._clocks):
            held.known.clear()
            held.settle(group)
            held.clock.set("seed", group["seed"])
            held.clock.set("placed_gamma", math.nan)

    def __getstate__(self) -> dict[str, Any]:
        self._refresh_x()
        kept = {name: getattr(self, name) for name in KEPT}
        if self._capturable:
            kept["_outer_step_happened"] = bool(self._clocks[0].clock.counter("outer_step_happened").item())
        return {**super().__getstate__(), "param_groups": self._portable_groups(), **kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rebuild_clocks(self.param_groups)
        self._note_outer_step(self._outer_step_happened)
        self.defaults.pop("differentiable", None)  # torch's addition; no option of ours
        old = {p: dict(entry) for p, entry in self.state.items()}
        with torch.no_grad():
            self._sets = [self._make_sets(i, old) for i in range(len(self.param_groups))]
