"""torch.distributed.checkpoint and ZeroRedundancyOptimizer save and restore a whole run."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from conftest import SETTINGS, make, parameters, run, same_bits, values
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import Parameter

import deeprelax


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


@pytest.mark.usefixtures("mesh")
def test_zero_redundancy_optimizer_loads_and_continues(name: str):
    def sharded(params: list[Parameter]) -> ZeroRedundancyOptimizer:
        return ZeroRedundancyOptimizer(params, getattr(deeprelax, name), **SETTINGS[name])

    params, others = parameters()[:2], parameters(seed=1)[:2]
    opt, other = sharded(params), sharded(others)
    run(opt, params, range(6))
    run(other, others, range(3))
    opt.consolidate_state_dict(0)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))  # it loads without a copy
    for p, q in zip(params, others):
        q.data.copy_(p.data)
    run(opt, params, range(6, 11))
    run(other, others, range(6, 11))
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
