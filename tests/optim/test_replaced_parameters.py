"""An optimizer whose parameters are no longer the model's says so at its first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torchs_inputs import KINDS, build


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3, dtype=next(model.parameters()).dtype)).sum().backward()


def quiet(opt: Any, steps: int = 2) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(steps):
            opt.step()


@pytest.mark.parametrize(("whole", "place", "missing"), [(True, 0, 4), (False, 2, 2)])
def test_an_optimizer_built_before_fully_shard_warns_once(
    whole: bool, place: int, missing: int, mesh: DeviceMesh
) -> None:
    model = network()
    opt = build("HJ", params := list(model.parameters()))  # held on to
    fully_shard(model if whole else model[1], mesh=mesh)
    backward(model)
    with pytest.warns(
        UserWarning, match=rf"\['params'\]\[{place}\] .* \({missing} of 4\) is .*built before fully_shard"
    ):
        opt.step()
    quiet(opt)
    assert len(params) == 4


def converted(model: nn.Module) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("replace", [converted, assigned])
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_built_before_a_conversion_warns(kind: str, replace: Callable[[nn.Module], None]) -> None:
    model = network()
    opt = build(kind, model.parameters())
    replace(model)
    backward(model)
    with pytest.warns(UserWarning, match=r"is in no module.*Build it after that, from model.parameters\(\)"):
        opt.step()


@pytest.mark.parametrize("kind", KINDS)
def test_unused_frozen_and_bare_parameters_do_not_warn(kind: str) -> None:
    trained = network()
    backward(trained)  # the same shapes as all that follow, with gradients
    model = network()
    opt = build(kind, model.parameters())
    quiet(opt)  # no gradient yet
    backward(model)
    model[0].weight.grad = None
    quiet(opt)

    frozen = network()
    frozen[0].requires_grad_(False)
    opt = build(kind, frozen.parameters())
    backward(frozen)
    quiet(opt)

    bare = [Parameter(torch.ones(7))]
    quiet(build(kind, bare))
    held = network()
    opt = build(kind, [*held.parameters(), Parameter(torch.ones(7))])
    backward(held)
    quiet(opt)


def test_model_to_keeps_the_parameters_and_does_not_warn() -> None:
    model = network()
    opt = build("HJ", model.parameters())
    model.to(torch.float64)
    backward(model)
    quiet(opt)
    assert opt.phase == 2


def test_modules_are_not_searched_once_a_step_had_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    opt = build("HJ", model.parameters())
    backward(model)
    opt.step()
    model[0].weight.grad = None
    monkeypatch.setattr("gc.get_objects", lambda: pytest.fail("looked for modules"))
    opt.step()
    opt.zero_grad()
    opt.step()
