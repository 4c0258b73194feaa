"""What EntropySGD, HJ and Heat share: the clock, the phases, missing gradients, eval and train, state in and out.

A subclass says which buffers its rule keeps, what the scalars of a call are, and which hyper-parameters it checks.
The update itself is a backend's (``deeprelax.kernels``).
"""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprelax.checkpoint import check_groups, check_state
from deeprelax.kernels import Call, Outer, Stream
from deeprelax.kernels.eager import take_x
from deeprelax.memory import ParamSet, refuse_overlaps, supported

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# What a group holds beside its hyper-parameters, all plain numbers, so that state_dict carries them.
CLOCK = ("step", "phase", "cycle_steps", "seed", "training", "fresh")


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return ctypes.c_float(value).value


def noise_scale(*factors: float) -> float:
    """The float32 square root of the float32 product of the factors."""
    product = 1.0
    for factor in factors:
        product = float32(product * float32(factor))
    return float32(math.sqrt(product))


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """ValueError unless the hyper-parameter is as expected."""
    if not condition:
        raise ValueError(f"invalid {name}: {value!r}; expected {expected}")


class Relaxation(Optimizer):
    """Base of the optimizers; not for direct use."""

    #: Per-weight buffers in the compute dtype that exist from construction on.
    _kept: ClassVar[tuple[str, ...]]

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], *, seed: int | None, flatten: bool, backend: str
    ) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an integer or None, not {type(seed).__name__}")
        self._backend = backend
        self._flatten = flatten
        self._seed_is_torchs = seed is None
        self._outer_step_happened = False
        self._warned = False
        self._sets: list[list[ParamSet]] = []  # per group
        seed = (torch.initial_seed() if seed is None else seed) & 0xFFFFFFFFFFFFFFFF
        clock = {"step": 0, "phase": 0, "cycle_steps": defaults["inner_steps"], "seed": seed, "training": True}
        self._clock_defaults = {**clock, "fresh": True}
        super().__init__(params, defaults)

    # What a subclass says.

    def _check(self, group: dict[str, Any]) -> None:
        """ValueError if a hyper-parameter of the group is out of range."""
        raise AssertionError("a subclass defines it")

    def _call(self, group: dict[str, Any], params: ParamSet, first: bool, last: bool, missing: bool) -> Call:
        """The scalars of one call."""
        raise AssertionError("a subclass defines it")

    def _extra_buffers(self, group: dict[str, Any]) -> list[str]:
        """Buffers that the group's present hyper-parameters need beyond ``_kept``."""
        return ["momentum_buffer"] if group["momentum"] != 0 else []

    def _x_is_in_params(self, group: dict[str, Any]) -> bool:
        """Whether the parameters, not the state, say what x is now."""
        return group["fresh"] or group["phase"] == 0

    # Clock.

    @property
    def phase(self) -> int:
        """How many gradients of the running cycle have been taken: 0 … L - 1."""
        return int(self.param_groups[0]["phase"])

    @property
    def outer_step_happened(self) -> bool:
        """Whether the last ``step()`` made the outer update."""
        return self._outer_step_happened

    @property
    def gamma(self) -> float:
        """γ of the first group, as scoping has left it."""
        return float(self.param_groups[0]["gamma"])

    def _set_clock(self, **values: Any) -> None:
        for group in self.param_groups:
            group.update(values)

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
            clock = self.param_groups[0] if len(self.param_groups) > 1 else self._clock_defaults
            group.update({name: clock[name] for name in CLOCK})
            group["fresh"] = True
            if len(self.param_groups) == 1:
                group["cycle_steps"] = group["inner_steps"]
            self._check_group(group)
            for name, p in self._named(len(self.param_groups) - 1):
                supported(p, name)
            refuse_overlaps(entry for i in range(len(self.param_groups)) for entry in self._named(i))
            self._sets.append(self._make_sets(len(self.param_groups) - 1, {}))
        except BaseException:
            self.param_groups.pop()
            raise

    def _named(self, group_index: int) -> list[tuple[str, Tensor]]:
        group = self.param_groups[group_index]
        names = group.get("param_names")
        if names is None:
            names = [f"param_groups[{group_index}]['params'][{i}]" for i in range(len(group["params"]))]
        return list(zip(names, group["params"]))

    def _check_group(self, group: dict[str, Any]) -> None:
        lr = float(group["lr"])
        require(math.isfinite(lr) and lr >= 0, "lr", group["lr"], "a number >= 0")
        steps = group["inner_steps"]
        require(isinstance(steps, int) and steps >= 1, "inner_steps", steps, "an integer >= 1")
        require(
            steps == self.param_groups[0]["inner_steps"],
            "inner_steps",
            steps,
            f"{self.param_groups[0]['inner_steps']} as in the first group: it is one value per optimizer",
        )
        require(0 <= group["scoping"] < 1, "scoping", group["scoping"], "0 <= scoping < 1")
        gamma = group["gamma"]
        require(math.isfinite(gamma) and gamma > 0, "gamma", gamma, "a number > 0")
        require(group["momentum"] >= 0, "momentum", group["momentum"], "a number >= 0")
        require(group["weight_decay"] >= 0, "weight_decay", group["weight_decay"], "a number >= 0")
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
            for name in self._buffers_of(new):
                new.add_buffer(name, self.state)
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

    def _take_over(self, params: ParamSet, t: int, old: dict[str, Any]) -> None:
        """Copy saved state of one parameter into its buffers, making those that the set has not yet."""
        p = params.params[t]
        for name, value in old.items():
            if name not in params.buffers:
                params.add_buffer(name, self.state, params.dtype if name == "inner" else None)
            if self.state[p][name].shape == value.shape:
                self.state[p][name].copy_(value)

    def _adopt(self) -> None:
        """Make new tables where a parameter's object, device, dtype or storage has changed; ValueError in mid-cycle."""
        for i, (group, sets) in enumerate(zip(self.param_groups, self._sets)):
            params = group["params"]
            if sum(len(s.params) for s in sets) != len(params) or not all(s.is_current(params) for s in sets):
                self._adopt_group(i)

    def _adopt_group(self, i: int) -> None:
        group, sets, named = self.param_groups[i], self._sets[i], self._named(i)
        known = {j: (p, address) for s in sets for j, p, address in zip(s.positions, s.params, s.addresses)}
        if group["phase"] != 0 or any("inner" in s.buffers for s in sets):
            changed = [
                name for j, (name, p) in enumerate(named) if j not in known or known[j][0] is not p or known[j][1] != p.data_ptr()
            ]
            where = f"phase {group['phase']}" if group["phase"] else "eval mode"
            raise RuntimeError(
                f"{', '.join(changed[:3]) or 'a parameter'} was replaced, moved or cast in {where}; do that before "
                "the first step or at phase 0 (outer_step_happened), or call restart() after it"
            )
        for name, p in named:
            supported(p, name)
        refuse_overlaps(entry for j in range(len(self.param_groups)) for entry in self._named(j))
        # Copies: a parameter that changed its place keeps its object, and with it its entry in self.state.
        old = {p: dict(self.state.pop(known[j][0], {})) for j, p in enumerate(group["params"]) if j in known}
        self._sets[i] = self._make_sets(i, old)

    # One step.

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Consume one gradient; the L-th call of a cycle also makes the outer update.

        Args:
            closure: evaluates the model once and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: in eval mode; a gradient is sparse or does not fit its parameter; a parameter was replaced
                in mid-cycle.
            ValueError: a hyper-parameter was set out of range.
        """
        if not self.param_groups[0]["training"]:
            raise RuntimeError("step() in eval mode: the parameters hold x; call opt.train() first")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        for group in self.param_groups:
            self._check_group(group)
        self._adopt()
        work = [
            (group, params, *params.gather()) for group, sets in zip(self.param_groups, self._sets) for params in sets
        ]
        self._outer_step_happened = False
        if not any(any(g is not None for g in grads) for _, _, grads, _, _ in work):
            return
        self._agree_on_seed()
        phase = self.param_groups[0]["phase"]
        if phase == 0:
            self._set_clock(cycle_steps=self.param_groups[0]["inner_steps"])
        last = phase + 1 >= self.param_groups[0]["cycle_steps"]
        for group, params, grads, addresses, missing in work:
            for name in self._extra_buffers(group):
                if name not in params.buffers:
                    params.add_buffer(name, self.state)
            call = self._call(group, params, phase == 0 or group["fresh"], last, missing)
            params.copy_in()
            buffers = {name: params.buffers[name] for name in call.buffers if name in params.buffers}
            params.backend.run(call, params.table, grads, addresses, buffers)
            params.copy_out()
            # Whatever was saved for a backward pass holds the old weights: let autograd notice.
            torch.autograd.graph.increment_version(params.params)
        for group in self.param_groups:
            group["step"] += 1
            group["phase"] = 0 if last else phase + 1
            group["fresh"] = False
            if last:
                group["gamma"] = self._next_gamma(group)
        self._outer_step_happened = last

    @staticmethod
    def _next_gamma(group: dict[str, Any]) -> float:
        """Scoping, section 6.4."""
        return float(group["gamma"] * (1 - group["scoping"]))

    @staticmethod
    def _outer(group: dict[str, Any], step: float, scale: float) -> Outer:
        return Outer(step, scale, float(group["lr"]), float(group["momentum"]), bool(group["nesterov"]))

    def _stream(self, group: dict[str, Any], ahead: int = 0) -> Stream:
        return Stream(group["seed"], (group["step"] + ahead) & 0xFFFFFFFF)

    def _agree_on_seed(self) -> None:
        """With ``seed=None`` and a process group, all ranks take rank 0's: DDP's replicas must draw the same noise."""
        if not self._seed_is_torchs:
            return
        self._seed_is_torchs = False
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            box = [self.param_groups[0]["seed"]]
            torch.distributed.broadcast_object_list(box, src=0)
            self._set_clock(seed=box[0])

    # Which point the parameters hold.

    @torch.no_grad()
    def eval(self) -> None:
        """Put x into the parameters, for validation or saving the model; ``train()`` puts the inner point back."""
        if not self.param_groups[0]["training"]:
            return
        self._adopt()
        for group, sets in zip(self.param_groups, self._sets):
            for params in sets if not self._x_is_in_params(group) else []:
                params.add_buffer("inner", self.state, params.dtype)
                for p in params.params:
                    self.state[p]["inner"].copy_(p.detach())
                    p.copy_(self.state[p]["x"])
        self._set_clock(training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Put the inner point back, where the next gradient is wanted."""
        self._adopt()
        for sets in self._sets:
            for params in sets:
                if "inner" not in params.buffers:
                    continue
                for p in params.params:
                    p.copy_(self.state[p]["inner"])
                params.drop_buffer("inner", self.state)
        self._set_clock(training=True)

    def restart(self) -> None:
        """Begin a new cycle at whatever the parameters hold now; momenta, γ and the noise counter go on."""
        for sets in self._sets:
            for params in sets:
                if "inner" in params.buffers:
                    params.drop_buffer("inner", self.state)
        self._set_clock(phase=0, fresh=True)
        self._outer_step_happened = False

    # State in and out.

    @torch.no_grad()
    def _refresh_x(self) -> None:
        """Where the parameters say what x is, write it into the state."""
        for group, sets in zip(self.param_groups, self._sets):
            for params in sets if self._x_is_in_params(group) else []:
                for p in params.params:
                    x = self.state[p]["x"]
                    x.copy_(take_x(x, p.detach()))

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as ``torch.optim.Optimizer.state_dict``: tensors per parameter, in its shape, and in
        ``param_groups`` the hyper-parameters, the clock, the seed and the mode as plain numbers."""
        self._refresh_x()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into the existing buffers, in their own dtype.

        Load the model's weights as well, in any order; in eval mode both hold what they held when they were saved.

        Args:
            state_dict: what ``state_dict()`` of the same class returned.

        Raises:
            ValueError: another optimizer's, or of other groups, parameters or shapes. Nothing is changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():  # type: ignore[attr-defined]
            state_dict = hook(self, state_dict) or state_dict
        saved_groups = state_dict["param_groups"]
        check_groups(type(self).__name__, self.param_groups, saved_groups, {*self.defaults, *CLOCK})
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
                if isinstance(group.get(name), Tensor):  # a tensor lr: schedulers hold on to it
                    group[name].copy_(torch.as_tensor(value))
                else:
                    group[name] = value.clone() if isinstance(value, Tensor) else value
        self._seed_is_torchs = False
        self._outer_step_happened = self.phase == 0 and not self.param_groups[0]["fresh"]
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
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():  # type: ignore[attr-defined]
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        self._refresh_x()
        own = ("_backend", "_flatten", "_seed_is_torchs", "_outer_step_happened", "_warned", "_clock_defaults")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        old = {p: dict(entry) for p, entry in self.state.items()}
        with torch.no_grad():
            self._sets = [self._make_sets(i, old) for i in range(len(self.param_groups))]

    # Helpers of subclasses.

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=5)
