"""``torch.compile``: what other code changes between two compiled steps, and a step that fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from conftest import same_bits
from torch.nn import Parameter

import deeprelax

pytestmark = pytest.mark.usefixtures("one_thread", "_nothing_compiled_before")


@pytest.fixture
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def exchanged_after(steps: int, compiled: bool) -> list[Any]:
    """One of two parameters trains, and after so many steps the other one does."""
    first, second = Parameter(torch.ones(5)), Parameter(torch.full((5,), 7.0), requires_grad=False)
    opt = deeprelax.HJ([first, second], lr=0.1, inner_steps=2)

    def step() -> None:
        opt.step()

    call = torch.compile(step, backend="aot_eager") if compiled else step
    for i in range(2 * steps):
        if i == steps:
            first.requires_grad_(False)
            second.requires_grad_(True)
        for p in (first, second):
            p.grad = torch.full((5,), 0.5 + i)
        call()
    return [first.detach(), second.detach()]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_which_parameters_train_is_looked_up_at_each_step(steps: int) -> None:
    assert same_bits(exchanged_after(steps, compiled=True), exchanged_after(steps, compiled=False))


def test_a_compiled_step_that_fails_leaves_no_scale_behind() -> None:
    p = Parameter(torch.ones(5))
    opt: Any = deeprelax.HJ([p], lr=0.1, inner_steps=2)
    step = torch.compile(lambda: opt.step(), backend="aot_eager")
    p.grad = torch.ones(5)
    step()
    opt.eval()
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="eval"):
        step()
    assert not hasattr(opt, "grad_scale")
    assert not hasattr(opt, "found_inf")
