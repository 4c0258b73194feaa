"""Parameters of which this process holds a part: the DTensors of FSDP2 and tensor parallelism.

A part is updated in place, with the noise of its elements of the unsharded parameter: a run does not depend on how many
processes share a parameter. Everything here also takes plain tensors, which are their own parts.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deeprelax.optim.relaxation import Relaxation

# A part in the memory order of the unsharded parameter: its first element there, and, unless it is one range, the
# length of its runs and their distance.
Place = tuple[int, tuple[int, int] | None]


def is_sharded(t: Any) -> bool:
    """Whether it is a DTensor. Does not import them, which takes a while."""
    return hasattr(t, "_local_tensor") and hasattr(t, "_spec")


def part(t: Tensor) -> Tensor:
    """The memory of this process: a DTensor's local tensor, else the tensor itself."""
    return t._local_tensor if is_sharded(t) else t  # type: ignore[attr-defined]


def inner_first(p: Tensor) -> list[int]:
    """The dimensions of the unsharded parameter, by increasing stride."""
    return sorted(range(p.ndim), key=lambda d: (p.stride(d), -d))


def dense_strides(p: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides without gaps for the shape of the unsharded parameter or of its part, in the former's memory order."""
    strides, step = [0] * p.ndim, 1
    for d in inner_first(p):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)


def place_of_part(p: Tensor, name: str) -> Place:
    """The place of the part in the unsharded parameter.

    Raises:
        TypeError: it is a partial sum, or consists of runs at unequal distances.
    """
    if not is_sharded(p):
        return 0, None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spec: Any = p._spec  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in spec.placements):
        raise TypeError(f"{name} is a partial sum ({spec.placements}); redistribute it to Shard or Replicate first")
    shape, offsets = compute_local_shape_and_global_offset(p.shape, spec.mesh, spec.placements)
    if tuple(shape) != tuple(part(p).shape):
        raise TypeError(f"{name}: its part has shape {tuple(part(p).shape)}; {spec.placements} say {tuple(shape)}")
    if 0 in shape:
        return 0, None
    strides = dense_strides(p, p.shape)
    start = sum(offset * stride for offset, stride in zip(offsets, strides))
    length, step, reach = 1, 0, 1  # of the runs, their distance, and where the next one is expected
    for d in inner_first(p):
        if step and shape[d] > 1 and strides[d] != reach:
            raise TypeError(
                f"{name} is sharded along two dimensions that are not its outermost one ({spec.placements} of shape "
                f"{tuple(p.shape)}): its elements are at unequal distances, which no kernel takes; shard it otherwise"
            )
        if step:
            reach *= shape[d]
            continue
        length *= shape[d]
        if shape[d] != p.shape[d]:
            step = reach = strides[d] * p.shape[d]
    return start, (length, step) if length < part(p).numel() else None


def noise_places(group: Mapping[str, Any], base: int) -> list[tuple[int, int]]:
    """For each parameter of a group, the noise's parameter index and the index in it of the parameter's first element:
    the group's ``"noise_index"``, else the position among all parameters, ``base`` of which come before, and 0.

    Raises:
        ValueError: ``"noise_index"`` is not a pair of such numbers for each parameter.
    """
    given, count = group.get("noise_index"), len(group["params"])
    if given is None or not count:  # ZeroRedundancyOptimizer leaves groups empty that other ranks serve
        return [(base + i, 0) for i in range(count)]
    try:
        pairs = [(operator.index(index), operator.index(start)) for index, start in given]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != count or not all(0 <= index < 2**32 and 0 <= start < 2**62 for index, start in pairs):
        raise ValueError(
            f"noise_index is {given}; expected (parameter index, first element) for each of the group's {count} "
            "parameters, two integers >= 0"
        )
    return pairs


def like(p: Tensor, value: Tensor) -> Tensor:
    """A tensor of the part's shape as state of the parameter: if that is a DTensor, one of the same placement."""
    if not is_sharded(p):
        return value
    from torch.distributed.tensor import DTensor

    spec: Any = p._spec  # type: ignore[attr-defined]
    return DTensor.from_local(
        value, spec.mesh, spec.placements, run_check=False, shape=p.shape, stride=dense_strides(p, p.shape)
    )


def same_placement(p: Tensor, value: Tensor) -> bool:
    """Whether this process holds the same part of both."""
    if not is_sharded(p):
        return not is_sharded(value)
    return is_sharded(value) and value._spec.placements == p._spec.placements  # type: ignore[attr-defined]


def gradient_part(p: Tensor, name: str, g: Tensor) -> Tensor:
    """The part of the gradient that belongs to the parameter's.

    A gradient with another placement is redistributed, by a collective on all processes: sequence parallelism leaves
    that of a replicated norm's weight as a sum over them.

    Raises:
        RuntimeError: one of the two is a DTensor and the other is not.
    """
    if is_sharded(p) != is_sharded(g):
        kinds = type(p.data).__name__, type(g).__name__
        raise RuntimeError(f"{name} is a {kinds[0]} and its gradient a {kinds[1]}; both must be DTensors, or neither")
    if is_sharded(p) and not same_placement(p, g):
        g = g.redistribute(placements=p._spec.placements)  # type: ignore[attr-defined]
    return part(g)


def sharing(p: Tensor) -> tuple[tuple[Any, str], ...]:
    """The process groups, each with its type of device, over which a sum over the parameter's parts must be reduced in
    turn: those of the mesh dimensions along which it is sharded. Along the others, processes hold the same part."""
    if not is_sharded(p):
        return ()
    spec: Any = p._spec  # type: ignore[attr-defined]
    sharded = [d for d, each in enumerate(spec.placements) if not each.is_replicate()]
    return tuple((spec.mesh.get_group(d), spec.mesh.device_type) for d in sharded)


def reshard(opt: Relaxation, modules: Sequence[torch.nn.Module] = ()) -> None:
    """Make FSDP gather the weights again: it would ignore what was written to the parts since it last did.

    Args:
        opt: the optimizer that has written to them.
        modules: those that hold its parameters; default all FSDP modules of the process.

    Raises:
        RuntimeError: they cannot be found.
    """
    if not any(bucket.sharded for bucket in opt._shared.buckets):
        return
    from torch.distributed.fsdp import FSDPModule

    if not modules:
        try:
            from torch.distributed._composable_state import _module_state_mapping as known
        except ImportError:
            raise RuntimeError(
                "this version of torch does not tell which modules FSDP has sharded, and they may hold old weights: "
                "pass them, as in opt.eval(model) and opt.train(model)"
            ) from None
        modules = list(known)
    for module in {each for given in modules for each in given.modules()}:
        if isinstance(module, FSDPModule):
            module.reshard()
