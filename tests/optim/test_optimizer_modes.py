"""``eval()`` puts x into the parameters, ``train()`` the inner point back; phase 0; Heat; ``restart()``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make, parameters, run, same_bits, set_gradients, started, twins, values
from torch.nn import Parameter

NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *NARROW], ids=str)
def test_eval_and_train_between_any_two_steps_do_not_change_the_run(name: str, dtype: torch.dtype):
    (opt, params), (other, reference) = twins(name, dtype=dtype)
    for step in range(9):
        run(opt, params, range(step, step + 1))
        run(other, reference, range(step, step + 1))
        inner = values(params)
        opt.eval()
        x = values(params)
        assert same_bits(x, [e["x"].to(dtype) for e in opt.state_dict()["state"].values()])
        if name == "Heat" or opt.phase != 0:
            assert not same_bits(x, inner)
        opt.eval()
        assert same_bits(params, x)
        opt.train()
        assert same_bits(params, inner)
        opt.train()
        assert same_bits(params, inner)
    assert same_bits(params, reference)


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_step_in_eval_mode_is_an_error_and_changes_nothing(name: str, steps: int, unchanged: Any):
    opt, params = started(name, steps)
    opt.eval()
    set_gradients(params, 0)
    same = unchanged(opt, params)
    with pytest.raises(RuntimeError, match=r"eval.*train\(\)"):
        opt.step(lambda: pytest.fail("the closure ran"))
    assert same()


def test_heat_takes_up_weights_loaded_before_its_first_gradient():
    opt, params = started("Heat")
    with torch.no_grad():
        for p in params:
            p.mul_(2)
    loaded = values(params)
    run(opt, params, range(1))
    assert not same_bits(params, loaded)
    opt.eval()
    assert same_bits(params, loaded)


def test_heats_train_before_the_first_gradient_moves_to_x_plus_w_once():
    params = [Parameter(torch.zeros(20_000))]
    opt = make("Heat", params, gamma=0.25)
    opt.train()
    first = values(params)
    assert params[0].mean().item() == pytest.approx(0, abs=0.02)
    assert params[0].std().item() == pytest.approx(0.5, rel=0.03)
    opt.train()
    assert same_bits(params, first)
    opt.eval()
    assert not params[0].any()
    opt.train()
    assert same_bits(params, first)


def test_heats_parameter_is_x_where_a_gradient_is_missing():
    opt, params = started("Heat", 1)
    set_gradients(params, 1, without=[0])
    opt.step()
    assert same_bits([params[0]], [opt.state[params[0]]["x"]])
    assert not same_bits([params[1]], [opt.state[params[1]]["x"].clone(memory_format=torch.preserve_format)])


@pytest.mark.parametrize("steps", [1, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_restart_begins_a_new_cycle_at_what_the_parameters_hold(name: str, steps: int, dtype: torch.dtype):
    opt, params = started(name, steps, dtype=dtype)
    gamma, counter = opt.gamma, opt.param_groups[0]["step"]
    here = values(parameters(dtype, seed=31))
    with torch.no_grad():
        for p, value in zip(params, here):
            p.copy_(value)
    opt.restart()
    assert same_bits(params, here)
    assert (opt.phase, opt.outer_step_happened, opt.gamma) == (0, False, gamma)
    assert opt.param_groups[0]["step"] == counter, "the noise continues"
    run(opt, params, range(steps, steps + 1))
    opt.eval()
    assert same_bits(params, here)
    opt.train()
    for step in range(steps + 1, steps + 4):
        assert not opt.outer_step_happened
        run(opt, params, range(step, step + 1))
    assert opt.outer_step_happened


def test_restart_in_eval_mode_begins_at_x_and_training_continues(name: str):
    opt, params = started(name, 2)
    opt.eval()
    x = values(params)
    opt.restart()
    opt.train()
    assert name == "Heat" or same_bits(params, x)
    assert opt.phase == 0
    run(opt, params, range(2, 3))
    opt.eval()
    assert same_bits(params, x)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_small_updates_of_a_narrow_model_are_not_lost(name: str, dtype: torch.dtype):
    """1,024 outer steps of 2^-15 on a weight of 1: each alone rounds away, together they are 2^-5."""
    quiet = {"gamma": 1e-300, "scoping": 0.0} if name == "Heat" else {}
    if name in ("EntropySGD", "ElasticSGD", "Parle"):
        quiet = {"temperature": 0.0, "gamma": 1.0, "inner_lr": 1.0, "scoping": 0.0, "inner_momentum": 0.0}
        quiet |= {} if name == "ElasticSGD" else {"alpha": 0.0}
    if name == "HJ":
        quiet = {"alpha": 0.0}
    if name == "EntropyAdamW":  # the first step is lr in size, and the outer step 2^-15 of it
        quiet = {"temperature": 0.0, "gamma": math.inf, "alpha": 0.0, "lr": 1.0, "outer_lr": 2**-15, "eps": 0.0}
    p = Parameter(torch.ones(3, dtype=dtype))
    off = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    opt = make(name, [p], **{"inner_steps": 1, "lr": 2**-15, **off, **quiet})
    for _ in range(1024):
        p.grad = torch.ones_like(p)
        opt.step()
    opt.eval()
    assert torch.allclose(p.float(), torch.tensor(1 - 2**-5), atol=2**-8)
