"""The promises of torch's own tests of optimizers: saved states, hooks and copies, with every setting."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import plain, same_bits
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torchs_inputs import KINDS, Problem, build, inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def steps(opt: Any, problem: Problem, count: int) -> None:
    for _ in range(count):
        problem.backward()
        opt.step()


def given(problem: Problem, named: bool) -> Any:
    return list(zip(("weight", "bias"), problem.params)) if named else problem.params


def without_names(state: dict[str, Any]) -> Any:
    groups = [{k: v for k, v in group.items() if k != "param_names"} for group in state["param_groups"]]
    found = {**state, "param_groups": groups}
    if "outer" in found:
        found["outer"] = without_names(found["outer"])
    return plain(found)


@pytest.mark.parametrize("named", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_two_with_one_saved_state_stay_equal_with_names_or_without(kind: str, named: tuple[bool, bool]):
    for options in inputs(kind):
        first, second = Problem(), Problem()
        one = build(kind, given(first, named[0]), **options)
        steps(one, first, 10)
        with torch.no_grad():
            for p, q in zip(first.params, second.params):
                q.copy_(p)
        two = build(kind, given(second, named[1]), **copy.deepcopy(options))
        saved = copy.deepcopy(one.state_dict())
        before = plain(saved)
        two.load_state_dict(saved)
        assert plain(saved) == before
        for _ in range(10):
            steps(one, first, 1)
            steps(two, second, 1)
            assert same_bits(first.params, second.params)
        assert without_names(one.state_dict()) == without_names(two.state_dict())
        if any(named):
            assert two.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_around_saving_may_add_anything_to_the_state(kind: str):
    def put(opt: Any) -> None:
        opt.state["test"] = 1

    def take(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        state["found"] = state["state"].pop("test", None)
        return state

    for before, after, expected in ((put, None, {}), (None, take, {"found": None}), (put, take, {"found": 1})):
        problem = Problem()
        opt = build(kind, problem.params)
        steps(opt, problem, 1)
        if before:
            opt.register_state_dict_pre_hook(before)
        if after:
            opt.register_state_dict_post_hook(after)
        saved = opt.state_dict()
        assert {name: saved[name] for name in expected} == expected
        assert saved["state"].get("test") == (1 if before and not after else None)
        steps(opt, problem, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_state_under_a_key_that_is_not_a_parameter_is_saved_and_loaded(kind: str):
    first, second = Problem(), Problem()
    one, two = build(kind, first.params), build(kind, second.params)
    one.state["note"] = {"of": "somebody else"}
    steps(one, first, 2)
    two.load_state_dict(one.state_dict())
    assert two.state["note"] == {"of": "somebody else"}
    for copied in (copy.deepcopy(one), two):
        assert copied.state["note"] == {"of": "somebody else"}


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_before_loading_run_in_order_and_those_after_see_it_loaded(kind: str):
    problem, calls = Problem(), []
    opt = build(kind, problem.params)
    saved = opt.state_dict()

    def lower(optimizer: Any, state: dict[str, Any]) -> None:
        state["param_groups"][0]["lr"] = 0.002

    def replace(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = copy.deepcopy(state)
        state["param_groups"][0]["lr"] = 0.003
        return state

    opt.register_load_state_dict_post_hook(lambda optimizer: calls.append(optimizer.param_groups[0]["lr"]))
    opt.register_load_state_dict_pre_hook(lower)
    opt.load_state_dict(saved)
    opt.register_load_state_dict_pre_hook(replace, prepend=True)
    opt.load_state_dict(saved)
    last = opt.register_load_state_dict_pre_hook(replace)
    opt.load_state_dict(saved)
    last.remove()
    opt.load_state_dict(saved)
    assert calls == [0.002, 0.002, 0.003, 0.002]


@pytest.mark.parametrize("kind", KINDS)
def test_global_hooks_run_outside_an_optimizers_own_until_removed(kind: str):
    problem, calls = Problem(), []
    opt, sgd = build(kind, problem.params), torch.optim.SGD(Problem().params)

    def note(number: int) -> Any:
        return lambda optimizer, args, kwargs: calls.append((number, optimizer)) if optimizer in (opt, sgd) else None

    handles = [register_optimizer_step_pre_hook(note(0)), register_optimizer_step_post_hook(note(3))]
    for each in (opt, sgd):
        handles += [each.register_step_pre_hook(note(1)), each.register_step_post_hook(note(2))]
    try:
        for each in (opt, sgd, opt):
            problem.backward()
            each.step()
        assert calls == [(number, each) for each in (opt, sgd, opt) for number in range(4)]
    finally:
        for handle in handles:
            handle.remove()
    opt.step()
    assert len(calls) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_deep_copy_has_every_public_attribute(kind: str):
    for options in inputs(kind):
        problem = Problem()
        opt = build(kind, problem.params, **options)
        steps(opt, problem, 3)
        copied = copy.deepcopy(opt)
        assert {k for k in vars(opt) if k[0] != "_"} == {k for k in vars(copied) if k[0] != "_"}
