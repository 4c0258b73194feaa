"""Every kind of update, and the weights, gradients and state on which backends are compared with the reference."""

from __future__ import annotations

import functools
import itertools
import random
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from deeprelax.kernels import RULES, Backend, Draw, Flag, Rule, Scalars, Table, noise
from deeprelax.kernels.scalars import bias_correction
from deeprelax.optim.bucket import buffers_of

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
SIZES = [0, 1, 3, 4, 5, 37, 131, 517]
STARTS = [0, 5, 1, 7, 2**34 - 3, 2**34 + 2, 2**36 + 9, 3]
DRAW = Draw(0xFEDCBA9876543210, 0xFFFFFFFE, 0x89ABCDEF)
FULL_NAN = struct.unpack("<d", b"\xff" * 7 + b"\x7f")[0]  # rounding that adds to its bits makes a zero of it
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), FULL_NAN, 1e-40, -3e-39, 6e-8, 5e-324, 65519.0, 3.39e38, -1e300]
BOOLS = (False, True)
# The reference draws the same noise in thousands of calls, slowly.
DRAWN_ONCE = {name: functools.lru_cache(512)(getattr(noise, name)) for name in ("normal", "words")}
SCALES = (1.0, 0.30000001192092896)  # a float32: what unscales a gradient


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = INTEGERS[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


def at_offset(values: Tensor, offset: int) -> Tensor:
    """A copy that begins ``offset`` elements into its storage: not even the elements of a vector's start align."""
    storage = torch.zeros(values.numel() + offset, dtype=values.dtype, device=values.device)
    storage[offset:] = values
    return storage[offset:]


def numbers(size: int, dtype: torch.dtype, generator: torch.Generator, special: bool = False) -> Tensor:
    """Normal numbers; with ``special``, one in three is from ``SPECIAL``."""
    values = torch.randn(size, dtype=torch.float64, generator=generator)
    if special:
        drawn = torch.rand(size, generator=generator) < 1 / 3
        chosen = torch.randint(len(SPECIAL), (size,), generator=generator)
        values = torch.where(drawn, torch.tensor(SPECIAL, dtype=torch.float64)[chosen], values)
    return values.to(dtype)


@dataclass
class Call:
    """A rule and the scalars that it is called with."""

    rule: Rule
    scalars: Scalars

    def __repr__(self) -> str:
        reals = {name: value for name, _ in Scalars._fields_ if (value := getattr(self.scalars, name))}
        return f"{self.rule.name}({reals}, {Flag(self.scalars.flags)!r})"

    def has(self, flag: Flag) -> bool:
        return bool(self.scalars.flags & flag)

    def changed(self, on: int = 0, off: int = 0, **values: float) -> Call:
        """A copy with other flags and scalars."""
        scalars = Scalars.from_buffer_copy(self.scalars)
        for name, value in values.items():
            setattr(scalars, name, value)
        scalars.flags = (scalars.flags | on) & ~(off | Flag.NOISE) | Flag.NOISE * (scalars.noise_scale != 0)
        return Call(self.rule, scalars)

    def with_draw(self, draw: Draw) -> Call:
        """A copy that draws this noise."""
        key0, key1 = draw.key
        return self.changed(key0=key0, key1=key1, step=draw.step)


def call(rule: str, **values: float) -> Call:
    """A call with these flags (upper-case names) and scalars; all have the same outer step and noise."""
    flags = sum(Flag[name] for name, on in values.items() if name.isupper() and on)
    reals = {name: value for name, value in values.items() if name.islower()}
    return Call(RULES[rule], Scalars(outer_step=0.31, outer_scale=1.7, lr=0.13, **reals)).changed(flags).with_draw(DRAW)


@dataclass
class Case:
    """Weights, gradients and buffers from which every backend starts."""

    weights: list[Tensor]
    grads: list[Tensor | None]
    buffers: dict[str, Tensor]
    starts: list[int]
    runs: list[tuple[int, int] | None]

    @staticmethod
    def make(
        call: Call,
        dtype: torch.dtype,
        seed: int,
        sizes: list[int],
        special: bool,
        offset: int = 0,
        starts: list[int] = STARTS,
    ) -> Case:
        """Weights and gradients of those sizes, ``offset`` elements into their storage; two have no gradient."""
        generator = torch.Generator().manual_seed(seed)
        draw = functools.partial(numbers, generator=generator, special=special)
        weights = [at_offset(draw(n, dtype), offset) for n in sizes]
        starts = [starts[t % len(starts)] for t in range(len(sizes))]
        runs = [random_runs(n, random.Random(seed + t)) for t, n in enumerate(sizes)]
        table = Table(weights, list(range(len(sizes))), starts, runs)
        missing = {seed % len(sizes), (seed + 3) % len(sizes)}
        grads = [None if t in missing else at_offset(draw(n, dtype), offset) for t, n in enumerate(sizes)]
        names = names_of_buffers(call.rule, dtype, call.has(Flag.STOCHASTIC_ROUNDING))
        buffers = {name: draw(table.length, table.compute_dtype) for name in names}
        if "missed" in names:
            buffers["missed"] = missed_gradients(len(sizes))
        near_weights(table, buffers["x"], 1 + 2**-15)
        return Case(weights, grads, buffers, starts, runs)

    def run(self, backend: Backend, call: Call, device: str = "cpu") -> list[Tensor]:
        """What the weights and the buffers hold after the call, on the CPU."""
        weights, grads = (
            [None if t is None else at_offset(t.to(device), t.storage_offset()) for t in tensors]
            for tensors in (self.weights, self.grads)
        )
        buffers = {name: b.to(device, copy=True) for name, b in self.buffers.items()}
        table = Table(weights, [5 * t + 1 for t in range(len(weights))], self.starts, self.runs)
        addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
        with patch.multiple(noise, **DRAWN_ONCE):
            backend.bind(call.rule, table, buffers).run(call.scalars, grads, addresses)
        return [t.cpu() for t in (*weights, *buffers.values())]


def random_runs(size: int, rng: random.Random) -> tuple[int, int] | None:
    """For a third of the weights the length of their runs, a divisor of their size, and their distance."""
    divisors = [n for n in (1, 3, 4, 5, 11, 16, 47, 100) if size and size % n == 0 and size // n < 50]
    if rng.random() < 0.66 or not divisors:
        return None
    length = rng.choice(divisors)
    return length, length + rng.choice([0, 1, 3, 8, 1000])


def near_weights(table: Table, x: Tensor, factor: float) -> None:
    """Let every other element of x round to its weight."""
    for t, weight in enumerate(table.weights):
        table.state(t, x)[:, ::2] = weight.view(table.runs(t))[:, ::2].to(x.dtype) * factor


def names_of_buffers(rule: Rule, dtype: torch.dtype, stochastic_rounding: bool) -> list[str]:
    """Every buffer that the rule may use."""
    kept = buffers_of(rule, dtype in (torch.bfloat16, torch.float16), stochastic_rounding)
    return [*kept, *(buffer for _, buffer in rule.optional)]


def missed_gradients(tensors: int) -> Tensor:
    """For each tensor the calls without a gradient, none of every other one."""
    return torch.tensor([0 if t % 2 else t % 4 + 1 for t in range(tensors)], dtype=torch.int64)


def corrected(rate: float, betas: tuple[float, float], step: int) -> dict[str, float]:
    """AdamW's scalars at a step."""
    step_size, inv_root_bias2 = bias_correction(rate, *betas, step + 1)
    beta1, beta2 = betas
    return {
        **{"beta1": beta1, "one_minus_beta1": 1 - beta1, "beta2": beta2, "one_minus_beta2": 1 - beta2},
        **{"epsilon": 1e-8, "decay": 0.97, "step_size": step_size, "inv_root_bias2": inv_root_bias2},
        **{"wide_rate": rate, "wide_beta1": beta1, "wide_beta2": beta2, "count": step + 1},
    }


def coins(seed: int, count: int) -> Iterator[tuple[bool, ...]]:
    """An endless iterator over rows of ``count`` random booleans."""
    rng = random.Random(seed)
    while True:
        yield tuple(rng.random() < 0.5 for _ in range(count))


AVERAGE = {"alpha": 0.7, "one_minus_alpha": 0.3}
LANGEVIN = {"inner_lr": 0.11, "inv_gamma": 1.3, "pull": 0.17, "denominator": 1.17}
Calls = Callable[[torch.dtype], Iterator[Call]]


# Every phase with every combination of the options that cost an operand; the others vary.


def entropy_sgd_calls(dtype: torch.dtype) -> Iterator[Call]:
    every = zip(itertools.product(BOOLS, repeat=7), coins(1, 5))
    for (first, last, noisy, decay, momentum, inner, implicit), (maximize, nesterov, fresh, rounding, scaled) in every:
        flags = {"FIRST": first, "LAST": last, "MAXIMIZE": maximize, "IMPLICIT": implicit, "NESTEROV": nesterov}
        flags |= {"FRESH_VELOCITY": fresh, "STOCHASTIC_ROUNDING": rounding and dtype == torch.bfloat16}
        reals = {"noise_scale": 0.05 * noisy, "weight_decay": 0.03 * decay, "inv_scale": SCALES[scaled]}
        reals |= {"inner_momentum": 0.8 * inner, "momentum": 0.9 * momentum}
        yield call("entropy_sgd", **flags, **reals, **AVERAGE, **LANGEVIN)


def hj_calls(dtype: torch.dtype) -> Iterator[Call]:
    for first, last, warm, decay, maximize, momentum, nesterov in itertools.product(BOOLS, repeat=7):
        flags = {"FIRST": first, "LAST": last, "WARM_START": warm, "MAXIMIZE": maximize, "NESTEROV": nesterov}
        reals = {"gamma": 0.37, "weight_decay": 0.03 * decay, "momentum": 0.9 * momentum}
        yield call("hj", **flags, **reals, **AVERAGE, inv_scale=SCALES[warm != momentum])


def heat_calls(dtype: torch.dtype) -> Iterator[Call]:
    for first, last, take, decay, maximize, momentum, nesterov in itertools.product(BOOLS, repeat=7):
        flags = {"FIRST": first, "LAST": last, "TAKE_PARAM": take, "MAXIMIZE": maximize, "NESTEROV": nesterov}
        reals = {"noise_scale": 0.21, "weight_decay": 0.03 * decay, "momentum": 0.9 * momentum}
        yield call("heat", **flags, **reals, inv_scale=SCALES[take != momentum])


def entropy_adamw_calls(dtype: torch.dtype) -> Iterator[Call]:
    every = zip(itertools.product(BOOLS, repeat=6), coins(2, 5))
    for (first, last, noisy, pull, average, momentum), (maximize, nesterov, rounding, decay, scaled) in every:
        flags = {"FIRST": first, "LAST": last, "MAXIMIZE": maximize, "NESTEROV": nesterov, "PULL": pull}
        flags |= {"AVERAGE": average, "STOCHASTIC_ROUNDING": rounding and dtype == torch.bfloat16}
        reals = {
            "inner_lr": 0.11,
            "inv_gamma": 1.3 * pull,
            "alpha": 0.7 * average,
            "one_minus_alpha": 1 - 0.7 * average,
        }
        reals |= {"noise_scale": 0.05 * noisy, "weight_decay": 0.03 * decay, "momentum": 0.9 * momentum}
        corrections = corrected(0.11, (0.8, 0.95), DRAW.step)
        yield call("entropy_adamw", **flags, **reals, **corrections, inv_scale=SCALES[scaled])


def outer_calls(dtype: torch.dtype) -> Iterator[Call]:
    for first, last, average, momentum, nesterov in itertools.product(BOOLS, repeat=5):
        flags = {"FIRST": first, "LAST": last, "AVERAGE": average, "NESTEROV": nesterov}
        reals = {"alpha": 0.7 * average, "one_minus_alpha": 1 - 0.7 * average, "momentum": 0.9 * momentum}
        yield call("outer", **flags, **reals, inv_scale=1.0)


def elastic_sgd_calls(dtype: torch.dtype) -> Iterator[Call]:
    for costly, others in zip(itertools.product(BOOLS, repeat=6), coins(3, 7)):
        take, noisy, decay, inner, implicit, fresh = costly
        first, last, maximize, nesterov, rounding, momentum, scaled = others
        flags = {"FIRST": first, "LAST": last, "TAKE_PARAM": take, "MAXIMIZE": maximize, "IMPLICIT": implicit}
        flags |= {"NESTEROV": nesterov, "FRESH_VELOCITY": fresh}
        flags["STOCHASTIC_ROUNDING"] = rounding and dtype == torch.bfloat16
        reals = {"noise_scale": 0.05 * noisy, "weight_decay": 0.03 * decay, "inv_scale": SCALES[scaled]}
        reals |= {"inner_momentum": 0.8 * inner, "momentum": 0.9 * momentum}
        yield call("elastic_sgd", **flags, **reals, **LANGEVIN)


CALLS: list[Calls] = [
    *(entropy_sgd_calls, hj_calls, heat_calls),
    *(entropy_adamw_calls, outer_calls, elastic_sgd_calls),
]
