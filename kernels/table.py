"""The tensors that one launch updates, as one flat index space."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from .abi import COMPUTE_DTYPE


class Table:
    """The parameters of one (group, device, dtype) set.

    Args:
        weights: dense tensors of one dtype on one device; element i of a weight is the i-th in memory.
        indices: position of each over all ``param_groups``: the noise's parameter index.
        starts: global index of each weight's first element in the unsharded parameter; default all 0.

    State buffers have ``length`` elements; weight t owns ``offsets[t] … offsets[t] + sizes[t] - 1`` of them. Every
    offset less the weight's lead (``starts[t]`` modulo a pack of the GPU kernels) is a multiple of 128 bytes of the
    narrowest buffer.
    """

    ALIGN = 64  # elements: 128 bytes of bfloat16, so of every wider type as well
    LARGE, STAGGER = 2**24, 2**14  # bytes

    def __init__(self, weights: list[Tensor], indices: list[int], starts: list[int] | None = None) -> None:
        self.weights = weights
        self.indices = indices
        self.starts = starts or [0] * len(weights)
        self.dtype = weights[0].dtype
        self.device = weights[0].device
        self.compute_dtype = COMPUTE_DTYPE[self.dtype]
        self.sizes = [w.numel() for w in weights]
        pack = 8 if self.dtype.itemsize == 2 else 4
        self.leads = torch.tensor([start % pack for start in self.starts], dtype=torch.int64, device="cpu")
        self.offsets: list[int] = []
        end = 0
        for size, lead in zip(self.sizes, self.leads.tolist()):
            self.offsets.append(end + lead)
            end += -(-(lead + size) // self.ALIGN) * self.ALIGN
        self.length = end
        self.weight_addresses = array("q", [w.data_ptr() for w in weights])
        self._chunks: dict[int, Tensor] = {}
        self._made = 0
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
        """A flat state buffer of zeros in ``dtype`` (default: the type that the kernels compute in).

        Large ones on a CPU begin 16 KiB apart in their memory: where weight, gradient and state of 2^25 float32 lie at
        multiples of 128 MiB from each other, which is how they are allocated, a noisy Entropy-SGD step takes 0.73 ns an
        element, and so staggered 0.56 (two threads, Zen 4).
        """
        dtype = dtype or self.compute_dtype
        self._made += 1
        large = self.device.type == "cpu" and self.length * dtype.itemsize >= self.LARGE
        before = self._made * self.STAGGER // dtype.itemsize if large else 0
        return torch.zeros(before + self.length, dtype=dtype, device=self.device)[before:]


def memory_order(t: Tensor) -> Tensor:
    """The elements of a dense tensor as they lie in memory: a 1-d view that shares its storage, but, as kernels write,
    not its version counter."""
    return t.data.as_strided((t.numel(),), (1,), t.storage_offset())
