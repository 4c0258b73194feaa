"""The bytes that a call is said to move are those that the reference reads and writes, and those of the design."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import bits
from torch import Tensor
from torch.nn import Parameter

import deeprelax
from deeprelax.benchmark.traffic import KINDS, PEER_OPERANDS, bytes_moved, operands, peer_bytes_moved

F32, BF16 = torch.float32, torch.bfloat16
BUFFERS = {"x": "x", "y": "y", "z": "z", "p": "p", "s": "s", "momentum_buffer": "m", "inner_momentum_buffer": "v"}
BUFFERS |= {"exp_avg": "e", "exp_avg_sq": "q"}


@pytest.mark.parametrize(
    ("optimizer", "words", "narrow"),
    [
        ("EntropySGD", (5, 6, 5), 24),
        ("HJ", (5, 5, 4), 16),
        ("Heat", (4, 5, 5), 16),
        ("EntropyAdamW", (8, 7, 8), 28),
        ("ElasticSGD", (4, 4, 4), 16),
    ],
)
def test_calls_move_the_words_of_the_design(optimizer: str, words: tuple[int, ...], narrow: int) -> None:
    """Words of the first, an inner and the last call; bytes of an inner one on narrow weights."""
    for dtype in (F32, torch.float64):
        found = [bytes_moved(optimizer, dtype, kind) for kind in ("first", "inner", "last")]
        assert found == [dtype.itemsize * n for n in words]
    assert [bytes_moved(optimizer, dtype, "inner") for dtype in (BF16, torch.float16)] == [narrow] * 2


def test_a_momentum_adds_two_words_where_it_acts() -> None:
    for optimizer in ("EntropySGD", "HJ", "Heat"):
        added = [
            bytes_moved(optimizer, F32, kind, momentum=0.9) - bytes_moved(optimizer, F32, kind)
            for kind in ("first", "inner", "last")
        ]
        assert added == [0, 0, 8]
    for carry, first in ((False, 4), (True, 8)):  # a velocity that starts again is not read
        options = {"inner_momentum": 0.9, "carry_inner_momentum": carry}
        found = [bytes_moved("EntropySGD", F32, kind, **options) for kind in ("first", "inner", "last")]
        assert found == [20 + first, 24 + 8, 20 + 8]


def test_peers_move_what_fused_implementations_have_to() -> None:
    assert [peer_bytes_moved(peer, F32) for peer in PEER_OPERANDS] == [12, 20, 28]
    assert [peer_bytes_moved(peer, BF16) for peer in PEER_OPERANDS] == [6, 10, 14]


@pytest.mark.parametrize("unknown", [("SGD", F32, "inner"), ("HJ", F32, "second"), ("HJ", torch.int32, "inner")])
def test_an_unknown_optimizer_dtype_or_kind_is_refused(unknown: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown .* expected one of"):
        bytes_moved(*unknown)


def memory(opt: Any, p: Tensor) -> dict[str, Tensor]:
    """Every operand of a one-parameter optimizer, by the name that ``operands`` gives it."""
    state = {BUFFERS[name]: value for name, value in opt.state[p].items() if name in BUFFERS}
    return {"w": p.data, "g": p.grad, **state}  # .data: not a write that the optimizer sees


def after(opt: Any, p: Tensor, content: dict[str, Tensor], clock: dict[str, Any]) -> dict[str, Tensor]:
    """The operands after one step from the given content and clock."""
    opt.param_groups[0].update(clock)
    for name, value in memory(opt, p).items():
        value.copy_(content[name])
    opt.step()
    return {name: value.clone() for name, value in memory(opt, p).items()}


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.1}], ids=["plain", "momentum"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("optimizer", "own"),
    [
        ("EntropySGD", {}),
        ("EntropySGD", {"inner_momentum": 0.9}),
        ("EntropySGD", {"inner_momentum": 0.9, "carry_inner_momentum": True}),
        ("EntropySGD", {"stochastic_rounding": True}),
        ("HJ", {}),
        ("Heat", {}),
        ("EntropyAdamW", {"momentum": 0.0}),
        ("EntropyAdamW", {"momentum": 0.5, "gamma": 0.5, "alpha": 0.3}),
    ],
    ids=["EntropySGD", "inner momentum", "carried", "stochastic rounding", "HJ", "Heat", "SNOO", "Entropy-Adam"],
)
def test_the_operands_are_those_that_the_reference_reads_and_writes(
    optimizer: str, own: dict[str, Any], dtype: torch.dtype, kind: str, options: dict[str, Any]
) -> None:
    """Read: other content there changes what the call leaves behind. Written: the call leaves other content there."""
    settings = {**options, **own}
    draw = torch.Generator().manual_seed(0)
    p = Parameter(torch.randn(64, generator=draw).to(dtype))
    p.grad = torch.randn(64, generator=draw).to(dtype)
    length = 1 if kind == "only" else 3
    seed = {} if optimizer == "HJ" else {"seed": 0}
    opt = getattr(deeprelax, optimizer)([p], inner_steps=length, scoping=0.0, backend="eager", **seed, **settings)
    for _ in range(length + {"first": 0, "only": 0, "inner": 1, "last": 2}[kind]):
        opt.step()
    clock = {name: opt.param_groups[0][name] for name in ("step", "phase", "gamma")}
    # A state that no step has left, so that no two operands agree by chance; at the start of a cycle also one in which
    # x rounds to the parameter, for it is read then.
    content = {name: torch.randn(64, generator=draw).to(value.dtype) for name, value in memory(opt, p).items()}
    rounded = {**content, "x": content["w"].float() * (1 + 2.0**-12 * (dtype == BF16))}
    read, written = set(), set()
    for start in [content, rounded] if kind in ("first", "only") else [content]:
        result = after(opt, p, start, clock)
        changed = {name for name in start if not torch.equal(bits(result[name]), bits(start[name]))}
        written |= changed
        for name in start:
            poisoned = after(opt, p, {**start, name: torch.full_like(start[name], torch.nan)}, clock)
            others = set(start) - {name} | (changed & {name})
            if any(not torch.equal(bits(poisoned[other]), bits(result[other])) for other in others):
                read.add(name)
    assert (read, written) == operands(optimizer, dtype, kind, **settings)
