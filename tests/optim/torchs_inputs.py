"""The settings in which the promises of torch's own tests of optimizers are held to ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from conftest import OPTIMIZERS
from torch import Tensor
from torch.nn import Parameter

import deeprelax

KINDS = [*OPTIMIZERS, "OuterLoop"]
#: What each starts from: defaults, but for a cycle that ends within the 20 steps of torch's tests.
START: dict[str, dict[str, Any]] = {kind: {"inner_steps": 4} for kind in KINDS}
START["EntropySGD"] |= {"gamma": 1.0, "lr": 1.0}
START["HJ"] |= {"gamma": 0.05}  # stable below 1 over the curvature
for _kind in ("HJ", "Heat", "OuterLoop"):
    START[_kind]["lr"] = 1e-2
for _kind in ("EntropySGD", "ElasticSGD", "Parle"):
    START[_kind]["inner_lr"] = 1e-2


def build(kind: str, params: Any, **changes: Any) -> Any:
    """The optimizer with its initial settings and these changes; OuterLoop wraps torch's SGD."""
    options = {**START[kind], **changes}
    if kind == "OuterLoop":
        return deeprelax.OuterLoop(torch.optim.SGD(params, **{k: v for k, v in options.items() if k != "inner_steps"}))
    return getattr(deeprelax, kind)(params, **options)


def inputs(kind: str) -> Iterator[dict[str, Any]]:
    """Changes to the initial settings, as torch's database lists them; each has new tensors."""
    lr = START[kind].get("lr", 1e-3)
    yield {}
    yield {"lr": lr / 2}
    yield {"lr": torch.tensor(lr / 2)}
    yield {"weight_decay": 0.5}
    yield {"momentum": 0.9, "weight_decay": 0.1}
    yield {"momentum": 0.9, "nesterov": True}
    yield {"weight_decay": 0.1, "maximize": True}
    if kind != "OuterLoop":
        yield {"capturable": True}


class Problem:
    """(W i + b)², summed: what torch's tests minimise."""

    def __init__(self, contiguous: bool = True, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw).to(dtype)

        self.input = normal(5)
        self.weight = Parameter(normal(10, 5) if contiguous else normal(10, 5, 2)[..., 0])
        self.bias = Parameter(normal(10) if contiguous else normal(10, 2)[..., 0])
        self.params = [self.weight, self.bias]

    def loss(self) -> Tensor:
        return (self.weight.mv(self.input) + self.bias).square().sum()

    def backward(self) -> Tensor:
        """New gradients, and the loss."""
        for p in self.params:
            p.grad = None
        loss = self.loss()
        loss.backward()
        return loss
