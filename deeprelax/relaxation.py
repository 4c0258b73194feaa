"""What EntropySGD, HJ and Heat share: the clock, the phases, missing gradients, eval and train, state in and out.

A subclass says which buffers its rule keeps, what the scalars of a call are, and which hyper-parameters it checks.
The update itself is a backend's (``deeprelax.kernels``).
"""

from __future__ import annotations

import ctypes
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, overload

import torch

from deeprelax.checkpoint import Checkpointed
from deeprelax.kernels import Call, Outer, Stream
from deeprelax.param_set import ParamSet


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return ctypes.c_float(value).value


def noise_scale(*factors: float) -> float:
    """The float32 square root of the float32 product of the factors."""
    product = 1.0
    for factor in factors:
        product = float32(product * float32(factor))
    return float32(math.sqrt(product))


class Relaxation(Checkpointed):
    """Base of the optimizers; not for direct use."""

    # What a subclass says.

    def _call(self, group: dict[str, Any], params: ParamSet, first: bool, last: bool) -> Call:
        """The scalars of one call."""
        raise AssertionError("a subclass defines it")

    def _extra_buffers(self, group: dict[str, Any]) -> list[str]:
        """Buffers that the group's present hyper-parameters need beyond ``_kept``."""
        return ["momentum_buffer"] if group["momentum"] != 0 else []

    def _after(self, call: Call, params: ParamSet, missing: bool) -> None:
        """Note what the call has done to a set."""

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

    # One step.

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        # Whatever can fail comes before the first write: an update of some sets only could not be taken back.
        gammas = [self._next_gamma(group) if last else group["gamma"] for group in self.param_groups]
        calls = []
        for group, params, _, _, _ in work:
            for name in self._extra_buffers(group):
                if name not in params.buffers:
                    params.add_buffer(name, self.state)
            calls.append(self._call(group, params, phase == 0 or group["fresh"], last))
            params.copy_in()
        for call, (_, params, grads, addresses, missing) in zip(calls, work):
            buffers = {name: params.buffers[name] for name in call.buffers if name in params.buffers}
            params.backend.run(call, params.table, grads, addresses, buffers)
            params.copy_out()
            self._after(call, params, missing)
            # Whatever was saved for a backward pass holds the old weights: let autograd notice.
            torch.autograd.graph.increment_version(params.params)
        for group, gamma in zip(self.param_groups, gammas):
            group.update(step=group["step"] + 1, phase=0 if last else phase + 1, fresh=False, gamma=gamma)
        self._outer_step_happened = last

    def _next_gamma(self, group: dict[str, Any]) -> float:
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

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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

    @torch.compiler.disable  # type: ignore[untyped-decorator]
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

    def _warn_once(self, message: str) -> None:
        if self._warned:
            return
        self._warned = True
        # At the caller's line: neither torch's hooks around step() nor this package are of interest.
        level, frame = 1, sys._getframe()
        while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("deeprelax", "torch"):
            level, frame = level + 1, frame.f_back
        warnings.warn(message, stacklevel=level)
