"""Hyper-parameters of a parameter group: plain Python numbers, each in its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from deeprelax.kernels import Flag, Hyper


class Range(NamedTuple):
    """The allowed values of a hyper-parameter.

    Attributes:
        holds: whether a plain value is allowed.
        expected: the allowed values in words.
    """

    holds: Callable[[Any], bool]
    expected: str


def _number(holds: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and holds(value)


NOT_NEGATIVE = Range(_number(lambda v: v >= 0), "a finite number >= 0")
POSITIVE = Range(_number(lambda v: v > 0), "a number > 0")
UNIT = Range(_number(lambda v: 0 <= v <= 1), "a number between 0 and 1")
FRACTION = Range(_number(lambda v: 0 <= v < 1), "a number >= 0 and < 1")
COUNT = Range(lambda v: type(v) is int and v >= 1, "an integer >= 1")
BOOL = Range(lambda v: isinstance(v, bool), "True or False")
BETAS = Range(
    lambda v: type(v) is tuple and len(v) == 2 and all(map(FRACTION.holds, v)), "a pair of numbers >= 0 and < 1"
)

SHARED: dict[str, Range] = {
    "lr": Range(NOT_NEGATIVE.holds, "a finite number >= 0, or a tensor of one"),
    "inner_steps": COUNT,
    "gamma": POSITIVE,
    "scoping": FRACTION,
    "momentum": NOT_NEGATIVE,
    "nesterov": BOOL,
    "weight_decay": NOT_NEGATIVE,
    "maximize": BOOL,
}

# Bits of ``Hyper.flags`` that a hyper-parameter of that name switches on.
FLAGS = {
    name: int(flag)
    for name, flag in {
        "maximize": Flag.MAXIMIZE,
        "nesterov": Flag.NESTEROV,
        "absorb_gamma": Flag.ABSORB_GAMMA,
        "carry_inner_momentum": Flag.CARRY_INNER_MOMENTUM,
        "warm_start": Flag.WARM_START,
    }.items()
}


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """ValueError unless the hyper-parameter is as expected."""
    if not condition:
        raise ValueError(f"invalid {name}: {value!r}; expected {expected}")


def check_nesterov(nesterov: bool, **momenta: float) -> None:
    """ValueError if Nesterov's form is requested and all of the momenta, by name, are 0."""
    if nesterov and all(value == 0 for value in momenta.values()):
        raise ValueError(f"nesterov=True needs {' or '.join(momenta)}; {'both are' if len(momenta) > 1 else 'it is'} 0")


def plain(value: Any) -> Any:
    """Convert NumPy scalars and tensors of one element to Python numbers, also inside a tuple, and a list of numbers,
    into which some checkpoints turn a tuple, to a tuple. Anything else is returned unchanged."""
    if type(value) is tuple or (type(value) is list and value and all(isinstance(v, int | float) for v in value)):
        return tuple(map(plain, value))
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value
    item = getattr(value, "item", None)
    return item() if item is not None and getattr(value, "size", 0) == 1 else value


def check(group: Mapping[str, Any], ranges: Mapping[str, Range], inner_steps: int) -> None:
    """ValueError if a plain value of the group is out of its range, or its L is not the optimizer's."""
    for name, allowed in ranges.items():
        require(allowed.holds(group[name]), name, group[name], allowed.expected)
    require(
        group["inner_steps"] == inner_steps,
        "inner_steps",
        group["inner_steps"],
        f"{inner_steps} as in the first group: it is one value per optimizer",
    )


def hyper(group: Mapping[str, Any], stochastic_rounding: bool) -> Hyper:
    """The group's hyper-parameters for the kernels."""
    flags = sum(bit for name, bit in FLAGS.items() if group.get(name))
    if group.get("coupling") == "implicit":
        flags |= int(Flag.IMPLICIT)
    if stochastic_rounding:
        flags |= int(Flag.STOCHASTIC_ROUNDING)
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return Hyper(
        inner_steps=group["inner_steps"],
        keep=1 - group["scoping"],
        momentum=group["momentum"],
        weight_decay=group["weight_decay"],
        alpha=group.get("alpha", 0.0),
        temperature=group.get("temperature", 0.0),
        inner_momentum=group.get("inner_momentum", 0.0),
        beta1=beta1,
        beta2=beta2,
        epsilon=group.get("eps", 0.0),
        flags=flags,
    )
