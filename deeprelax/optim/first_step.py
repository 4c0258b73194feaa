"""Warnings at the first step: that the updates are slow here, or that the model has other parameters by now."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deeprelax.optim.groups import named

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation


def replaced(params: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether the model of some parameters without a gradient has replaced them by others.

    It is taken to have done so if they are in no module of this process, but as many parameters of the same shapes are,
    and have gradients. The modules are found through the garbage collector, in some 50 ms for a million objects.

    Args:
        params: the parameters without a gradient.
        others: those of the optimizer, which are not counted.
    """
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, nn.Module)}
    modules = [each for each in objects if type(each) in kinds] if kinds else []
    theirs = {p for module in modules for p in module.__dict__.get("_parameters", {}).values() if p is not None}
    missing = [p for p in params if p not in theirs]
    trained = Counter(q.shape for q in theirs.difference(others) if q.is_leaf and q.grad is not None)
    return bool(missing) and Counter(p.shape for p in missing) <= trained


def warn_at_first_step(opt: Relaxation) -> None:
    """Warn of what would otherwise go unnoticed, until a step has had a gradient."""
    shared = opt._shared
    members = [(name, p) for i in range(len(opt.param_groups)) for name, p in named(opt, i) if p.requires_grad]
    idle = [(name, p) for name, p in members if p.grad is None]
    # If most have a gradient, the others are unused, and the search would take longer than the step.
    if 2 * len(idle) >= len(members) > 0 and replaced([p for _, p in idle], [p for _, p in members]):
        shared.warn_once(
            "replaced",
            f"{idle[0][0]} and every other parameter without a gradient ({len(idle)} of {len(members)}) is in no "
            "module, while others of the same shapes are, with gradients: the optimizer was built before fully_shard() "
            "or another conversion that gave the model new parameters, and does not train them. Build it after that, "
            "from model.parameters()",
        )
    shared.begun = len(idle) < len(members)
    if shared.begun and shared.why_slow:
        shared.warn_once(
            "slow",
            "the eager reference makes the updates, about 15 times slower than the compiled kernels; pass "
            f"backend='eager' to use it without this warning. {shared.why_slow}",
        )
