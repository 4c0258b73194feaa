"""What a backend is asked to do: one dataclass per update rule, and the table of tensors that it is done to.

Every scalar is derived here, in float64 and in the order written, and rounded once by the kernel to the type that it
computes in (float64 for float64 weights, float32 for all others). The names are those of the update rules in
``eager.py``, ``csrc/rules.h`` and ``triton_rules.py``.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .noise import Stream

COMPUTE_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


@dataclass(frozen=True, slots=True)
class Outer:
    """The outer step on a force f. Without momentum: x <- x - step f. With it, as ``torch.optim.SGD`` on
    d = scale f: m <- momentum m + d; d <- d + momentum m (nesterov) or m; x <- x - lr d."""

    step: float
    scale: float
    lr: float
    momentum: float
    nesterov: bool


@dataclass(frozen=True, slots=True)
class EntropySGDCall:
    """One gradient of Entropy-SGD (section 6.1). ``first`` and ``last`` call of the cycle may coincide (L = 1)."""

    rule: ClassVar[str] = "entropy_sgd"
    buffers: ClassVar[tuple[str, ...]] = ("x", "y", "z", "momentum_buffer", "inner_momentum_buffer")
    first: bool
    last: bool
    inner_lr: float  # eta'
    inv_gamma: float  # 1/gamma
    pull: float  # eta'/gamma, implicit coupling only
    denominator: float  # 1 + eta'/gamma, implicit coupling only
    alpha: float
    one_minus_alpha: float
    noise_scale: float  # float32 sqrt of the float32 product eta' beta^-1; 0: no noise is drawn
    weight_decay: float
    maximize: bool
    implicit: bool
    inner_momentum: float
    inner_nesterov: bool
    fresh_velocity: bool  # the inner velocity starts anew in this call
    stochastic_rounding: bool
    outer: Outer
    stream: Stream
    inv_scale: float = 1.0  # the gradient is multiplied by it first: 1 / the loss's scale, a float32


@dataclass(frozen=True, slots=True)
class HJCall:
    """One gradient of HJ (section 6.2)."""

    rule: ClassVar[str] = "hj"
    buffers: ClassVar[tuple[str, ...]] = ("x", "p", "momentum_buffer")
    first: bool
    last: bool
    warm_start: bool  # the first call sets p <- g, undamped
    gamma: float
    alpha: float
    one_minus_alpha: float
    weight_decay: float
    maximize: bool
    read_param: bool  # the parameter is not known to be x - gamma p: weight decay reads it
    outer: Outer
    inv_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class HeatCall:
    """One gradient of Heat (section 6.3, eq. 26)."""

    rule: ClassVar[str] = "heat"
    buffers: ClassVar[tuple[str, ...]] = ("x", "s", "momentum_buffer")
    first: bool
    last: bool
    take_param: bool  # x is what the parameter holds (the very first gradient), not what the state holds
    noise_scale: float  # float32 sqrt of the gamma with which the next point is drawn
    weight_decay: float
    maximize: bool
    outer: Outer
    stream: Stream  # of the *next* gradient
    inv_scale: float = 1.0


Call = EntropySGDCall | HJCall | HeatCall


class Table:
    """The parameters of one (group, device, dtype) set as one flat index space.

    Args:
        weights: dense tensors of one dtype on one device; element i of a weight is the i-th in memory.
        indices: position of each over all ``param_groups``: the noise's parameter index.
        names: what error messages call them.
        starts: global index of each weight's first element in the unsharded parameter; default all 0.

    State buffers have ``length`` elements; weight t owns ``offsets[t] … offsets[t] + sizes[t] - 1`` of them, every
    offset a multiple of 128 bytes of the narrowest buffer.
    """

    ALIGN = 64  # elements: 128 bytes of bfloat16, so of every wider type as well

    def __init__(
        self,
        weights: list[Tensor],
        indices: list[int],
        names: list[str] | None = None,
        starts: list[int] | None = None,
    ) -> None:
        self.weights = weights
        self.indices = indices
        self.names = names or [f"parameter {i}" for i in indices]
        self.starts = starts or [0] * len(weights)
        self.dtype = weights[0].dtype
        self.device = weights[0].device
        self.compute_dtype = COMPUTE_DTYPE[self.dtype]
        self.sizes = [w.numel() for w in weights]
        self.offsets: list[int] = []
        end = 0
        for size in self.sizes:
            self.offsets.append(end)
            end += -(-size // self.ALIGN) * self.ALIGN
        self.length = end
        self.weight_addresses = array("q", [w.data_ptr() for w in weights])
        self._chunks: dict[int, Tensor] = {}
        self.meta = torch.tensor(
            list(zip(self.sizes, self.offsets, self.indices, self.starts, strict=True)), dtype=torch.int64, device="cpu"
        ).reshape(-1, 4)

    def chunks(self, chunk: int) -> Tensor:
        """Work of at most ``chunk`` elements each: int64 CPU tensor of rows (tensor, start, length)."""
        if chunk not in self._chunks:
            sizes = self.meta[:, 0]
            counts = (sizes + chunk - 1) // chunk
            tensor = torch.repeat_interleave(counts)
            before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)  # chunks of the tensors before
            start = chunk * (torch.arange(len(tensor), device="cpu") - before)
            length = torch.clamp(sizes[tensor] - start, max=chunk)
            self._chunks[chunk] = torch.stack((tensor, start, length), dim=1)
        return self._chunks[chunk]

    def new_buffer(self, dtype: torch.dtype | None = None) -> Tensor:
        """A flat state buffer of zeros in ``dtype`` (default: the type that the kernels compute in)."""
        return torch.zeros(self.length, dtype=dtype or self.compute_dtype, device=self.device)


def memory_order(t: Tensor) -> Tensor:
    """The elements of a dense tensor as they lie in memory: a 1-d view that shares its storage."""
    return t.detach().as_strided((t.numel(),), (1,), t.storage_offset())
