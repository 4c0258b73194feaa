"""The memory of tensors: layouts, storages, overlaps, and moving parameters into one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deeprelax.kernels import Table
from deeprelax.kernels.abi import COMPUTE_DTYPE
from deeprelax.optim.sharding import part, place_of_part


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of that shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(t: Tensor) -> bool:
    """Whether the elements fill a range of memory without gaps or repeats (contiguous, channels_last, transposed)."""
    if t.is_contiguous() or t.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def own_storage(flat: Tensor, start: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """A tensor over part of ``flat`` with its own storage.

    Code that saves models or state identifies tensors by their storage: safetensors would refuse plain views of one
    buffer, and pickle would save the whole buffer for each.
    """
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=flat.dtype, device=flat.device)
    view: Tensor = torch.utils.dlpack.from_dlpack(
        flat.as_strided(tuple(shape), tuple(strides), flat.storage_offset() + start)
    )
    return view


def memory_interval(t: Tensor) -> tuple[int, int]:
    """First and one past the last byte that ``t`` touches; (0, 0) if it has no elements."""
    if t.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
    begin = t.data_ptr()
    return begin, begin + (last + 1) * t.element_size()


def touched(t: Tensor, unit: int) -> Tensor:
    """Addresses of all pieces of ``unit`` bytes of ``t``: for the rare parameters whose intervals overlap."""
    steps = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(t.shape, t.stride()):
        steps = steps.unsqueeze(-1) + torch.arange(size, device="cpu") * stride * t.element_size()
    pieces = steps.unsqueeze(-1) + torch.arange(0, t.element_size(), unit, device="cpu")
    return pieces.reshape(-1) + t.data_ptr()


def repeats(t: Tensor) -> bool:
    """Whether two elements share a memory location."""
    reach = 0  # of the dimensions with smaller strides
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape) if size > 1):
        if stride <= reach:  # dimensions interleave, or an element is repeated
            return bool((touched(t, t.element_size()).sort().values.diff() == 0).any())
        reach += (size - 1) * stride
    return False


def refuse_overlaps(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError, with both names, if two parameters share memory, or one has an element twice."""
    parts = ((name, part(t)) for name, t in named)
    entries = [(*memory_interval(t), str(t.device), name, t) for name, t in parts if t.numel()]
    entries.sort(key=lambda e: (e[2], e[0]))
    for _, _, _, name, t in entries:
        if repeats(t):
            raise ValueError(
                f"{name} has several elements at one memory location (shape {tuple(t.shape)}, strides {t.stride()}); "
                "an expanded tensor cannot be updated in place: clone it first"
            )
    # Tensors whose intervals overlap, directly or through others, are compared together.
    cluster: list[tuple[str, Tensor]] = []
    reach, where = 0, ""
    for begin, end, device, name, t in entries:
        if device != where or begin >= reach:
            _refuse_shared(cluster)
            cluster, reach, where = [], 0, device
        cluster.append((name, t))
        reach = max(reach, end)
    _refuse_shared(cluster)


def _refuse_shared(cluster: Sequence[tuple[str, Tensor]]) -> None:
    """ValueError, with both names, if two of the tensors share a byte; one sort of all their elements' addresses."""
    if len(cluster) < 2:
        return
    unit = min(t.element_size() for _, t in cluster)
    pieces = [touched(t, unit) for _, t in cluster]
    owners = torch.repeat_interleave(torch.tensor([len(p) for p in pieces], device="cpu"))
    addresses, order = torch.cat(pieces).sort(stable=True)
    again = (addresses.diff() == 0).nonzero()
    if len(again):
        first, second = owners[order][again[0, 0] : again[0, 0] + 2].tolist()
        raise ValueError(
            f"{cluster[first][0]} and {cluster[second][0]} share memory, and each would undo the other's update; "
            "pass one of them, or pass clones"
        )


def owns_its_storage(p: Tensor) -> bool:
    """Whether ``p`` may be moved into a flat buffer: dense, not empty, alone in its storage."""
    storage = p.untyped_storage()
    return (
        p.numel() > 0
        and is_dense(p)
        and type(p.data) is Tensor
        and storage.nbytes() == p.numel() * p.element_size()
        and storage.resizable()  # not NumPy's, DLPack's or a file's
        and not storage.is_shared()
        and torch._C._storage_Use_Count(storage._cdata)
        == 2  # p and this very handle: no alias that would be left behind
    )


def move_into_flat_buffer(params: Sequence[Tensor]) -> None:
    """Move the parameters into one flat buffer, each with its own storage over its slice; values and layouts stay."""
    movable = [p for p in params if owns_its_storage(p)]
    if not movable:
        return
    starts: list[int] = []
    end = 0
    for p in movable:
        starts.append(end)
        end += -(-p.numel() // Table.ALIGN) * Table.ALIGN
    flat = torch.zeros(end, dtype=movable[0].dtype, device=movable[0].device)
    for p, start in zip(movable, starts):
        moved = own_storage(flat, start, p.shape, p.stride())
        moved.copy_(p.detach())
        p.data = moved


def supported(p: Tensor, name: str) -> None:
    """Raise TypeError, with the parameter's name, if it is not supported."""
    if p.dtype not in COMPUTE_DTYPE:
        known = ", ".join(str(d).removeprefix("torch.") for d in COMPUTE_DTYPE)
        raise TypeError(f"{name} has dtype {p.dtype}; supported are {known}")
    if p.is_nested:
        raise TypeError(f"{name} is a nested tensor; pass its components as separate parameters")
    if p.layout is not torch.strided:
        raise TypeError(f"{name} has layout {p.layout}; only dense parameters are supported")
    if torch.nn.parameter.is_lazy(p):
        raise TypeError(f"{name} is not initialised yet: run one forward pass of the lazy module first")
    if p.device.type == "meta":
        raise TypeError(f"{name} is on the meta device: give the model memory first (to_empty)")
    place_of_part(p, name)
    if part(p).numel() and part(p).data_ptr() == 0:
        raise TypeError(f"{name} is a {type(p).__name__} without its own memory; pass the tensors that it wraps")
