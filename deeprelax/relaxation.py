"""What EntropySGD, HJ and Heat share: the clock, the phases, missing gradients, eval and train, state in and out.

A subclass says which buffers its rule keeps, what the scalars of a call are, and which hyper-parameters it checks.
The update itself is a backend's (``deeprelax.kernels``).
"""

from __future__ import annotations

import sys
import warnings
from array import array
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from deeprelax import adaptive
from deeprelax.checkpoint import Checkpointed
from deeprelax.kernels import Tick
from deeprelax.kernels.device_table import capturing
from deeprelax.kernels.settings import AnySettings, Moment, advance, placed_gamma
from deeprelax.param_set import ParamSet

# One launch each: the group's number, the set, its gradients, their addresses, and whether any is missing.
Work = list[tuple[int, ParamSet, list[Tensor | None], "array[int]", bool]]


def refuse_capture(capturable: bool, work: Work) -> None:
    """RuntimeError if a CUDA graph is being captured of a step that cannot be replayed."""
    if not any(capturing(params.table.device) for _, params, *_ in work):
        return
    if not capturable:
        raise RuntimeError("step() is being captured in a CUDA graph, which needs capturable=True")
    for _, params, grads, _, _ in work:
        if not params.backend.capturable:
            raise RuntimeError(
                f"the {params.backend.name!r} backend cannot be captured in a CUDA graph: it asks the host"
            )
        for name, p, grad in zip(params.names, params.params, grads):
            if grad is None and p.requires_grad:
                raise RuntimeError(
                    f"{name} has no gradient while a CUDA graph is captured, and would never get an update when it is "
                    "replayed: run forward and backward before step(), or freeze it (requires_grad_(False))"
                )


class Relaxation(Checkpointed):
    """Base of the optimizers; not for direct use."""

    # What a subclass says.

    def _settings(self, group: dict[str, Any]) -> AnySettings:
        """The hyper-parameters that a captured step keeps on the host."""
        raise AssertionError("a subclass defines it")

    # Clock.

    @property
    def phase(self) -> int:
        """How many gradients of the running cycle have been taken: 0 … L - 1. With ``capturable=True`` this waits for
        the device."""
        return int(self.param_groups[0]["phase"])

    @property
    def outer_step_happened(self) -> bool:
        """Whether the last ``step()`` made the outer update. With ``capturable=True`` this waits for the device."""
        if self._capturable:
            return bool(self._clocks[0].clock.counter("outer_step_happened").item())
        return self._outer_step_happened

    @property
    def gamma(self) -> float:
        """γ of the first group, as scoping has left it. With ``capturable=True`` this waits for the device."""
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
        loss = None
        try:
            if not self.param_groups[0]["training"]:
                raise RuntimeError("step() in eval mode: the parameters hold x; call opt.train() first")
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with torch.no_grad():
                self._step()
        except BaseException:
            for name in ("grad_scale", "found_inf"):  # else a GradScaler's next step() would take the product of scales
                self.__dict__.pop(name, None)
            raise
        return loss

    def _step(self) -> None:
        self._check_and_settle()
        self._adopt()
        work: Work = [(i, params, *params.gather()) for i, sets in enumerate(self._sets) for params in sets]
        refuse_capture(self._capturable, work)
        if not any(any(g is not None for g in grads) for _, _, grads, _, _ in work):
            self._note_outer_step(False)
            return
        self._outer_step_happened = False
        self._agree_on_seed()
        # Whatever can fail comes before the first write: an update of some sets only could not be taken back.
        for i, params, _, _, _ in work:
            for name in self._extra_buffers(self.param_groups[i]):
                if name not in params.buffers:
                    if capturing(params.table.device):
                        raise RuntimeError(f"{name} is needed from this step on: run one step() before capturing one")
                    params.add_buffer(name, self.state)
        if self._capturable:
            self._step_on_device(work)
        else:
            self._step_on_host(work)

    def _shared_settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """Of the hyper-parameters, those that every rule has."""
        return {
            "inner_steps": group["inner_steps"],
            "keep": 1 - group["scoping"],
            "momentum": float(group["momentum"]),
            "nesterov": group["nesterov"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
            "planned_gamma": adaptive.planned_gamma(group) if group["gamma_schedule"] == "adaptive" else None,
        }

    def _step_on_host(self, work: Work) -> None:
        settings = [self._settings(group) for group in self.param_groups]
        moments = [self._moment(group) for group in self.param_groups]
        last = moments[0].last
        self._note_gamma(settings, moments)
        watched = [i for i, group in enumerate(self.param_groups) if last and group["gamma_schedule"] == "adaptive"]
        before = {i: adaptive.positions(self._sets[i], self.state, self._in_params(i)) for i in watched}
        of_sets = [self._moment(self.param_groups[i], params.placed_gamma) for i, params, *_ in work]
        calls = [settings[i].call(at) for at, (i, *_) in zip(of_sets, work)]
        for call, at, (_, params, grads, addresses, missing) in zip(calls, of_sets, work):
            params.copy_in()
            params.backend.run(call, params.table, grads, addresses, params.buffers_for(call.buffers))
            params.written()
            params.placed_gamma = placed_gamma(at, missing)
        for group, each, at in zip(self.param_groups, settings, moments):
            group.update(advance(each, at))
        for i in watched:
            after = adaptive.positions(self._sets[i], self.state, self._in_params(i))
            adaptive.note_norm(self.param_groups[i], before[i], after, moments[i])
        self._outer_step_happened = last

    def _in_params(self, i: int) -> bool:
        """Whether the parameters of the group, not the state, say what x is now."""
        return self._x_is_in_params(self.param_groups[i])

    def _step_on_device(self, work: Work) -> None:
        backend, device = self._tick_backend(), self._clocks[0].clock.words.device
        # A scaler's tensors may be on another device; they are held until everything is launched.
        scale, found_inf = (
            None if t is None else t.to(device=device, dtype=torch.float32, non_blocking=True)
            for t in (getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        )
        ticks = []
        for i, group in enumerate(self.param_groups):
            missing = any(none for j, _, _, _, none in work if j == i)
            lr, inner_lr = group["lr"], group.get("inner_lr")
            ticks.append(Tick(self._settings(group), self._clocks[i].clock, lr, inner_lr, scale, found_inf, missing))
            backend.tick(ticks[-1])
        for i, params, grads, addresses, _ in work:
            params.copy_in()
            buffers = params.buffers_for(ticks[i].settings.buffers)
            params.backend.run_ticked(ticks[i], params.table, grads, addresses, buffers)
            params.written()
            if not capturing(params.table.device):
                params.backend.prepare(params.table, True)

    def _moment(self, group: dict[str, Any], placed_gamma: float | None = None) -> Moment:
        """Where the host's clock stands."""
        phase = group["phase"]
        return Moment(
            lr=float(group["lr"]),
            inner_lr=group.get("inner_lr", 0.0),
            gamma=group["gamma"],
            step=group["step"],
            phase=phase,
            cycle_steps=group["inner_steps"] if phase == 0 else group["cycle_steps"],
            fresh=group["fresh"],
            seed=group["seed"],
            placed_gamma=placed_gamma,
        )

    def _note_gamma(self, settings: list[AnySettings], moments: list[Moment]) -> None:
        """Called with every step before anything is written; may warn."""

    def _agree_on_seed(self) -> None:
        """With ``seed=None`` and a process group, all ranks take rank 0's: DDP's replicas must draw the same noise."""
        if self._seed_is_torchs and torch.distributed.is_available() and torch.distributed.is_initialized():
            if any(capturing(params.table.device) for sets in self._sets for params in sets):
                raise RuntimeError("run one step() before capturing one: the ranks agree on the noise's seed in it")
            box = [self.param_groups[0]["seed"]]
            torch.distributed.broadcast_object_list(box, src=0)
            self._set_clock(seed=box[0])
        self._seed_is_torchs = False

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
        self._note_outer_step(False)

    def _warn_once(self, message: str) -> None:
        if self._warned:
            return
        self._warned = True
        # At the caller's line: neither torch's hooks around step() nor this package are of interest.
        level, frame = 1, sys._getframe()
        while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("deeprelax", "torch"):
            level, frame = level + 1, frame.f_back
        warnings.warn(message, stacklevel=level)
