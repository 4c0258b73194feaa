"""The optimizers are torch.optim optimizers: loop, closure, groups, schedulers, hooks, scaler."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from conftest import QUIET, SETTINGS, make, parameters, run, same_bits, set_gradients, started, twins
from torch import nn
from torch.nn import Parameter
from torch.optim import lr_scheduler

import deeprelax


def test_each_is_a_torch_optimizer_with_the_documented_arguments(name: str):
    kind = getattr(deeprelax, name)
    assert issubclass(kind, torch.optim.Optimizer)
    arguments = inspect.signature(kind).parameters
    assert list(arguments)[:2] == ["params", "lr"]
    assert all(a.kind is a.KEYWORD_ONLY and a.default is not a.empty for a in list(arguments.values())[2:])
    assert arguments["inner_steps"].default == ({"HJ": 5, "Heat": 5, "Parle": 25}.get(name, 20))
    assert arguments["scoping"].default == (0.0 if name == "EntropyAdamW" else 1e-3)
    assert set(SETTINGS[name]) <= set(arguments)
    opt = kind(nn.Linear(2, 1).parameters(), 0.25)
    assert opt.param_groups[0]["lr"] == 0.25


def test_the_closure_is_called_once_and_its_loss_returned(name: str):
    p = Parameter(torch.ones(3))
    opt = make(name, [p])
    losses = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = p.square().sum()
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        for _ in range(5):
            assert opt.step(closure) is losses[-1]
    assert len(losses) == 5
    assert opt.phase == 1
    assert opt.step() is None


def test_a_closure_that_fails_changes_nothing(name: str, unchanged: Any):
    opt, params = started(name, 2)
    same = unchanged(opt, params)

    def closure() -> float:
        raise ArithmeticError("no loss")

    with pytest.raises(ArithmeticError):
        opt.step(closure)
    assert same()


def test_groups_have_their_own_values(name: str):
    together = parameters(seed=1) + parameters(seed=2)
    own = {"lr": 0.05, "gamma": 0.2, "momentum": 0.3, "weight_decay": 0.1, "maximize": True, "scoping": 0.2}
    # The noise depends on the position over all groups, and this compares groups with separate optimizers.
    quiet = QUIET[name]
    own = {**own, **quiet} if name == "Heat" else own
    opt = make(name, [{"params": together[:6]}, {"params": together[6:], **own}], **quiet)
    apart = parameters(seed=1) + parameters(seed=2)
    alone = [make(name, apart[:6], **quiet), make(name, apart[6:], **{**quiet, **own})]
    for step in range(9):
        set_gradients(together, step)
        opt.step()
        set_gradients(apart, step)
        for one in alone:
            one.step()
    assert same_bits(together, apart)
    assert [g["gamma"] for g in opt.param_groups] == [one.gamma for one in alone]
    assert opt.gamma == opt.param_groups[0]["gamma"]


def scheduler_of(kind: str, opt: Any) -> Any:
    if kind == "StepLR":
        return lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    if kind == "CosineAnnealingLR":
        return lr_scheduler.CosineAnnealingLR(opt, T_max=10)
    return lr_scheduler.OneCycleLR(opt, max_lr=0.5, total_steps=20)


@pytest.mark.parametrize("kind", ["StepLR", "CosineAnnealingLR", "OneCycleLR"])
def test_lr_schedulers_set_what_the_next_outer_step_uses(name: str, kind: str):
    (opt, params), (manual, by_hand) = twins(name)
    cycled = "betas" if "betas" in SETTINGS[name] else "momentum"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        scheduler = scheduler_of(kind, opt)
        for step in range(12):
            for key in ("lr", cycled):
                manual.param_groups[0][key] = opt.param_groups[0][key]
            run(opt, params, range(step, step + 1))
            run(manual, by_hand, range(step, step + 1))
            scheduler.step()
    assert opt.param_groups[0]["lr"] != SETTINGS[name]["lr"]
    assert (opt.param_groups[0][cycled] != SETTINGS[name][cycled]) == (kind == "OneCycleLR")
    assert same_bits(params, by_hand)


def test_a_tensor_lr_gives_the_numbers_bits_under_a_scheduler(name: str):
    first, second = parameters(), parameters()
    lr = torch.tensor(0.5, dtype=torch.float64)
    one, two = make(name, first, lr=lr), make(name, second, lr=0.5)
    for step in range(9):
        run(one, first, range(step, step + 1))
        run(two, second, range(step, step + 1))
        lr.mul_(0.5)
        two.param_groups[0]["lr"] *= 0.5
    assert same_bits(first, second)
    scheduler = lr_scheduler.ExponentialLR(one, 0.5)
    run(one, first, range(1))
    scheduler.step()
    assert one.param_groups[0]["lr"] is lr


def test_after_eval_an_averaged_model_averages_x(name: str):
    model = nn.Linear(3, 2)
    params = list(model.parameters())
    opt = make(name, params)
    average = torch.optim.swa_utils.AveragedModel(model)
    run(opt, params, range(6))
    opt.eval()
    average.update_parameters(model)
    x = [opt.state_dict()["state"][i]["x"] for i in range(2)]
    assert same_bits(average.module.parameters(), x)
    opt.train()
    assert not same_bits(params, x)
    while not opt.outer_step_happened:
        run(opt, params, range(opt.phase + 6, opt.phase + 7))
    if getattr(deeprelax, name).params_hold_x:
        assert same_bits(params, [opt.state_dict()["state"][i]["x"] for i in range(2)])


def test_hyper_parameters_changed_between_steps_count_from_the_next_step(name: str):
    changes: list[dict[str, Any]] = [{"maximize": True}, {"weight_decay": 0.5}, {"gamma": 0.05}]
    if name == "EntropySGD":
        changes += [{"inner_lr": 0.1}, {"temperature": 1.0}, {"coupling": "implicit"}, {"inner_momentum": 0.0}]
    for change in [{}, *changes]:
        (opt, params), (same, other) = twins(name, 2)
        opt.param_groups[0].update(change)
        assert same_bits(params, other)
        run(opt, params, range(2, 6))  # gamma counts from the next cycle on
        run(same, other, range(2, 6))
        assert same_bits(params, other) == (change == {}), change
