"""Checks a saved state before anything of it is taken over."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

# Buffers that come and go: the momenta with their hyper-parameters, the inner point with eval mode.
OPTIONAL = {"momentum_buffer", "inner_momentum_buffer", "inner"}


def check_groups(
    optimizer: str, groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], expected: Collection[str]
) -> None:
    """ValueError unless the saved groups are of this optimizer and of as many parameters each."""
    if len(groups) != len(saved):
        raise ValueError(
            f"the saved state has {len(saved)} parameter groups, this {optimizer} has {len(groups)}: build the "
            "optimizer with the groups that were there when the state was saved, then add the new ones"
        )
    for i, (group, other) in enumerate(zip(groups, saved)):
        missing = sorted(set(expected) - set(other))
        if missing:
            raise ValueError(
                f"the saved state is not that of {optimizer}: param_groups[{i}] lacks {', '.join(missing)}"
            )
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"param_groups[{i}] has {len(other['params'])} parameters in the saved state, "
                f"{len(group['params'])} in this {optimizer}"
            )


def check_state(name: str, p: Tensor, entry: Mapping[str, Any], expected: Collection[str]) -> None:
    """ValueError unless one parameter's saved tensors are those expected, in the parameter's shape."""
    tensors = {key for key in entry if key not in OPTIONAL}
    if tensors != set(expected):
        raise ValueError(
            f"{name}: the saved state holds {', '.join(sorted(tensors)) or 'nothing'}, expected "
            f"{', '.join(sorted(expected))}: it is another optimizer's, or of a model of another dtype"
        )
    for key, value in entry.items():
        if not isinstance(value, Tensor) or value.shape != p.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: {key} of the saved state has shape {found}, expected {tuple(p.shape)}")
