"""The promises of torch's own tests of optimizers: the loss goes the right way, per group and under schedulers."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import same_bits, values
from torch.nn import Parameter
from torchs_inputs import KINDS, Problem, build, inputs

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def database() -> Any:
    """``common_optimizers``, whose import would forbid everybody to set torch's global flags."""
    with mock.patch("torch.backends.disable_global_flags"):
        from torch.testing._internal import common_optimizers
    return common_optimizers


def schedules() -> list[Any]:
    """Lists of schedulers, each made from the optimizer: SGD's, which has the most."""
    return next(info for info in database().optim_db if info.name == "SGD").scheduler_inputs


def train(opt: Any, problem: Problem, schedulers: Any = (), steps: int = 20) -> tuple[float, float]:
    """The loss at x, before and after."""
    before = problem.loss().item()
    for _ in range(steps):
        loss = problem.backward()
        opt.step()
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss.item()) if plateau else scheduler.step()
    with opt.at_x():
        return before, problem.loss().item()


def goes_the_right_way(losses: tuple[float, float], options: dict[str, Any]) -> bool:
    before, after = losses
    return before < after if options.get("maximize") else after < before


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_moves_in_the_right_direction_with_every_setting(kind: str, contiguous: bool):
    for options in inputs(kind):
        problem = Problem(contiguous)
        assert goes_the_right_way(train(build(kind, problem.params, **options), problem), options), options


@pytest.mark.parametrize("kind", KINDS)
def test_groups_move_in_the_right_direction_under_every_scheduler(kind: str):
    for schedule in schedules():
        for options in [{}, {"lr": torch.tensor(1e-3)}]:
            problem = Problem()
            groups = [{"params": [problem.weight]}, {"params": [problem.bias], "lr": 1e-3}]
            opt = build(kind, groups, **options)
            before, after = train(opt, problem, [make(opt) for make in schedule])
            assert after < before


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_without_weight_decay_moves_in_the_right_direction(kind: str):
    for options in inputs(kind):
        if options.get("capturable"):
            continue  # of the optimizer, not of a group
        problem = Problem()
        groups = [{"params": [problem.weight], **options}, {"params": [problem.bias], **options, "weight_decay": 0.0}]
        assert goes_the_right_way(train(build(kind, groups), problem), options), options


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_of_nearly_zero_stops_its_own_group_only(kind: str):
    tiny = {"lr": 1e-28, **({} if kind in ("HJ", "Heat", "EntropyAdamW", "OuterLoop") else {"inner_lr": 1e-28})}
    start = build(kind, Problem().params).param_groups[0]
    own = {name: start[name] for name in tiny}
    problem, still = Problem(), Parameter(torch.ones(2))
    opt = build(kind, [{"params": problem.params, **own}, {"params": [still]}], **tiny)
    still.grad = torch.ones(2)
    before, after = train(opt, problem)
    assert after < before
    with opt.at_x():
        assert same_bits([still], [torch.ones(2)])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_zero_change_nothing(kind: str):
    """What decays or is drawn at random moves without gradients too, and is switched off."""
    for options in inputs(kind):
        if options.get("weight_decay"):
            continue
        quiet = {"Heat": {"gamma": 1e-30}, "HJ": {}, "OuterLoop": {}}.get(kind, {"temperature": 0.0})
        quiet = {**quiet, "weight_decay": 0.0}
        problem = Problem()
        before = values(problem.params)
        opt = build(kind, problem.params, **{**options, **quiet})
        for _ in range(9):
            for p in problem.params:
                p.grad = torch.zeros_like(p)
            opt.step()
        assert same_bits(problem.params, before), options


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_all_frozen_stay_unchanged(kind: str):
    for options in inputs(kind):
        params = [torch.ones(2, 3), torch.ones(3)]
        opt = build(kind, params, **options)
        assert opt.step(lambda: 1.0) == 1.0
        assert same_bits(params, [torch.ones(2, 3), torch.ones(3)])
        assert opt.phase == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_errors_that_all_of_torchs_optimizers_raise_are_raised(kind: str):
    """And one more: of a parameter that is twice in a group torch warns that it will be an error, as it is here."""
    found = 0
    for error in database().get_error_inputs_for_all_optims("cpu", torch.float32):
        given = error.optimizer_error_input
        params = Problem().params if given.params is None else given.params
        if issubclass(error.error_type, Warning):
            with (
                pytest.raises(ValueError, match="share memory"),
                pytest.warns(error.error_type, match=error.error_regex),
            ):
                build(kind, params, **given.kwargs)
        else:
            # torch's other messages come from the base class.
            with pytest.raises(error.error_type, match="lr" if "lr" in given.kwargs else error.error_regex):
                build(kind, params, **given.kwargs)
        found += 1
    assert found
