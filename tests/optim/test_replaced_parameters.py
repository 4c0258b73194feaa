"""An optimizer whose parameters are no longer the model's says so at its first step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torchs_inputs import KINDS, build

SHARDED = """
import os, sys, warnings
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import deeprelax

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for whole in (True, False):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    params = list(model.parameters())  # somebody holds on to them
    opt = deeprelax.HJ(params, inner_steps=2)
    fully_shard(model if whole else model[1], mesh=mesh)
    model(torch.ones(2, 3)).sum().backward()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opt.step()
        opt.step()
    print(*(str(warning.message) for warning in said))
sys.stdout.flush()
os._exit(0)
"""
SAID = r"(\S+) and every other parameter without a gradient \((\d) of 4\) is in no module.*built before fully_shard\(\)"


def test_an_optimizer_built_before_fully_shard_warns_once(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SHARDED, str(tmp_path / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert re.findall(SAID, done.stdout) == [
        ("param_groups[0]['params'][0]", "4"),
        ("param_groups[0]['params'][2]", "2"),
    ], done.stderr[-2000:]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3, dtype=next(model.parameters()).dtype)).sum().backward()


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


def quiet(opt: Any, steps: int = 2) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(steps):
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
