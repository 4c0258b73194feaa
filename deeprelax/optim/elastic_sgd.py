"""Elastic-SGD: eq. 3 and section 4.1 of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels import Backend
from deeprelax.kernels.device_table import capturing
from deeprelax.kernels.scalars import ELASTIC_SGD
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.compiled import outside_graphs
from deeprelax.optim.entropy_sgd import LANGEVIN, warn_of_coupling, warn_of_outer_step
from deeprelax.optim.groups import Plan, named, ready
from deeprelax.optim.hyperparameters import check_nesterov
from deeprelax.optim.relaxation import ParamsT, Relaxation
from deeprelax.optim.replicas import Exchange, agree, checksum, replicas_of


def outer_update(x: Tensor, f: Tensor, m: Tensor | None, group: Mapping[str, Any]) -> None:
    """x <- x - (lr/gamma) f in place, as the kernels' outer step; m is the momentum's buffer."""
    lr, gamma = float(group["lr"]), float(group["cycle_gamma"])
    absorb, momentum = group["absorb_gamma"], group["momentum"]
    if momentum == 0:
        x -= f * (lr if absorb else lr / gamma)
        return
    assert m is not None
    d = f * (1.0 if absorb else 1 / gamma)
    m.copy_(m * momentum + d)
    x -= (d + m * momentum if group["nesterov"] else m) * lr


def is_captured(opt: Relaxation) -> bool:
    """Whether a CUDA graph is being captured: a captured step makes no exchange."""
    return any(capturing(bucket.table.device) for bucket in opt._shared.buckets)


def exchange_of(opt: Relaxation) -> Exchange:
    """The optimizer's exchange with the other workers."""
    assert opt._shared.exchange is not None
    return opt._shared.exchange


def ready_buckets(opt: Relaxation) -> list[tuple[Plan, Bucket]]:
    """All buckets, each with its plan, after ``ready``."""
    return [(plan, bucket) for plan in ready(opt) for bucket in plan.buckets]


def join(opt: Relaxation, exchange: Exchange) -> None:
    """Before the first exchange: the workers must have the same parameters and hyper-parameters.

    Raises:
        ValueError: on every worker, with the name of the first thing that differs.
    """
    if hasattr(exchange.replicas, "join"):
        exchange.replicas.join(opt)
        exchange.joined = True
        return
    members = [(i, name, p) for i in range(len(opt.param_groups)) for name, p in named(opt, i)]
    device = members[0][2].device
    numbers = {"the number of parameters": len(members), "their elements": sum(p.numel() for *_, p in members)}
    for name in ("inner_steps", "gamma", "rho", "scoping", "lr", "momentum"):
        if name in opt.param_groups[0]:
            value = torch.tensor([float(g[name]) for g in opt.param_groups], dtype=torch.float64)
            numbers[name] = checksum(value)
    phase = numbers["the phase"] = opt.phase
    same = agree(exchange.replicas, [n & 0xFFFFF for n in numbers.values()], device)
    for name, agreed in zip(numbers, same):
        if not agreed:
            raise ValueError(f"the workers differ in {name}: build the same model and optimizer on each of them")
    if phase == 0:
        same = agree(exchange.replicas, [checksum(centre(opt, i, p)) for i, _, p in members], device)
        for (_, name, _), agreed in zip(members, same):
            if not agreed:
                raise ValueError(
                    f"{name} holds other values on some workers: use one seed, load one checkpoint on all of them, or "
                    "broadcast the parameters before the first step"
                )
    warn_of_equal_gradients(opt, exchange)
    exchange.joined = True


def centre(opt: Relaxation, i: int, p: Tensor) -> Tensor:
    """What all workers share of a parameter: x, or what it holds before the first step."""
    group = opt._shared.plans[i].group
    if bool(group["fresh"]) or opt.params_hold_x or p not in opt.state:
        return p
    x: Tensor = opt.state[p].get("x", p)
    return x


def warn_of_equal_gradients(opt: Relaxation, exchange: Exchange) -> None:
    """Warn once if all workers have the same gradients: they were averaged, or come from the same data."""
    grads = [p.grad for group in opt.param_groups for p in group["params"] if p.grad is not None]
    total = sum(checksum(g) for g in grads) & 0xFFFFF
    device = opt.param_groups[0]["params"][0].device
    if all(agree(exchange.replicas, [total], device)) and total != 0:
        opt._shared.warn_once(
            "equal gradients",
            "the workers' gradients are the same: they are averaged over the workers (DDP, HSDP), or all workers see "
            "the same batches; each worker needs different ones",
        )


class ElasticSGD(Relaxation):
    r"""Workers that are tied by springs to a common centre x, which follows their mean.

    On worker a every call consumes one gradient, taken at xᵃ, which the parameters hold:

        xᵃ <- xᵃ - inner_lr (g + (xᵃ - x) / gamma) + sqrt(inner_lr temperature) n,   n ~ N(0, I), one per worker

    and every L-th (``inner_steps``) exchanges one flat buffer with the other workers:

        x <- x - (lr / gamma) (x - mean_a xᵃ);   gamma <- gamma (1 - scoping)

    An average over workers takes the place of Entropy-SGD's average over time: both descend on local entropy. (The
    elastic term of the paper's printed SDE has a sign slip; eq. 3 is what is minimised.) Every worker draws its own
    batches. Gradients must not be averaged over the workers: no DDP around the model.

    All workers must build the same model and make their steps together; ``finish()``, ``state_dict()`` in eval mode
    and the end of a run need all of them. Save in eval mode: the parameters are then the centre, and the saved state
    is the centre's, so that any number of workers resumes from it.

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.SGD``; on one device.
        lr: η of the centre. Default 1.0: with γ = 1 the centre becomes the workers' mean.
        inner_lr: η′. Default 0.1 (section 6.4).
        inner_steps: L, gradients per exchange. Default 20.
        gamma: γ₀, the springs' softness. Default 1.0.
        temperature: β⁻¹. Default 2e-8.
        scoping: γ shrinks by this fraction at every outer update. Default 1e-3 (section 6.4).
        coupling, momentum, inner_momentum, carry_inner_momentum, nesterov, weight_decay, maximize, absorb_gamma,
            flatten, stochastic_rounding, seed, backend: as for ``EntropySGD``; ``momentum`` acts on the centre.
        capturable: as for ``EntropySGD``. A captured step makes no exchange: call ``exchange()`` on every worker after
            each L-th replay. Steps that are not captured then wait for the device.
        replicas: the workers: a ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or an object with ``rank``,
            ``size`` and ``mean_(flat)``. None takes the default process group, or this process alone.
        deterministic: sum in the order of ranks. Two workers are exact either way.
        overlap: exchange during the next cycle. A delayed variant: the centre moves L gradients later.
        comm_dtype: dtype of the exchange, for example bfloat16. xᵃ - x is sent, so the centre keeps its precision.

    Raises:
        ValueError: a hyper-parameter out of range; several processes and no process group; at the first step, workers
            that differ, with what differs.
        TypeError: an unsupported parameter or ``replicas``.
        RuntimeError: at an outer step, on every worker: one has stopped, has finished, or is at another step.
    """

    rule = ELASTIC_SGD
    params_hold_x = False
    ranges = LANGEVIN

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 20,
        gamma: float = 1.0,
        temperature: float = 2e-8,
        scoping: float = 1e-3,
        coupling: str = "explicit",
        absorb_gamma: bool = False,
        momentum: float = 0.0,
        inner_momentum: float = 0.0,
        carry_inner_momentum: bool = False,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
        flatten: bool = False,
        stochastic_rounding: bool = False,
        seed: int | None = None,
        backend: str | Backend = "auto",
        replicas: Any = None,
        deterministic: bool = False,
        overlap: bool = False,
        comm_dtype: torch.dtype | None = None,
    ) -> None:
        check_nesterov(nesterov, momentum=momentum, inner_momentum=inner_momentum)
        defaults = {
            **{"lr": lr, "inner_lr": inner_lr, "inner_steps": inner_steps, "gamma": gamma, "temperature": temperature},
            **{"scoping": scoping, "coupling": coupling, "absorb_gamma": absorb_gamma, "momentum": momentum},
            **{"inner_momentum": inner_momentum, "carry_inner_momentum": carry_inner_momentum, "nesterov": nesterov},
            **{"weight_decay": weight_decay, "maximize": maximize},
        }
        super().__init__(
            params,
            defaults,
            seed=seed,
            flatten=flatten,
            backend=backend,
            capturable=capturable,
            stochastic_rounding=stochastic_rounding,
            exchange=Exchange(replicas_of(replicas, deterministic), overlap, comm_dtype),
        )

    def _notice(self, group: Mapping[str, Any]) -> None:
        warn_of_coupling(self, group)

    def _notice_gamma(self, group: Mapping[str, Any], gamma: float, next_gamma: float) -> None:
        warn_of_outer_step(self, group, gamma, next_gamma)

    def _step(self) -> None:
        exchange = exchange_of(self)
        if not exchange.joined:
            join(self, exchange)
        if exchange.pending and self.phase == 0 and any(b.foreign_writes() for _, b in ready_buckets(self)):
            exchange.drop()  # weights were loaded, and a mean of the old ones must not move them
        super()._step()
        if not is_captured(self) and self.outer_step_happened:
            self.exchange()

    @outside_graphs
    @torch.no_grad()
    def exchange(self) -> None:
        """Move the centre toward the workers' mean, as every L-th ``step()`` does if it is not captured."""
        exchange = exchange_of(self)
        if exchange.pending:  # of the cycle before
            self._move_centre()
        exchange.begin(self._offsets())
        if not exchange.overlap:
            self._move_centre()

    def _offsets(self) -> list[Tensor]:
        return [bucket.points() - bucket.buffers["x"] for _, bucket in ready_buckets(self)]

    def _move_centre(self) -> None:
        exchange = exchange_of(self)
        means = exchange.end()
        for (plan, bucket), mean in zip(ready_buckets(self), means or ()):
            outer_update(bucket.buffers["x"], -mean, bucket.buffers.get("momentum_buffer"), plan.clock.numbers())
            if exchange.joining:
                bucket.put_x()

    @outside_graphs
    @torch.no_grad()
    def finish(self) -> bool:
        """End the run: exchange once more, and put the centre into the parameters. Every worker must call it.

        Returns:
            Whether this worker had gradients since the last exchange.

        Raises:
            RuntimeError: in eval mode; the other workers have more gradients.
        """
        active, exchange = super().finish(), exchange_of(self)
        if exchange.pending:
            self._move_centre()
        for plan in self._shared.plans:
            if plan.clock.numbers()["fresh"] or any(bucket.foreign_writes() for bucket in plan.buckets):
                for bucket in plan.buckets:  # the centre is what the parameters hold, and no step has taken it yet
                    bucket.refresh_x()
                    bucket.put_x()
        exchange.begin(self._offsets(), finishing=True, active=active)
        self._move_centre()
        for _, bucket in ready_buckets(self):
            bucket.put_x()
        return active

    @outside_graphs
    def state_dict(self) -> dict[str, Any]:
        """This worker's state, as ``EntropySGD.state_dict``. In eval mode the centre's, from which any number of
        workers resumes, each at the centre."""
        return shared_by_all(super().state_dict(), exchange_of(self))


def shared_by_all(saved: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
    """A state saved in eval mode, without what belongs to one of several workers."""
    if not saved["param_groups"] or saved["param_groups"][0]["training"] or exchange.alone:
        return saved
    own = ("inner", "inner_momentum_buffer")
    for entry in saved["state"].values():
        for name in own:
            entry.pop(name, None)
    for group in saved["param_groups"]:
        group.update(phase=0, fresh=True, training=True)
    return saved
