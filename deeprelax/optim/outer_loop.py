"""OuterLoop: the outer loop of Entropy-SGD around any optimizer."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from deeprelax.kernels import Backend
from deeprelax.kernels.device_table import capturing
from deeprelax.kernels.scalars import OUTER
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.clock import CURE
from deeprelax.optim.compiled import outside_graphs
from deeprelax.optim.first_step import warn_at_first_step
from deeprelax.optim.groups import Plan, ready
from deeprelax.optim.hyperparameters import UNIT
from deeprelax.optim.relaxation import Relaxation


class Outer(Relaxation):
    """The outer loop's own state and clock; its ``lr`` is η. Its groups hold the inner optimizer's parameters."""

    rule = OUTER
    ranges = {"alpha": UNIT}  # noqa: RUF012

    @outside_graphs
    def begin(self) -> None:
        """Before a step of the inner optimizer: remember where a cycle starts."""
        self._refuse_in_eval("step")
        for plan in ready(self, check=True):
            group = plan.group
            for bucket in plan.buckets:
                if capturing(bucket.table.device):
                    raise RuntimeError("OuterLoop's step() cannot be captured in a CUDA graph")
                if group["fresh"] or group["phase"] == 0:
                    bucket.refresh_x()
                elif group["phase"] + 1 >= group["cycle_steps"]:
                    self._warn_of_foreign_writes(bucket)

    def _warn_of_foreign_writes(self, bucket: Bucket) -> None:
        for t in bucket.foreign_writes()[:1]:
            self._shared.warn_once("mid-cycle", f"{bucket.names[t]} was written to by other code in mid-cycle: {CURE}")

    @outside_graphs
    def advance(self) -> None:
        """After it, if there were gradients: average, and with the last step of a cycle make the outer update."""
        if not self._shared.begun:
            warn_at_first_step(self)
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            return
        plans = ready(self, check=True)
        work = [self._work(plan) for plan in plans]
        for plan, each in zip(plans, work):
            for bucket in plan.buckets:
                bucket.note_versions()
            plan.clock.prepare(each)
        for plan, each in zip(plans, work):
            plan.clock.launch(each, {})
            for bucket in plan.buckets:
                bucket.note_versions()

    def _work(self, plan: Plan) -> list[tuple[Bucket, list[Tensor | None], array[int], bool]]:
        """The buckets, if this call changes anything: the weights take the place of the other rules' gradients."""
        group = plan.group
        length = group["inner_steps"] if group["phase"] == 0 else group["cycle_steps"]
        if group["alpha"] == 0 and group["phase"] + 1 < length:
            return []
        return [(bucket, list(bucket.table.weights), bucket.table.weight_addresses, False) for bucket in plan.buckets]


class OuterLoop(Optimizer):
    r"""An outer step every ``inner_steps`` steps of another optimizer: one pass over memory in L steps.

    Every call makes a step of ``inner`` from y to the next y, and every L-th also the outer update, from which the next
    cycle starts:

        z <- alpha z + (1 - alpha) y
        b <- momentum b + (x - z);   x <- x - outer_lr (x - z + momentum b);   y = z = x

    With α = 0, z is y, and nothing is computed between outer updates: Kallusky et al. 2025 (arXiv 2510.15830) call this
    SNOO. ``EntropyAdamW`` is the same with AdamW inside, and also has the pull toward x and the noise.

    The groups, learning rates and hooks are the inner optimizer's: ``param_groups`` and ``state`` are the same objects,
    so that schedulers, clipping and ``GradScaler`` take either optimizer. The outer loop's hyper-parameters are in
    ``outer.param_groups``, where ``lr`` is η.

    Args:
        inner: any ``torch.optim.Optimizer``. Call its ``step()`` through this object only.
        inner_steps: L, its steps per outer update. Default 20.
        outer_lr: η. Default 0.7, as DiLoCo's.
        momentum: of the outer update. Default 0.67, SNOO's smallest. 0: none is kept.
        nesterov: Nesterov's form of it. Default True.
        alpha: weight of the old average in z. Default 0.
        backend: of the outer update: "auto", a name of ``deeprelax.kernels.available()``, or a backend. All give the
            same bits.

    Attributes:
        inner: the inner optimizer.
        outer: the outer loop's state, per parameter x, the momentum's buffer, and z where alpha is not 0.

    Raises:
        ValueError: a hyper-parameter out of range, overlapping parameters.
        TypeError: ``inner`` is not an optimizer, or a parameter is not supported.
        RuntimeError: the backend does not work here.
    """

    inner: Optimizer
    outer: Outer

    def __init__(
        self,
        inner: Optimizer,
        *,
        inner_steps: int = 20,
        outer_lr: float = 0.7,
        momentum: float = 0.67,
        nesterov: bool = True,
        alpha: float = 0.0,
        backend: str | Backend = "auto",
    ) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(f"inner must be a torch.optim.Optimizer, not {type(inner).__name__}")
        defaults = {
            **{"lr": outer_lr, "inner_steps": inner_steps, "gamma": 1.0, "scoping": 0.0, "alpha": alpha},
            **{"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0, "maximize": False},
        }
        groups = [_shared(group) for group in inner.param_groups]
        outer = Outer(groups, defaults, seed=0, flatten=False, backend=backend, capturable=False)
        self.__setstate__({"inner": inner, "outer": outer, "defaults": dict(inner.defaults)})
        self._follow()

    @outside_graphs
    def _follow(self) -> None:
        """Let the outer loop's groups hold the lists of parameters of the inner optimizer's groups."""
        groups = self.outer.param_groups
        del groups[len(self.inner.param_groups) :]
        for group in self.inner.param_groups[len(groups) :]:
            self.outer.add_param_group(_shared(group))
        for mine, group in zip(groups, self.inner.param_groups):
            mine["params"] = group["params"]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def phase(self) -> int:
        """How many steps of the running cycle have been made: 0 … L - 1."""
        return self.outer.phase

    @property
    def outer_step_happened(self) -> bool:
        """Whether the last ``step()`` made the outer update."""
        return self.outer.outer_step_happened

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of the inner optimizer; the L-th of a cycle also makes the outer update.

        Args:
            closure: passed on.

        Returns:
            What the inner optimizer returned.

        Raises:
            RuntimeError: in eval mode; in the capture of a CUDA graph; a parameter was replaced in mid-cycle.
        """
        self._follow()
        self.outer.begin()
        loss = self.inner.step() if closure is None else self.inner.step(closure)
        self.outer.advance()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimizer's."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to both; in mid-cycle they join with x = what they hold."""
        self.inner.add_param_group(param_group)
        self._follow()

    def eval(self, *modules: torch.nn.Module) -> None:
        """Put x into the parameters, for validation or saving the model; ``train()`` puts the inner point back.
        ``modules``: as for the other optimizers' ``eval()``."""
        self._follow()
        self.outer.eval(*modules)

    def train(self, *modules: torch.nn.Module) -> None:
        """Put the inner point back."""
        self._follow()
        self.outer.train(*modules)

    @contextlib.contextmanager
    def at_x(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Put x into the parameters inside a ``with`` block; then the run continues as if nothing had happened."""
        self._follow()
        with self.outer.at_x(*modules):
            yield

    def finish(self) -> bool:
        """End the running cycle early: make the outer update with the steps that it has had. Returns whether there was
        anything to finish."""
        self._follow()
        return self.outer.finish()

    def restart(self) -> None:
        """Begin a new cycle at what the parameters hold now; momenta continue."""
        self._follow()
        self.outer.restart()

    def diagnostics(self) -> dict[str, Tensor]:
        """As ``EntropySGD.diagnostics``."""
        self._follow()
        return self.outer.diagnostics()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and under "outer" the outer loop's."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved: dict[str, Any] = {**self.inner.state_dict(), "outer": self.outer.state_dict()}
        for after in self._optimizer_state_dict_post_hooks.values():
            saved = after(self, saved) or saved
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both.

        Raises:
            ValueError: it is not an OuterLoop's, or not one of this optimizer and these parameters.
        """
        saved = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            saved = before(self, saved) or saved
        if "outer" not in saved:
            raise ValueError("the saved state is not that of an OuterLoop: it lacks 'outer'")
        self._follow()
        self.outer.load_state_dict(saved.pop("outer"))
        self.inner.load_state_dict(saved)
        self._follow()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __repr__(self) -> str:
        return f"OuterLoop around {self.inner!r}\nwith {self.outer!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": self.inner, "outer": self.outer, "defaults": self.defaults}


def _shared(group: dict[str, Any]) -> dict[str, Any]:
    """The entries of a group that the outer loop shares."""
    return {name: group[name] for name in ("params", "param_names") if name in group}
