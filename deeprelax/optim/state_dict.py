"""Saved states and copies: their content, and the checks before one is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deeprelax.optim.bucket import Bucket, is_optional, misfit
from deeprelax.optim.clock import CLOCK
from deeprelax.optim.groups import Plan, make_buckets, momenta, new_clock
from deeprelax.optim.hyperparameters import Range, check, plain
from deeprelax.optim.sharding import part

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation

# Entries of the groups of version 0.1 that are gone.
GONE = ("gamma_schedule", "norm", "norm_before")


def refuse_inner_point_in_eval(opt: Relaxation) -> None:
    """RuntimeError if the state holds the inner points of sharded parameters: a distributed checkpoint is loaded only
    into what a new optimizer has."""
    alone = opt._shared.exchange is None or opt._shared.exchange.alone
    if alone and any(bucket.sharded and "inner" in bucket.buffers for bucket in opt._shared.buckets):
        raise RuntimeError("state_dict() of sharded parameters in eval mode: call opt.train() first")


def plain_groups(saved: dict[str, Any], numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A state dict with plain numbers in its groups, and without what belongs to the optimizer that loads it. A
    distributed checkpoint looks up the key ``"noise_index"``, which stays."""
    for group, plain_group in zip(saved["param_groups"], numbers):
        group.update({name: plain(plain_group[name]) for name in group if name in plain_group and name != "params"})
        if "noise_index" in group:
            group["noise_index"] = 0
    return saved


def upgraded(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group as the present version has it.

    Raises:
        ValueError: version 0.1 with an option that is gone.
    """
    if group.get("gamma_schedule") == "adaptive":
        raise ValueError(
            "the saved state has gamma_schedule='adaptive', which is a separate object now: set gamma_schedule to "
            "'scoping' in its param_groups, load it, and step a deeprelax.optim.schedules.AdaptiveGamma(opt)"
        )
    new = {name: value for name, value in group.items() if name not in GONE}
    if "gamma" in new:
        new.setdefault("cycle_gamma", new["gamma"])
    return new


def checked_groups(
    optimizer: str,
    plans: Sequence[Plan],
    saved: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    ranges: Mapping[str, Range],
) -> list[dict[str, Any]]:
    """The saved groups, upgraded.

    Raises:
        ValueError: they are not those of this optimizer, have other numbers of parameters, or hold impossible values.
    """
    if len(plans) != len(saved):
        raise ValueError(
            f"the saved state has {len(saved)} parameter groups, this {optimizer} has {len(plans)}: build the "
            "optimizer with the groups that it had when the state was saved, then add the new ones"
        )
    groups = [upgraded(group) for group in saved]
    for i, (plan, group) in enumerate(zip(plans, groups)):
        missing = sorted({*defaults, *CLOCK} - set(group))
        if missing:
            raise ValueError(
                f"the saved state is not that of {optimizer}: param_groups[{i}] lacks {', '.join(missing)}"
            )
        if len(plan.group["params"]) != len(group["params"]):
            raise ValueError(
                f"param_groups[{i}] has {len(group['params'])} parameters in the saved state, "
                f"{len(plan.group['params'])} in this {optimizer}"
            )
        check({name: plain(value) for name, value in group.items()}, ranges, plain(groups[0]["inner_steps"]))
        steps = [plain(group[name]) for name in ("step", "phase", "cycle_steps", "seed")]
        if not all(type(n) is int for n in steps) or not (0 <= steps[1] < steps[2] and steps[0] >= 0):
            raise ValueError(f"the saved state has impossible counters: step, phase, cycle_steps, seed = {steps}")
    return groups


def check_entry(name: str, p: Tensor, entry: Mapping[str, Any], bucket: Bucket) -> None:
    """ValueError unless one parameter's saved tensors are those that the bucket keeps, in their shapes; FSDP's first
    version leaves out parameters of which this process has no element."""
    if not entry and not part(p).numel():
        return
    tensors, expected = {key for key in entry if not is_optional(bucket.rule, key)}, bucket.kept
    if tensors != set(expected):
        raise ValueError(
            f"{name}: the saved state holds {', '.join(sorted(tensors)) or 'nothing'}, expected "
            f"{', '.join(sorted(expected))}: it is another optimizer's, or of a model of another dtype"
        )
    for key, value in entry.items():
        if problem := misfit(key, p, value):
            raise ValueError(f"{name}: {key} of the saved state is {problem}")


def checked_entries(
    plans: Sequence[Plan], groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Mapping[str, Any]]
) -> dict[Tensor, Mapping[str, Any]]:
    """The saved tensors of every parameter that is not frozen.

    Raises:
        ValueError: they are not those of the parameter.
    """
    saved = {
        p: state.get(key, {})
        for plan, group in zip(plans, groups)
        for p, key in zip(plan.group["params"], group["params"])
    }
    buckets: list[Bucket] = [bucket for plan in plans for bucket in plan.buckets]
    for bucket in buckets:
        for name, p in zip(bucket.names, bucket.params):
            check_entry(name, p, saved[p], bucket)
    return saved


def of_others(state: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> dict[Any, Any]:
    """What the saved state holds that belongs to no parameter."""
    keys = {key for group in groups for key in group["params"]}
    return {key: value for key, value in state.items() if key not in keys}


def load_group(group: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Write saved values to a group; tensors stay the same objects, because schedulers and graphs hold on to them."""
    for name, value in saved.items():
        if name in ("params", "noise_index"):
            continue
        if isinstance(group.get(name), Tensor):
            group[name].copy_(value) if isinstance(value, Tensor) else group[name].fill_(value)
        else:
            group[name] = value.clone() if isinstance(value, Tensor) else value


def load(opt: Relaxation, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> None:
    """Load groups that were checked, and the state.

    Raises:
        ValueError: the state is not that of these parameters.
    """
    entries = checked_entries(opt._shared.plans, groups, state)
    opt.state.update(of_others(state, groups))
    if opt._shared.exchange is not None:
        opt._shared.exchange.drop()
    for plan, group in zip(opt._shared.plans, groups):
        load_group(plan.group, group)
    for plan in opt._shared.plans:
        plan.clock.take_in(plain(groups[0]["inner_steps"]))
        numbers = plan.clock.numbers()
        plan.clock.outer_step_happened = numbers["phase"] == 0 and not numbers["fresh"]
        for bucket in plan.buckets:
            if not any("inner" in entries[p] for p in bucket.params):
                bucket.drop_buffer("inner", opt.state)
            bucket.add_buffers(momenta(opt, numbers), opt.state)
            for t, p in enumerate(bucket.params):
                bucket.take_over(t, entries[p], opt.state, numbers["step"])
            bucket.forget_versions()


def portable(opt: Relaxation) -> dict[str, Any]:
    """What ``copy`` and ``pickle`` store of an optimizer."""
    opt.state.note.written = True  # sending a tensor to another process moves it out of the flat buffers
    return {
        "defaults": opt.defaults,
        "state": opt.state.plain(),
        "param_groups": [plan.clock.portable() for plan in opt._shared.plans],
        "_shared": opt._shared.portable(),
    }


@torch.no_grad()
def rebuild(opt: Relaxation, entries: dict[Any, Any], groups: list[dict[str, Any]]) -> None:
    """Make the groups, clocks and buffers of a copy from what ``portable`` returned."""
    opt.state.update({key: value for key, value in entries.items() if not isinstance(key, Tensor)})
    opt.param_groups = [
        {name: v.clone() if isinstance(v, Tensor) else v for name, v in group.items()}
        | {"params": list(group["params"])}
        for group in groups
    ]
    opt._shared.plans = [
        Plan(group, -1, [], [], [], new_clock(opt, i, group, [])) for i, group in enumerate(opt.param_groups)
    ]
    base = 0
    for i, group in enumerate(opt.param_groups):
        opt._shared.plans[i].clock.take_in(plain(groups[0]["inner_steps"]))
        make_buckets(opt, i, base, {p: entries.get(p) for p in group["params"]})
        base += len(group["params"])
