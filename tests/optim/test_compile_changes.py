"""``torch.compile``: what other code changes between two compiled steps, a step that fails, and the operator alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import same_bits
from torch.nn import Parameter

import deeprelax
from deeprelax.optim.compiled import rates

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(steps: int, turns: list[tuple[bool, bool]], compiled: bool) -> list[Any]:
    """Two parameters after so many steps, and one more for each later turn, which says which of them train. They keep
    their gradients: new ones would let the compiler notice."""
    params = [Parameter(torch.ones(5)), Parameter(torch.full((5,), 7.0))]
    opt = deeprelax.HJ(params, lr=0.1, inner_steps=2)

    def step() -> None:
        opt.step()

    call = torch.compile(step, backend="aot_eager") if compiled else step
    for p in params:
        p.grad = torch.ones(5)
    for k, turn in enumerate(turns):
        for p, trains in zip(params, turn):
            p.requires_grad_(trains)
        for _ in range(1 if k else steps):
            call()
    return [p.detach() for p in params]


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("turns", [[(True, True), (True, False), (True, True)], [(True, False), (False, True)]])
def test_which_parameters_train_is_looked_up_at_each_step(steps: int, turns: list[tuple[bool, bool]]) -> None:
    """torch 2.11 does not always notice that."""
    assert same_bits(trained(steps, turns, compiled=True), trained(steps, turns, compiled=False))


@pytest.mark.usefixtures("nothing_compiled")
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


@pytest.mark.parametrize("missing", [False, True])
def test_the_operator_is_what_its_schema_says(missing: bool) -> None:
    params = [Parameter(torch.randn(3, 4)), Parameter(torch.randn(5).bfloat16())]
    # One gradient a cycle and a constant γ: what the operator writes is a function of what it is given.
    opt = deeprelax.HJ(params, lr=torch.tensor(0.5), inner_steps=1, scoping=0.0)
    grads = [torch.randn(3, 4), None if missing else torch.randn(5).bfloat16()]
    args = (params, grads, rates(opt), None, None, opt._name_in_graphs)
    results = torch.library.opcheck(torch.ops.deeprelax.step.default, args)
    assert set(results.values()) == {"SUCCESS"}
