"""torch.distributed.checkpoint and ZeroRedundancyOptimizer save and restore a whole run."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make, run, same_bits, values
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2), nn.LayerNorm(2))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_distributed_checkpoint_continues_in_a_fresh_optimizer(name: str, flatten: bool, steps: int, frozen: bool):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    models, opts = [network(), network(seed=1)], []
    for model in models:
        model[2].weight.requires_grad_(not frozen)
        rest = list(model[1:].parameters())
        opts.append(make(name, [{"params": model[0].parameters()}, {"params": rest, "lr": 0.1}]))
    params, others = ([p for p in model.parameters() if p.requires_grad] for model in models)
    run(opts[0], params, range(steps))
    saved = get_optimizer_state_dict(models[0], opts[0], options=options)
    models[1].load_state_dict(models[0].state_dict())
    set_optimizer_state_dict(models[1], opts[1], saved, options=options)
    assert opts[1].phase == opts[0].phase
    run(opts[0], params, range(steps, steps + 9))
    run(opts[1], others, range(steps, steps + 9))
    assert same_bits(params, others)


ZERO = """
import copy, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from conftest import SETTINGS, parameters, run, values
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import Parameter
import deeprelax

name, store, out, kind = sys.argv[2:6]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


def make(params):
    if kind == "sgd":
        return ZeroRedundancyOptimizer(params, torch.optim.SGD, lr=0.1, momentum=0.9)
    return ZeroRedundancyOptimizer(params, getattr(deeprelax, name), **SETTINGS[name])


def fresh():
    return [Parameter(torch.linspace(-1, 1, 9)), Parameter(torch.ones(3, 4))]


params, others = fresh(), fresh()
opt, other = make(params), make(others)
run(opt, params, range(6))
run(other, others, range(3))
opt.consolidate_state_dict(0)
saved = copy.deepcopy(opt.state_dict())  # it loads without a copy
other.load_state_dict(saved)
for p, q in zip(params, others):
    q.data.copy_(p.data)
run(opt, params, range(6, 11))
run(other, others, range(6, 11))
torch.save((values(params), values(others)), out)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["ours", "sgd"])
def test_zero_redundancy_optimizer_loads_and_continues(name: str, kind: str, tmp_path: Path):
    if kind == "sgd" and name != "HJ":
        pytest.skip("once is enough for the yardstick")
    folder = str(Path(__file__).parent.parent)
    command = [sys.executable, "-W", "ignore", "-c", ZERO, folder, name, str(tmp_path / "store")]
    done = subprocess.run([*command, str(tmp_path / "out.pt"), kind], capture_output=True, text=True, timeout=120)
    assert (tmp_path / "out.pt").exists(), done.stderr[-3000:]
    params, others = torch.load(tmp_path / "out.pt")
    assert same_bits(params, others)


def test_an_ordinary_run_under_a_checkpoint_every_step_never_warns(name: str):
    model: Any = network()
    params = list(model.parameters())
    opt = make(name, params)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in range(9):
            run(opt, params, range(step, step + 1))
            before = values(params)
            opt.load_state_dict(opt.state_dict())
            assert same_bits(params, before)
