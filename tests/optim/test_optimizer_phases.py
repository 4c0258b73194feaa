"""The cycle: phases, missing gradients, late groups, eval and train, restart, changes of L and gamma."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import PLAIN, QUIET, make, parameters, plain, run, same_bits, set_gradients, started, values
from torch.nn import Parameter

import deeprelax


def x_of(opt: Any, p: Parameter) -> torch.Tensor:
    opt.eval()
    x = p.detach().clone()
    opt.train()
    return x


def test_the_phase_counts_the_gradients_of_the_cycle(name: str):
    opt, params = started(name, inner_steps=3)
    seen = [(opt.phase, opt.outer_step_happened)]
    for step in range(7):
        run(opt, params, range(step, step + 1))
        seen.append((opt.phase, opt.outer_step_happened))
    assert seen == [(0, False), *[(1, False), (2, False), (0, True)] * 2, (1, False)]


def test_gamma_shrinks_with_every_outer_update_and_only_then(name: str):
    opt, params = started(name, inner_steps=3, gamma=0.25, scoping=0.1)
    gammas = []
    for step in range(7):
        run(opt, params, range(step, step + 1))
        gammas.append(opt.gamma)
    assert gammas == [0.25, 0.25, *[0.25 * (1 - 0.1)] * 3, *[0.25 * (1 - 0.1) * (1 - 0.1)] * 2]


def test_a_users_gamma_is_the_new_gamma_and_scoping_continues_from_it(name: str):
    params, fresh = parameters(), parameters()
    opt = make(name, params, scoping=0.5)
    run(opt, params, range(2))
    opt.param_groups[0]["gamma"] = 0.125
    run(opt, params, range(2, 4))
    assert opt.gamma == 0.0625
    other = make(name, fresh, scoping=0.5)
    run(other, fresh, range(4))
    assert same_bits(params, fresh) == (name != "Heat")  # whose first point of the next cycle is drawn already
    run(opt, params, range(4, 6))
    run(other, fresh, range(4, 6))
    assert not same_bits(params, fresh)


def test_calls_without_a_gradient_still_begin_and_end_the_cycle(name: str):
    """A parameter without gradients in a whole cycle keeps its x, whatever cycles before and after it did."""
    if name == "ElasticSGD":
        pytest.skip("a parameter without a gradient stays where it is, and the centre comes nearer")
    off = PLAIN[name]
    params = [Parameter(torch.ones(5)), Parameter(torch.linspace(1, 2, 5))]
    opt = make(name, params, **off)
    run(opt, params, range(4))
    x = x_of(opt, params[1])
    for step in range(4, 8):
        set_gradients(params, step, without=[1])
        before = params[1].detach().clone()
        opt.step()
        assert torch.equal(params[1], x), "without a gradient it stands at x"
        assert step == 4 or torch.equal(params[1], before)
    assert torch.equal(x_of(opt, params[1]), x)
    run(opt, params, range(8, 12))
    assert not torch.equal(params[1], x)


def test_a_new_number_of_inner_steps_counts_from_the_next_cycle(name: str):
    opt, params = started(name, 1, inner_steps=3)
    opt.param_groups[0]["inner_steps"] = 4
    phases = []
    for step in range(1, 7):
        run(opt, params, range(step, step + 1))
        phases.append(opt.phase)
    assert phases == [2, 0, 1, 2, 3, 0]


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_without_any_gradient_changes_nothing(name: str, capturable: bool, unchanged: Any):
    opt, params = started(name, capturable=capturable)
    for step in range(5):
        same = unchanged(opt, params)
        opt.zero_grad()
        opt.step()
        assert same()
        assert not opt.outer_step_happened
        run(opt, params, range(step, step + 1))


def test_a_frozen_parameter_never_moves_and_counts_for_the_noise(name: str):
    off = PLAIN[name]
    frozen = Parameter(torch.randn(7), requires_grad=False)
    before = frozen.detach().clone()
    with_frozen, without = [frozen, *parameters()], parameters()
    opt, other = make(name, with_frozen, **off), make(name, without, **off)
    for step in range(5):
        for params, o in ((with_frozen[1:], opt), (without, other)):
            set_gradients(params, step)
            o.step()
    assert same_bits([frozen], [before])
    assert frozen not in opt.state
    assert 0 not in opt.state_dict()["state"]
    assert same_bits(with_frozen[1:], without) == (name == "HJ")


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_a_late_group_joins_at_the_current_phase_with_x_its_parameters(name: str, steps: int):
    params, late = parameters(), Parameter(torch.linspace(-1, 1, 9))
    opt = make(name, params)
    run(opt, params, range(steps))
    before = late.detach().clone()
    opt.add_param_group({"params": [late], "lr": 0.7})
    assert same_bits([late], [before])
    assert opt.phase == steps % 4
    assert opt.param_groups[1]["gamma"] == pytest.approx(opt.defaults["gamma"])
    opt.eval()
    assert same_bits([late], [before])
    opt.train()
    all_params = [*params, late]
    phases = []
    for step in range(steps, steps + 5):
        run(opt, all_params, range(step, step + 1))
        phases.append(opt.phase)
    assert phases == [(steps + i) % 4 for i in range(1, 6)]
    restored = copy.deepcopy((all_params, opt))
    run(opt, all_params, range(20, 25))
    run(restored[1], restored[0], range(20, 25))
    assert same_bits(all_params, restored[0])


def test_a_late_groups_first_cycle_has_the_remaining_calls(name: str):
    quiet = QUIET[name]
    late, alone = Parameter(torch.linspace(-1, 1, 9)), Parameter(torch.linspace(-1, 1, 9))
    opt, _ = started(name, 1, **quiet)
    opt.add_param_group({"params": [late]})
    share = 3 / 4 if name == "Heat" else 1  # Heat divides by L = 4
    other = make(name, [alone], **{**quiet, "inner_steps": 3, "lr": opt.defaults["lr"] * share})
    for step in range(3):
        set_gradients([late], step)
        set_gradients([alone], step)
        opt.step()
        other.step()
        assert torch.allclose(late, alone, atol=1e-6)
    assert opt.outer_step_happened
    assert other.outer_step_happened


def test_a_late_group_draws_its_own_noise():
    first, late = Parameter(torch.zeros(50)), Parameter(torch.zeros(50))
    opt = deeprelax.Heat([first], gamma=1.0, seed=1)
    opt.add_param_group({"params": [late]})
    opt.train()
    assert first.any()
    assert not torch.equal(first, late)


def test_a_late_group_added_in_eval_mode_joins_too(name: str):
    params, late = parameters(), Parameter(torch.ones(3))
    opt = make(name, params)
    run(opt, params, range(2))
    inner = values(params)
    opt.eval()
    opt.add_param_group({"params": [late]})
    opt.train()
    assert same_bits(params, inner)
    assert name == "Heat" or torch.equal(late, torch.ones(3))
    run(opt, [*params, late], range(2, 6))


def test_a_late_group_whose_inner_steps_differ_is_refused(name: str, unchanged: Any):
    opt, params = started(name)
    same = unchanged(opt, params)
    with pytest.raises(ValueError, match=r"inner_steps.*3.*4"):
        opt.add_param_group({"params": [Parameter(torch.ones(1))], "inner_steps": 3})
    assert same()
    run(opt, params, range(1))
    opt.add_param_group({"params": [Parameter(torch.ones(1))]})
    opt.param_groups[1]["inner_steps"] = 7
    same = unchanged(opt, params)
    with pytest.raises(ValueError, match="inner_steps"):
        opt.step()
    assert same()


def test_a_refused_group_leaves_the_optimizer_as_it_was(name: str, unchanged: Any):
    opt, params = started(name, 2)
    same = unchanged(opt, params)
    state = set(opt.state)
    wrong: list[dict[str, Any]] = [
        {"params": [Parameter(torch.ones(2))], "lr": -1.0},
        {"params": [Parameter(torch.ones(2))], "gamma": float("nan")},
        {"params": [Parameter(torch.ones(2, dtype=torch.complex64))]},
        {"params": [params[0]]},
    ]
    for group in wrong:
        with pytest.raises((ValueError, TypeError)):
            opt.add_param_group(group)
        assert same()
        assert set(opt.state) == state
    if name == "EntropySGD":
        opt = deeprelax.EntropySGD([Parameter(torch.ones(2, dtype=torch.bfloat16))], stochastic_rounding=True)
        state, saved = set(opt.state), plain(opt.state_dict())
        with pytest.raises(ValueError, match="bfloat16"):
            opt.add_param_group({"params": [Parameter(torch.ones(2, dtype=torch.float16))]})
        assert set(opt.state) == state
        assert plain(opt.state_dict()) == saved
