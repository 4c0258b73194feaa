"""Parameters that were moved, cast or replaced: adopted between cycles, an error that names them within one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import QUIET, make, parameters, plain, run, same_bits, started, values
from torch.nn import Parameter


def cloned(p: Parameter) -> None:
    p.data = p.data.clone()


def widened(p: Parameter) -> None:
    p.grad = None
    p.data = p.data.double()


def channels_last(p: Parameter) -> None:
    if p.dim() == 4:
        p.grad = None
        p.data = p.data.contiguous() if p.data.stride(1) == 1 else p.data.contiguous(memory_format=torch.channels_last)


MOVES = [cloned, widened, channels_last]


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("steps", [0, 4])
def test_parameters_moved_before_the_first_step_or_at_phase_0_are_adopted(name: str, move: Callable, steps: int):
    quiet = QUIET[name]
    moved, stayed = parameters(), parameters()
    if move is widened:
        for p in stayed:
            p.data = p.data.float()
    one, two = make(name, moved, **quiet), make(name, stayed, **quiet)
    run(one, moved, range(steps))
    run(two, stayed, range(steps))
    for p in moved:
        move(p)
    one_state = {id(p) for p in one.param_groups[0]["params"]}
    run(one, moved, range(steps, steps + 4))
    run(two, stayed, range(steps, steps + 4))
    assert {id(p) for p in one.state} == one_state
    for p, q in zip(moved, stayed):
        assert torch.allclose(p.float(), q, atol=1e-5)
    if move is not widened:
        assert same_bits(moved, stayed), "the momentum and the place in the noise go along"


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize("move", [cloned, widened])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_in_mid_cycle_a_moved_parameter_is_an_error_that_names_it(name: str, move: Callable, steps: int):
    params = parameters()
    opt = make(name, [(f"layer{i}.weight", p) for i, p in enumerate(params)])
    run(opt, params, range(steps))
    move(params[1])
    params[1].grad = torch.ones_like(params[1])
    before, clock = values(params), dict(opt.param_groups[0])
    for method in (opt.step, opt.eval):
        with pytest.raises(RuntimeError, match=r"layer1\.weight") as error:
            method()
        assert "layer0" not in str(error.value)
        assert same_bits(params, before)
        assert plain(dict(opt.param_groups[0])) == plain(clock)


def test_a_replaced_parameter_is_adopted_only_between_cycles(name: str):
    opt, params = started(name, 2)
    new = Parameter(params[0].detach().clone())
    opt.param_groups[0]["params"][0] = new
    with pytest.raises(RuntimeError, match="replaced"):
        run(opt, [new, *params[1:]], range(2, 3))
    opt.param_groups[0]["params"][0] = params[0]
    run(opt, params, range(2, 4))
    momentum = opt.state[params[0]]["momentum_buffer"].clone()
    opt.param_groups[0]["params"][0] = new = Parameter(params[0].detach().clone())
    run(opt, [new, *params[1:]], range(4, 5))
    assert torch.equal(opt.state[new]["momentum_buffer"], momentum)
    assert params[0] not in opt.state
    assert len(opt.state_dict()["state"]) == len(params)


def test_after_restart_moved_parameters_are_adopted_in_mid_cycle_too(name: str):
    opt, params = started(name, 2)
    for p in params:
        cloned(p)
    opt.restart()
    run(opt, params, range(2, 6))
    assert opt.outer_step_happened


def test_a_parameter_moved_in_eval_mode_is_an_error(name: str):
    params = parameters()
    opt = make(name, [(f"p{i}", p) for i, p in enumerate(params)])
    run(opt, params, range(2))
    opt.eval()
    cloned(params[2])
    with pytest.raises(RuntimeError, match="p2"):
        opt.train()


@pytest.mark.usefixtures("addresses")
def test_other_strides_at_the_same_address_are_noticed(name: str):
    quiet = QUIET[name]
    p = Parameter(torch.arange(6.0).view(2, 3))
    opt = make(name, [p], **quiet)
    p.data = p.data.as_strided((2, 3), (1, 2))  # as channels_last and back does when the allocator reuses a block
    q = Parameter(p.detach().clone())
    run(opt, [p], range(4))
    run(make(name, [q], **quiet), [q], range(4))
    assert same_bits([p], [q])


def test_state_belongs_to_a_parameter_and_not_to_its_place(name: str):
    first, second = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    opt = make(name, [first, second])
    for _ in range(4):
        first.grad, second.grad = torch.ones(3), -torch.ones(3)
        opt.step()
    held = {p: opt.state[p]["momentum_buffer"].clone() for p in (first, second)}
    opt.param_groups[0]["params"] = [second, first]
    opt.step()
    for p, momentum in held.items():
        assert torch.equal(opt.state[p]["momentum_buffer"], momentum)
    opt.restart()
    opt.param_groups[0]["params"] = [first]
    opt.step()
    assert torch.equal(opt.state[first]["momentum_buffer"], held[first])
    assert list(opt.state_dict()["state"]) == [0]


@pytest.mark.parametrize(("before", "after"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_model_cast_between_cycles_has_the_state_of_its_new_dtype(name: str, before: torch.dtype, after: torch.dtype):
    opt, params = started(name, 4, dtype=before)
    for p in params:
        p.grad = None
        p.data = p.data.to(after)
    run(opt, params, range(4, 6))
    fresh = make(name, parameters(after))
    fresh.load_state_dict(copy.deepcopy(opt.state_dict()))
    other = list(fresh.param_groups[0]["params"])
    with torch.no_grad():
        for p, q in zip(other, params):
            p.copy_(q)
    run(opt, params, range(6, 11))
    run(fresh, other, range(6, 11))
    assert same_bits(other, params)
