"""The one class between ``torch.optim.Optimizer`` and the paper's optimizers: every method of torch's contract."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprelax.kernels import Backend, Rule
from deeprelax.kernels.device_table import capturing
from deeprelax.optim import compiled
from deeprelax.optim import state_dict as saved_states
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.clock import CLOCK, CURE, Gathered
from deeprelax.optim.compiled import outside_graphs
from deeprelax.optim.diagnostics import diagnostics
from deeprelax.optim.first_step import warn_at_first_step
from deeprelax.optim.flat_storage import supported
from deeprelax.optim.groups import Options, Shared, drop_removed, ready, refuse_overlaps
from deeprelax.optim.hyperparameters import SHARED, Range, plain
from deeprelax.optim.replicas import Exchange
from deeprelax.optim.sharding import reshard
from deeprelax.optim.state import State

ParamsT = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Relaxation(Optimizer):
    """Base class of the optimizers; not for direct use. A subclass defines what is above the constructor."""

    #: The update rule.
    rule: ClassVar[Rule]
    #: Allowed values of its hyper-parameters, in addition to those that all optimizers have.
    ranges: ClassVar[Mapping[str, Range]] = {}
    #: Whether the parameters, and not the state, hold x between two cycles.
    params_hold_x: ClassVar[bool] = True

    def _notice(self, group: Mapping[str, Any]) -> None:
        """Called with every group of plain numbers that was changed; may warn."""

    def _notice_gamma(self, group: Mapping[str, Any], gamma: float, next_gamma: float) -> None:
        """Called with every outer update, with γ before and after it; may warn. Not for ``capturable`` optimizers."""

    def _check_parameter(self, name: str, p: Tensor) -> None:
        """TypeError or ValueError if the parameter is not supported."""
        supported(p, name)
        if self._shared.options.stochastic_rounding and p.dtype == torch.float16:
            raise ValueError(f"{name} is float16, and stochastic_rounding is for bfloat16 parameters")

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        seed: int | None,
        flatten: bool,
        backend: str | Backend,
        capturable: bool,
        stochastic_rounding: bool = False,
        exchange: Exchange | None = None,
    ) -> None:
        if not isinstance(capturable, bool):
            raise TypeError(f"capturable must be True or False, not {type(capturable).__name__}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an integer or None, not {type(seed).__name__}")
        start = {"step": 0, "phase": 0, "training": True, "fresh": True}
        start["seed"] = (torch.initial_seed() if seed is None else seed) & 0xFFFFFFFFFFFFFFFF
        options = Options(backend, flatten, capturable, stochastic_rounding)
        self._shared = Shared(options, start, seed_pending=seed is None, exchange=exchange)
        self._name_in_graphs = compiled.new_name(self)
        self._constructing = True
        super().__init__(params, defaults)  # calls add_param_group
        del self._constructing
        refuse_overlaps(self)

    # Properties.

    @property
    def state(self) -> State:
        """Parameter → name → tensor in the parameter's shape. What is put in is used from the next call on."""
        return self._shared.state

    @state.setter
    def state(self, state: Mapping[Tensor, Any]) -> None:
        self._shared.state = State()
        self._shared.state.note.written = True
        self._shared.state.update(state)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by ``torch.amp.GradScaler``, which then sets ``grad_scale`` and ``found_inf``."""
        return self._shared.options.capturable

    @property
    @outside_graphs
    def phase(self) -> int:
        """How many gradients of the running cycle have been taken: 0 … L - 1. With ``capturable=True`` this waits for
        the device."""
        return int(self.param_groups[0]["phase"])

    @property
    @outside_graphs
    def outer_step_happened(self) -> bool:
        """Whether the last ``step()`` made the outer update. With ``capturable=True`` this waits for the device."""
        return self._shared.plans[0].clock.outer_step_happened

    @property
    @outside_graphs
    def gamma(self) -> float:
        """γ of the first group, as scoping has left it. With ``capturable=True`` this waits for the device."""
        return float(self.param_groups[0]["gamma"])

    diagnostics = diagnostics

    def __repr__(self) -> str:
        text = type(self).__name__ + " ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            text += "".join(f"    {key}: {group[key]}\n" for key in sorted(group.keys() - {"params", *CLOCK}))
        return text + ")"

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
            ValueError: a hyper-parameter was set out of range, or a parameter's state to something of another shape.
        """
        if torch.compiler.is_compiling():
            return compiled.step(self, closure, Relaxation.step)
        loss = None
        try:
            self._refuse_in_eval("step")
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self._step()
        except BaseException:
            for name in ("grad_scale", "found_inf"):  # else a GradScaler's next step() would multiply the two scales
                self.__dict__.pop(name, None)
            raise
        return loss

    def _step(self) -> None:
        plans = ready(self, check=True)
        work: list[list[Gathered]] = [[(b, *b.gather()) for b in plan.buckets] for plan in plans]
        if self._shared.seed_pending:
            self._agree_on_seed()
        if not self._shared.begun:
            warn_at_first_step(self)
        # Addresses would not tell: an empty part of a sharded parameter has none.
        if not any(not missing or any(g is not None for g in grads) for each in work for _, grads, _, missing in each):
            for plan in plans:
                plan.clock.outer_step_happened = False
            return
        # Whatever can fail comes before the first write: an update of some buckets only could not be taken back.
        for plan, each in zip(plans, work):
            plan.clock.prepare(each)
        scaler = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        for plan, each in zip(plans, work):
            plan.clock.launch(each, scaler)

    def _refuse_in_eval(self, method: str) -> None:
        if not self.param_groups[0]["training"]:
            raise RuntimeError(f"{method}() in eval mode: the parameters hold x; call opt.train() first")

    @outside_graphs
    def finish(self) -> bool:
        """End the running cycle early: make the outer update with the gradients that it has had.

        For a run whose number of gradients is not a multiple of L. The parameters hold x afterwards. The next
        ``step()`` begins a new cycle. The counter of the noise does not advance.

        Returns:
            Whether there was anything to finish.

        Raises:
            RuntimeError: in eval mode.
        """
        self._refuse_in_eval("finish")
        with torch.no_grad():
            finished = any([plan.clock.finish(plan.buckets) for plan in ready(self, check=True)])
            reshard(self)
            return finished

    def _agree_on_seed(self) -> None:
        """With ``seed=None`` and a process group, all ranks take rank 0's: DDP's replicas must draw the same noise."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            if any(capturing(bucket.table.device) for bucket in self._shared.buckets):
                raise RuntimeError("run one step() before capturing one: the ranks agree on the noise's seed in it")
            box = [self.param_groups[0]["seed"]]
            torch.distributed.broadcast_object_list(box, src=0)
            self._set(seed=box[0])
            for plan in self._shared.plans:
                plan.clock.take_in(self.param_groups[0]["inner_steps"])
        self._shared.seed_pending = False

    def _set(self, **values: Any) -> None:
        for plan in self._shared.plans:
            plan.clock.set(**values)

    # Which point the parameters hold.

    @outside_graphs
    @torch.no_grad()
    def eval(self, *modules: torch.nn.Module) -> None:
        """Put x into the parameters, for validation or saving the model; ``train()`` puts the inner point back.

        Parameters that other code has written to since the last step keep what they hold, and a new cycle begins; a
        warning names the first.

        Args:
            modules: FSDP modules of sharded parameters, to gather their weights again; default all of the process.
        """
        if self.param_groups[0]["training"]:
            self._show_x()
            self._set(training=False)
            reshard(self, modules)

    @outside_graphs
    @torch.no_grad()
    def train(self, *modules: torch.nn.Module) -> None:
        """Put the inner point back, at which the next gradient is taken.

        Parameters that other code has written to since ``eval()`` keep what they hold, and a new cycle begins at what
        all of them hold; a warning names the first. ``modules``: as for ``eval()``.
        """
        self._show_inner()
        self._set(training=True)
        reshard(self, modules)

    @contextlib.contextmanager
    def at_x(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Put x into the parameters inside a ``with`` block, to look at it, save it or average it.

        Afterwards the run continues as if nothing had happened. In eval mode the parameters hold x anyway. ``modules``:
        as for ``eval()``.
        """
        if not self.param_groups[0]["training"]:
            yield
            return
        Relaxation.eval(self, *modules)
        try:
            yield
        finally:
            Relaxation.train(self, *modules)

    def _x_is_shown(self, numbers: Mapping[str, Any]) -> bool:
        """Whether the parameters hold x, so that nothing must be swapped."""
        return bool(numbers["fresh"] or (self.params_hold_x and numbers["phase"] == 0))

    def _show_x(self) -> None:
        shown = [(plan, self._x_is_shown(plan.clock.numbers())) for plan in ready(self)]
        hidden = [bucket for plan, is_shown in shown if not is_shown for bucket in plan.buckets]
        foreign = [bucket.foreign_writes() for bucket in hidden]
        for bucket, keep in zip(hidden, foreign):
            bucket.show_x(self.state, keep)
        if any(foreign):
            self._begin_at_foreign_weights(hidden, foreign)

    def _show_inner(self) -> None:
        buckets = [bucket for plan in ready(self) for bucket in plan.buckets if "inner" in bucket.buffers]
        foreign = [bucket.foreign_writes() for bucket in buckets]
        if any(foreign):
            self._begin_at_foreign_weights(buckets, foreign)
        for bucket in buckets:
            bucket.show_inner(self.state)

    def _begin_at_foreign_weights(self, buckets: list[Bucket], foreign: list[list[int]]) -> None:
        name = next(bucket.names[ts[0]] for bucket, ts in zip(buckets, foreign) if ts)
        self._shared.warn_once(
            "loaded",
            f"{name} was written to by other code in mid-cycle, and a new cycle begins at what it holds: {CURE}",
        )
        self._restart()

    @outside_graphs
    def restart(self) -> None:
        """Begin a new cycle at what the parameters hold now; momenta, γ and the noise counter continue.

        With several workers (``ElasticSGD``, ``Parle``), all of them must call it.
        """
        ready(self, at_any_phase=True)
        self._restart()

    def _restart(self) -> None:
        if self._shared.exchange is not None:
            self._shared.exchange.drop()
        for plan in self._shared.plans:
            for bucket in plan.buckets:
                bucket.drop_buffer("inner", self.state)
            plan.clock.set(phase=0, fresh=True)
            plan.clock.outer_step_happened = False

    # Groups, parameters and state that other code has changed.

    @outside_graphs
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; in mid-cycle they join at the current phase with x = what they hold.

        Args:
            param_group: ``{"params": …}`` and hyper-parameters that differ from the defaults. ``"noise_index"`` gives
                (index, first element) of each parameter in a larger model, whose noise it then draws.

        Raises:
            ValueError: a hyper-parameter out of range, ``inner_steps`` differs from the others', or memory is shared.
            TypeError: a parameter's dtype or layout is not supported.
        """
        if self.param_groups and isinstance(param_group, dict):
            param_group.setdefault("inner_steps", plain(self.param_groups[0]["inner_steps"]))
        super().add_param_group(param_group)
        try:
            ready(self, check=True)
        except BaseException:
            self.param_groups.pop()
            drop_removed(self)
            raise

    # Saving and loading.

    @outside_graphs
    def state_dict(self) -> dict[str, Any]:
        """The whole state, as ``torch.optim.Optimizer.state_dict``: tensors per parameter, in its shape, and in
        ``param_groups`` the hyper-parameters, the clock, the seed and the mode as plain numbers.

        Raises:
            RuntimeError: in eval mode with sharded parameters: a checkpoint may hold only what a new optimizer has.
        """
        saved_states.refuse_inner_point_in_eval(self)
        with torch.no_grad():
            self._refresh_x()
        saved: dict[str, Any] = super().state_dict()
        saved["state"] = {key: dict(e) if isinstance(e, dict) else e for key, e in saved["state"].items()}
        return saved_states.plain_groups(saved, [plan.clock.numbers() for plan in self._shared.plans])

    def _refresh_x(self) -> None:
        """Write x into the state where the parameters hold it."""
        for plan in ready(self):
            if self._x_is_shown(plan.clock.numbers()):
                for bucket in plan.buckets:
                    bucket.refresh_x()

    @outside_graphs
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a saved state into the existing buffers, in their own dtype.

        Load the model's weights as well, in any order; in eval mode both hold what they held when they were saved.

        Args:
            state_dict: what ``state_dict()`` of the same class returned.

        Raises:
            ValueError: it is another optimizer's, of other groups, parameters or shapes, or has values out of range.
                Nothing is changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        plans = ready(self, at_any_phase=True)
        groups = saved_states.checked_groups(
            type(self).__name__, plans, state_dict["param_groups"], {**self.defaults}, {**SHARED, **self.ranges}
        )
        saved_states.load(self, groups, state_dict["state"])
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        with torch.no_grad():
            self._refresh_x()
        return saved_states.portable(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        entries, groups = state.pop("state"), state.pop("param_groups")
        state |= {"_shared": copy.copy(state["_shared"]).portable(), "defaults": dict(state["defaults"])}
        super().__setstate__(state)
        self._name_in_graphs = compiled.new_name(self)
        self.defaults.pop("differentiable", None)  # torch's addition; not an option of ours
        saved_states.rebuild(self, entries, groups)
