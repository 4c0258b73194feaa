"""The tensors that one launch updates, as one flat index space."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from .abi import COMPUTE_DTYPE


class Table:
    """The parameters of one (group, device, dtype) set.

    Args:
        weights: dense tensors of one dtype on one device; element i of a weight is the i-th in memory.
        indices: position of each over all ``param_groups``: the noise's parameter index.
        starts: for each weight the index of its first element in the memory order of the unsharded parameter; default
            all 0.
        runs: for each weight None if it is one range of the unsharded parameter; else (length, stride): it consists of
            runs of ``length`` elements, whose first elements are ``stride`` apart in the unsharded parameter.

    State buffers have ``length`` elements. The state of run r of weight t begins at element
    ``offsets[t] + r * steps[t]``. Modulo the size of the GPU kernels' packs this equals the run's global index, so that
    the packs of every run consist of whole Philox calls and their state is aligned. Apart from this remainder, every
    weight's state begins at a multiple of 128 bytes of the narrowest buffer.
    """

    ALIGN = 64  # elements: 128 bytes of bfloat16, so of every wider type as well
    LARGE, STAGGER = 2**24, 2**14  # bytes

    def __init__(
        self,
        weights: list[Tensor],
        indices: list[int],
        starts: list[int] | None = None,
        runs: Sequence[tuple[int, int] | None] | None = None,
    ) -> None:
        self.weights = weights
        self.indices = indices
        self.starts = starts or [0] * len(weights)
        self.dtype = weights[0].dtype
        self.device = weights[0].device
        self.compute_dtype = COMPUTE_DTYPE[self.dtype]
        self.sizes = [w.numel() for w in weights]
        pack = 8 if self.dtype.itemsize == 2 else 4
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.strides: list[int] = []
        self.steps: list[int] = []
        end = 0
        for size, start, run in zip(self.sizes, self.starts, runs or [None] * len(weights), strict=True):
            length, stride = run or (size, size)
            step = length + (stride - length) % pack
            lead = start % pack
            self.offsets.append(end + lead)
            self.lengths.append(length)
            self.strides.append(stride)
            self.steps.append(step)
            extent = size // length * step if size else 0
            end += -(-(lead + extent) // self.ALIGN) * self.ALIGN
        self.length = end
        self._pack = pack
        self.weight_addresses = array("q", [w.data_ptr() for w in weights])
        self._chunks: dict[tuple[int, bool], Tensor] = {}
        self._made = 0

    def runs(self, t: int) -> tuple[int, int]:
        """How many runs a weight consists of, and their length."""
        length = self.lengths[t]
        return self.sizes[t] // max(length, 1), length

    def state(self, t: int, flat: Tensor) -> Tensor:
        """A weight's state in a flat buffer: a view with a row for each run."""
        return flat.as_strided(self.runs(t), (self.steps[t], 1), flat.storage_offset() + self.offsets[t])

    def state_strides(self, t: int, strides: Sequence[int]) -> tuple[int, ...]:
        """The strides of a weight's state in a flat buffer, for a weight with these strides."""
        length, step = self.lengths[t], self.steps[t]
        return tuple(s if s < length else s // length * step for s in strides) if step != length else tuple(strides)

    def chunks(self, chunk: int, packs: bool = False) -> Tensor:
        """Chunks of at most ``chunk`` elements, each within one run.

        Args:
            chunk: elements, a multiple of ``ALIGN``.
            packs: begin a run's first chunk where the pack of its first element begins.

        Returns:
            int64 CPU tensor with a row for each: the tensor; the index of the chunk's element 0 in the weight, in the
            unsharded parameter and in the flat buffers; its first element that belongs to the run, and the end.
        """
        if (chunk, packs) not in self._chunks:
            sizes, starts, offsets, lengths, strides, steps = (
                torch.tensor(numbers, dtype=torch.int64, device="cpu")
                for numbers in (self.sizes, self.starts, self.offsets, self.lengths, self.strides, self.steps)
            )
            t, r = _repeated(sizes // lengths.clamp(min=1))
            start, length = starts[t] + r * strides[t], lengths[t]
            lead = start % self._pack if packs else torch.zeros_like(start)
            run, k = _repeated((length + lead + chunk - 1) // chunk)
            t, r, start, length, lead = (column[run] for column in (t, r, start, length, lead))
            before = k * chunk - lead  # of the run's first element
            self._chunks[chunk, packs] = torch.stack(
                (
                    t,
                    r * length + before,
                    start + before,
                    offsets[t] + r * steps[t] + before,
                    torch.where(k == 0, lead, 0),
                    torch.clamp(length - before, max=chunk),
                ),
                dim=1,
            )
        return self._chunks[chunk, packs]

    def new_buffer(self, dtype: torch.dtype | None = None) -> Tensor:
        """A flat state buffer of zeros in ``dtype`` (default: the type that the kernels compute in).

        On a CPU, large ones are staggered by 16 KiB each. Otherwise the weight, gradient and state of 2^25 float32 are
        allocated at multiples of 128 MiB from each other, and a noisy Entropy-SGD step takes 0.73 ns per element
        instead of 0.56 (two threads, Zen 4).
        """
        dtype = dtype or self.compute_dtype
        self._made += 1
        large = self.device.type == "cpu" and self.length * dtype.itemsize >= self.LARGE
        before = self._made * self.STAGGER // dtype.itemsize if large else 0
        return torch.zeros(before + self.length, dtype=dtype, device=self.device)[before:]


def _repeated(counts: Tensor) -> tuple[Tensor, Tensor]:
    """0, 0, … 1, 1, …: each index, repeated as its count says; and for each index its repetitions, 0, 1, …"""
    which = torch.repeat_interleave(counts)
    return which, torch.arange(len(which), device="cpu") - torch.repeat_interleave(counts.cumsum(0) - counts, counts)


def memory_order(t: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order: a 1-d view that shares its storage but, like the kernels' writes,
    not its version counter."""
    return t.data.as_strided((t.numel(),), (1,), t.storage_offset())
