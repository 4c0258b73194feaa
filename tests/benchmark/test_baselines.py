"""The step under torch.compile runs compiled, all of it: dynamo's fallback to eager mode would be measured instead."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from deeprelax.benchmark.baselines import CompiledEntropySGD, EagerEntropySGD
from deeprelax.benchmark.shapes import Shapes, resnet50_shapes

SMALL: Shapes = tuple(s for s in resnet50_shapes() if torch.Size(s).numel() < 20_000)

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def parameters(shapes: Shapes) -> list[Tensor]:
    torch.manual_seed(0)
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def test_tensors_of_all_shapes_share_one_graph() -> None:
    graphs = torch._dynamo.testing.CompileCounter()
    opt = CompiledEntropySGD(parameters(SMALL), graphs)
    # A limit below the number of shapes, whatever the libraries that other tests import have set it to.
    with torch._dynamo.config.patch(recompile_limit=len(set(SMALL)) - 1):
        opt.step()
        opt.step()
    assert graphs.frame_count == 1


def test_a_fallback_to_eager_mode_is_an_error() -> None:
    graphs = torch._dynamo.testing.CompileCounter()
    opt = CompiledEntropySGD(parameters(((5,), (1,))), graphs)  # a size of 1 takes another graph
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit, match="fail_on_recompile_limit_hit"),
    ):
        opt.step()


def test_the_compiled_baseline_makes_the_eager_step() -> None:
    shapes = ((3, 2, 2), (7,))
    compiled, plain = (cls(parameters(shapes)) for cls in (lambda p: CompiledEntropySGD(p, "eager"), EagerEntropySGD))
    for opt in (compiled, plain):
        torch.manual_seed(1)
        opt.step()
        opt.step()
    for mine, theirs in ((compiled.params, plain.params), (compiled.z, plain.z), (compiled.x, plain.x)):
        assert all(map(torch.equal, mine, theirs))
    assert not torch.equal(compiled.params[0], compiled.x[0])
