"""The promises of torch's own tests of optimizers: kernels follow the reference, in mixed dtypes and while frozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import same_bits, set_gradients, values
from torch import Tensor, nn
from torch.nn import Parameter
from torchs_inputs import KINDS, build, inputs

import deeprelax

pytestmark = pytest.mark.usefixtures("one_thread")
BACKENDS = ("eager", "cpu")


def both(kind: str, params: list[Tensor], options: dict[str, Any]) -> list[Any]:
    """Two optimizers on copies of the parameters: the reference and the kernels."""
    opts = []
    for backend in BACKENDS:
        own = copy.deepcopy(params)
        if kind == "OuterLoop":
            opts.append(deeprelax.OuterLoop(torch.optim.SGD(own, **options), inner_steps=4, backend=backend))
        else:
            opts.append(build(kind, own, **options, backend=backend))
    return opts


def held(opt: Any) -> list[Tensor]:
    """All weights and all state."""
    state = opt.outer.state if isinstance(opt, deeprelax.OuterLoop) else opt.state
    params = [p for group in opt.param_groups for p in group["params"]]
    return values([*params, *(t for p in params if p in state for _, t in sorted(state[p].items()))])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_follow_the_reference_through_freezing_and_thawing(kind: str, dtype: torch.dtype):
    torch.manual_seed(1)
    layers = [nn.Linear(2, 3), nn.Linear(3, 1)]
    start = [*(p for layer in layers for p in layer.parameters()), Parameter(torch.ones(()))]
    start = [Parameter(p.detach().to(dtype)) for p in start]
    for options in inputs(kind):
        if options.get("capturable"):
            continue  # not with the reference on a CPU
        opts = both(kind, start, options)
        for step in range(10):
            for opt in opts:
                params = opt.param_groups[0]["params"]
                set_gradients(params, step)
                for p in params[2:4]:
                    p.requires_grad_(step not in (3, 4))
                    p.grad = p.grad if p.requires_grad else None
                if step == 2:
                    opt.zero_grad()
                opt.step()
            assert same_bits(*map(held, opts)), (options, step)


@pytest.mark.parametrize("kind", KINDS)
def test_one_group_may_mix_all_dtypes(kind: str):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16] * 2
    start = [Parameter(torch.linspace(-1, 1, 6).reshape(2, 3).to(dtype)) for dtype in dtypes]
    for options in inputs(kind):
        if options.get("capturable"):
            continue
        opts = both(kind, start, options)
        for step in range(7):
            for opt in opts:
                set_gradients(opt.param_groups[0]["params"], step)
                opt.step()
        assert same_bits(*map(held, opts)), options
        assert not any(same_bits([p], [q]) for p, q in zip(opts[0].param_groups[0]["params"], start))
