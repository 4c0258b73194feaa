"""What load_state_dict refuses, and what else goes through it: schedulers, hooks, momenta, moved models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import OPTIMIZERS, PLAIN, make, parameters, plain, run, same_bits, started, twins
from torch.nn import Parameter

Unchanged = Callable[[Any, list[Parameter]], Callable[[], bool]]


def saved_by(name: str, params: list[Parameter], steps: int = 2) -> dict[str, Any]:
    opt = make(name, params)
    run(opt, params, range(steps))
    state: dict[str, Any] = copy.deepcopy(opt.state_dict())
    return state


SAME = {"EntropySGD", "Parle"}  # Parle's state is Entropy-SGD's, with more hyper-parameters


@pytest.mark.parametrize(
    ("name", "saver"), [(a, b) for a in OPTIMIZERS for b in [*OPTIMIZERS, "SGD"] if {a, b} != SAME and a != b]
)
def test_another_optimizers_state_is_refused_and_nothing_changes(name: str, saver: str, unchanged: Unchanged):
    if saver == "SGD":
        sgd_params = parameters()
        sgd = torch.optim.SGD(sgd_params, lr=0.1, momentum=0.9)
        run(sgd, sgd_params, range(2))
        saved = sgd.state_dict()
    else:
        saved = saved_by(saver, parameters())
    opt, params = started(name, 3, weights=1)
    same = unchanged(opt, params)
    with pytest.raises(ValueError, match=rf"{name}|expected"):
        opt.load_state_dict(saved)
    assert same()


@pytest.mark.parametrize(
    ("shapes", "groups", "message"),
    [
        ([(4,), (2, 3)], [[(4,), (3, 2)]], r"\(2, 3\).*expected.*\(3, 2\)"),
        ([(4,)], [[(4,)], [(4,)]], "1 parameter group.*has 2"),
        ([(4,)], [[(4,), (4,)]], "1 param.*2 in"),
    ],
)
def test_a_state_of_other_shapes_or_groups_is_refused_with_both(
    name: str, shapes: list[Any], groups: list[list[Any]], message: str, unchanged: Unchanged
):
    saved = saved_by(name, [Parameter(torch.ones(shape)) for shape in shapes])
    params = [[Parameter(torch.zeros(shape)) for shape in group] for group in groups]
    opt = make(name, [{"params": group} for group in params])
    same = unchanged(opt, [p for group in params for p in group])
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    assert same()


def test_a_state_without_the_tensors_of_a_parameter_is_refused(name: str, unchanged: Unchanged):
    params = [Parameter(torch.zeros(4)), Parameter(torch.zeros(4))]
    opt = make(name, params)
    same = unchanged(opt, params)
    saved = saved_by(name, [Parameter(torch.ones(4)), Parameter(torch.ones(4))])
    del saved["state"][1]
    with pytest.raises(ValueError, match="nothing"):
        opt.load_state_dict(saved)
    assert same()


def test_entropy_sgd_refuses_the_state_of_a_model_of_another_dtype():
    opt = make("EntropySGD", [Parameter(torch.ones(4))])
    with pytest.raises(ValueError, match="dtype"):
        opt.load_state_dict(saved_by("EntropySGD", [Parameter(torch.ones(4, dtype=torch.bfloat16))]))


def test_loading_copies_and_keeps_the_optimizers_own_buffers(name: str):
    opt, params = started(name)
    saved = saved_by(name, parameters())
    before = plain(saved)
    pointer = opt.state[params[0]]["x"].data_ptr()
    opt.load_state_dict(state_dict=saved)  # distributed checkpointing passes it by keyword
    assert opt.state[params[0]]["x"].data_ptr() == pointer
    run(opt, params, range(2, 7))
    opt.param_groups[0]["lr"] = 3.0
    assert plain(saved) == before


def test_a_training_state_loaded_in_eval_mode_leaves_eval_mode(name: str):
    (one, first), (two, second) = twins(name)
    run(one, first, range(2))
    run(two, second, range(3))
    two.eval()
    with torch.no_grad():
        for p, q in zip(first, second):
            q.copy_(p)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    two.train()
    run(one, first, range(2, 9))
    run(two, second, range(2, 9))
    assert same_bits(first, second)


def test_the_first_states_x_is_the_parameters_and_follows_them(name: str):
    opt, params = started(name)
    with torch.no_grad():
        params[0].fill_(3)
    assert same_bits([e["x"] for e in opt.state_dict()["state"].values()], params)
    restored = make(name, parameters(seed=5))
    restored.load_state_dict(opt.state_dict())
    assert restored.phase == 0
    assert not restored.outer_step_happened


def test_momentum_switched_on_later_is_saved_and_restored(name: str):
    off = PLAIN[name]
    opt, params = started(name, 5, **off)
    assert "momentum_buffer" not in opt.state[params[0]]
    opt.param_groups[0]["momentum"] = 0.9
    if name == "EntropySGD":
        opt.param_groups[0]["inner_momentum"] = 0.5
    run(opt, params, range(5, 10))
    assert "momentum_buffer" in opt.state_dict()["state"][0]
    restored_params = copy.deepcopy(params)
    restored = make(name, restored_params, **off)
    restored.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(opt, params, range(10, 15))
    run(restored, restored_params, range(10, 15))
    assert same_bits(params, restored_params)


def test_loading_a_state_without_momentum_restarts_the_momentum(name: str):
    off = PLAIN[name]
    params, used = parameters(), parameters()
    plain_opt = make(name, params, **off)
    run(plain_opt, params, range(4))
    saved, weights = copy.deepcopy((plain_opt.state_dict(), params))
    opt = make(name, used)
    run(opt, used, range(6))  # its momentum buffers are full
    with torch.no_grad():
        for p, w in zip(used, weights):
            p.copy_(w)
    opt.load_state_dict(saved)
    for o in (opt, plain_opt):
        o.param_groups[0]["momentum"] = 0.9
    run(opt, used, range(4, 12))
    run(plain_opt, params, range(4, 12))
    assert same_bits(params, used)


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_a_model_moved_or_cast_before_loading_is_adopted(name: str, steps: int):
    opt, params = started(name, steps, dtype=torch.float64)
    restored, restored_params = started(name)
    for p, q in zip(params, restored_params):
        q.data = p.data.clone()  # as model.double() does after the optimizer was built
    restored.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(opt, params, range(steps, steps + 7))
    run(restored, restored_params, range(steps, steps + 7))
    assert same_bits(params, restored_params)


def test_saving_after_a_cast_before_the_first_step_saves_the_cast_state(name: str):
    opt, params = started(name)
    for p in params:
        p.data = p.data.double() / 3
    saved = opt.state_dict()["state"]
    assert {entry["x"].dtype for entry in saved.values()} == {torch.float64}
    assert same_bits([entry["x"] for entry in saved.values()], params)


def test_a_tensor_lr_keeps_its_object_when_a_state_is_loaded(name: str):
    params = parameters()
    lr = torch.tensor(0.5)
    opt = make(name, params, lr=lr)
    saved = saved_by(name, parameters())
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["lr"] is lr
    assert lr.item() == pytest.approx(saved["param_groups"][0]["lr"])
