"""Groups are edited as torch allows; frozen parameters have no state; a run may end in mid-cycle."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import QUIET, SETTINGS, make, parameters, run, same_bits, set_gradients, started, twins
from torch.nn import Parameter

from deeprelax import HJ
from deeprelax.optim.flat_storage import refuse_overlaps

# Groups.


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_an_appended_group_moves_as_one_that_was_added(name: str, steps: int):
    params, others = parameters(), parameters()
    late, late_other = Parameter(torch.linspace(-1, 1, 9)), Parameter(torch.linspace(-1, 1, 9))
    opt, other = make(name, params), make(name, others)
    run(opt, params, range(steps))
    run(other, others, range(steps))
    opt.param_groups.append({"params": [late], "lr": 0.7})
    other.add_param_group({"params": [late_other], "lr": 0.7})
    run(opt, [*params, late], range(steps, steps + 9))
    run(other, [*others, late_other], range(steps, steps + 9))
    assert same_bits([*params, late], [*others, late_other])
    assert opt.param_groups[1]["gamma"] == other.param_groups[1]["gamma"]


def test_a_popped_group_stays_unchanged_and_the_others_continue(name: str):
    params, extra = parameters(), Parameter(torch.ones(4))
    opt = make(name, [{"params": params}, {"params": [extra], "lr": 0.3}], **QUIET[name])
    other, others = started(name, **QUIET[name])
    for step in range(9):
        if step == 5:
            opt.param_groups.pop()
            before = extra.detach().clone()
        set_gradients([*params, extra], step)
        set_gradients(others, step)
        opt.step()
        other.step()
    assert torch.equal(extra, before)
    assert same_bits(params, others)
    assert extra not in opt.state


def test_groups_cleared_and_added_again_train(name: str):
    (opt, params), (other, others) = twins(name, 4)
    opt.param_groups.clear()
    opt.add_param_group({"params": params, "gamma": other.param_groups[0]["gamma"]})
    assert opt.phase == 0
    other.restart()
    opt.param_groups[0]["step"] = other.param_groups[0]["step"]
    run(opt, params, range(4, 11))
    run(other, others, range(4, 11))
    assert same_bits(params, others)  # momenta belong to the parameters, as torch's do


def test_parameters_added_to_a_group_train_and_removed_ones_do_not(name: str):
    params, late = parameters(), Parameter(torch.ones(5))
    opt = make(name, params)
    run(opt, params, range(2))
    opt.param_groups[0]["params"].append(late)
    run(opt, [*params, late], range(2, 6))
    assert set(opt.state[late]) == set(opt.state[params[0]])
    opt.param_groups[0]["params"].remove(params[0])
    rested = params[0].detach().clone()
    run(opt, [*params[1:], late], range(6, 12))
    assert torch.equal(params[0], rested)
    assert not torch.equal(late, torch.ones(5))


# Frozen parameters.


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_parameter_that_is_frozen_is_not_touched_again(name: str, steps: int):
    opt, params = started(name, steps)
    params[1].requires_grad_(False)
    before = params[1].detach().clone()
    for step in range(steps, steps + 9):
        set_gradients(params, step)  # even with a gradient left over
        opt.step()
        assert torch.equal(params[1], before)
        opt.eval()
        opt.train()
    assert torch.equal(params[1], before)
    assert params[1] not in opt.state


@pytest.mark.parametrize("steps", [2, 4])
def test_a_thawed_parameter_joins_as_a_late_group_does(name: str, steps: int):
    changes = {**QUIET[name], **({"warm_start": False} if name == "HJ" else {})}
    params, others, late = parameters(), parameters(), Parameter(torch.linspace(-1, 1, 9))
    frozen = Parameter(torch.linspace(-1, 1, 9), requires_grad=False)
    opt, other = make(name, [*params, frozen], **changes), make(name, others, **changes)
    run(opt, params, range(steps))
    run(other, others, range(steps))
    frozen.requires_grad_(True)
    other.add_param_group({"params": [late], "gamma": other.param_groups[0]["gamma"]})
    run(opt, [*params, frozen], range(steps, steps + 9))
    run(other, [*others, late], range(steps, steps + 9))
    assert torch.allclose(frozen, late, atol=1e-6)
    assert not torch.equal(frozen, torch.linspace(-1, 1, 9))


def test_a_saved_state_that_lacks_frozen_parameters_loads(name: str):
    params, others = parameters(), parameters()
    for ps in (params, others):
        ps[2].requires_grad_(False)
    opt, other = make(name, params), make(name, others)
    trained = [p for p in params if p.requires_grad]
    run(opt, trained, range(6))
    other.load_state_dict(opt.state_dict())
    for p, q in zip(params, others):
        q.data.copy_(p.data)
    run(opt, trained, range(6, 12))
    run(other, [p for p in others if p.requires_grad], range(6, 12))
    assert same_bits(params, others)


# A run that ends in mid-cycle.


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("taken", [1, 2, 3])
def test_finish_makes_the_outer_update_of_what_has_been_taken(name: str, taken: int, capturable: bool):
    """A cycle of L that ends after k gradients is a cycle of L = k."""
    params, others = parameters(torch.float64), parameters(torch.float64)
    opt = make(name, params, capturable=capturable)
    other = make(name, others, inner_steps=taken)
    run(opt, params, range(taken))
    run(other, others, range(taken))
    assert opt.phase == taken
    assert opt.finish()
    assert opt.outer_step_happened
    assert (opt.phase, opt.gamma) == (0, other.gamma)
    with opt.at_x(), other.at_x():
        assert all(torch.allclose(p, q, rtol=1e-12, atol=1e-12) for p, q in zip(params, others))
    assert not opt.finish()
    run(opt, params, range(taken, taken + 4))
    assert opt.outer_step_happened
    opt.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        opt.finish()


# Odds and ends of construction.


@pytest.mark.usefixtures("one_thread")
def test_many_interleaved_columns_are_checked_in_milliseconds():
    matrix = torch.zeros(256, 256)
    columns = [(str(i), matrix[:, i]) for i in range(256)]
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        refuse_overlaps(columns)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.25  # pair by pair it took seconds
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['params'\]\[(3|256)\].*share memory"):
        HJ([*(Parameter(matrix[:, i]) for i in range(256)), Parameter(matrix[:, 3])])


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_refused_by_name(name: str, layout: torch.layout):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(TypeError, match=r"embedding is a nested tensor"):
        make(name, [("embedding", Parameter(nested))])


def test_repr_shows_hyper_parameters_and_not_the_clock(name: str):
    text = repr(make(name, parameters()))
    assert all(f"{key}: {value}" in text for key, value in SETTINGS[name].items() if key != "seed")
    assert not any(f" {key}:" in text for key in ("phase", "step", "fresh", "training", "seed", "cycle_steps"))
