"""``opt.diagnostics()``: metrics for monitoring a run. They stay on the device until they are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeprelax.kernels.scalars import ENTROPY_ADAMW, OUTER
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.compiled import outside_graphs
from deeprelax.optim.groups import ready
from deeprelax.optim.sharding import sharing

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation

# By a rule's accumulator: the name of the norm of what a cycle has accumulated.
NORMS = {"z": "x_z_norm", "p": "p_norm", "s": "s_norm", "": "x_y_norm"}


@outside_graphs
@torch.no_grad()
def diagnostics(opt: Relaxation) -> dict[str, Tensor]:
    """Metrics for monitoring a run. Nothing waits for the device until one of them is read, unless the first parameter
    is on the host and others are not.

    Call it between ``step()`` and ``zero_grad()``: the cosine is of the gradients that the parameters have.

    With sharded parameters all processes that share them must call it, and get the same numbers, by one all-reduce of
    three numbers for each dimension of a mesh along which parameters are sharded. Workers (``ElasticSGD``, ``Parle``)
    get their own numbers.

    Returns:
        By name, tensors of shape () on the first parameter's device, float64 except for the phase. Norms and the cosine
        are over the parameters that train, of all groups; the rest is the first group's.

        - ``"phase"``: gradients of the running cycle so far, int64.
        - ``"gamma"``: γ. Not in an ``OuterLoop``.
        - ``"inner_lr_over_gamma"``: η′/γ, below 2 where the explicit coupling is stable. EntropySGD, ElasticSGD, Parle.
        - ``"x_z_norm"``: |x - z|, how far the cycle's average has moved. EntropySGD, EntropyAdamW, Parle, OuterLoop.
          For the others ``"p_norm"``: |p| (HJ), ``"s_norm"``: |s| (Heat), ``"x_y_norm"``: |x - xᵃ| (ElasticSGD).
          Zero where a cycle begins, except for ElasticSGD.
        - ``"cosine"``: of the angle between that vector, x - z, p, s or x - xᵃ, and the gradients. A missing gradient
          counts as zeros. NaN where either vector is zero.

    Raises:
        RuntimeError: a gradient is sparse or does not fit its parameter; a parameter was replaced in mid-cycle.
    """
    plans = ready(opt)
    device = next((p.device for plan in plans for p in plan.params), torch.device("cpu"))
    zeros = torch.zeros(3, dtype=torch.float64, device=device)
    sums: defaultdict[tuple[Any, ...], Tensor] = defaultdict(zeros.clone)  # by the process groups that reduce them
    for plan in plans:
        for bucket in plan.buckets:
            begins = number(plan.group["fresh"], bucket.table.device, torch.bool)
            if opt.rule.acc:
                begins = begins | (number(plan.group["phase"], bucket.table.device, torch.int64) == 0)
            for t, grad in enumerate(bucket.gather()[0]):
                v = accumulated(bucket, t, plan.group)
                g = torch.zeros_like(v) if grad is None else grad.double()
                of_v = torch.stack([v.square().sum(), (v * g).sum()])
                both = torch.cat([of_v.where(~begins, 0), g.square().sum().view(1)])
                sums[sharing(bucket.params[t])] += moved(both, device)
    for groups, of_parts in sums.items():
        for each, kind in groups:  # parts that FSDP keeps on the host are reduced on the group's device
            there = of_parts.to(kind)
            torch.distributed.all_reduce(there, group=each)
            of_parts.copy_(there)
    square, product, grad_square = sum(sums.values(), zeros).unbind()
    group = plans[0].group
    found = {"phase": number(group["phase"], device, torch.int64)}
    if opt.rule is not OUTER:
        found["gamma"] = number(group["gamma"], device)
    inner_lr = opt.rule.rates[1]
    if inner_lr and opt.rule is not ENTROPY_ADAMW:  # whose step goes by AdamW's averages
        found["inner_lr_over_gamma"] = number(group[inner_lr], device) / found["gamma"]
    found[NORMS[opt.rule.acc]] = square.sqrt()
    found["cosine"] = product / (square.sqrt() * grad_square.sqrt())
    return found


def number(value: Any, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """A number or a tensor of one element as a new tensor of shape () on the device, without waiting for it."""
    if isinstance(value, Tensor):
        return moved(value.detach().reshape(()), device, dtype=dtype, copy=True)
    return torch.full((), value, dtype=dtype, device=device)


def moved(t: Tensor, device: torch.device, **options: Any) -> Tensor:
    """The tensor there. What goes to the host is complete."""
    return t.to(device, non_blocking=device.type != "cpu", **options)


def accumulated(bucket: Bucket, t: int, group: Mapping[str, Any]) -> Tensor:
    """What a cycle has accumulated for one parameter, in float64: x - z, p, s, or x - xᵃ."""
    rule, views = bucket.rule, bucket.views
    if rule.acc in ("p", "s"):
        return views[rule.acc][t].double()
    if rule.acc in views and (rule.acc in rule.kept or group["alpha"] != 0):
        other = views[rule.acc]
    else:  # z is y where alpha is 0
        other = views.get("y") or views.get("inner") or bucket.parts
    return views["x"][t].double() - other[t].detach().double()
