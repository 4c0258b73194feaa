"""The promises of torch's own tests of optimizers: kernels follow the reference, in mixed dtypes and while frozen."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import same_bits, set_gradients, values
from torch import Tensor
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


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_follow_the_reference_in_mixed_dtypes_and_while_frozen(kind: str):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    shapes = [(3, 2), (3,), (1, 3), (1,), ()]
    start = [Parameter(torch.linspace(-1, 1, math.prod(s)).reshape(s).to(dtype)) for dtype in dtypes for s in shapes]
    for options in inputs(kind):
        if options.get("capturable"):
            continue  # not with the reference on a CPU
        opts = both(kind, start, options)
        for step in range(10):
            for opt in opts:
                params = opt.param_groups[0]["params"]
                set_gradients(params, step)
                for p in params[::3]:
                    p.requires_grad_(step not in (3, 4))
                    p.grad = p.grad if p.requires_grad else None
                if step == 2:
                    opt.zero_grad()
                opt.step()
            assert same_bits(*map(held, opts)), (options, step)
        wide = [(p, q) for p, q in zip(opts[0].param_groups[0]["params"], start) if q.dtype == torch.float64]
        assert not any(same_bits([p], [q]) for p, q in wide), options
