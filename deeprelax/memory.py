"""Where tensors lie in memory: layouts, storages, overlaps, and moving parameters into one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from deeprelax.kernels import Table
from deeprelax.kernels.calls import COMPUTE_DTYPE


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of that shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(t: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each place once (contiguous, channels_last, transposed)."""
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
    """A tensor over part of ``flat`` with a storage of its own.

    Whatever saves models or state tells tensors apart by their storage: plain views of one buffer would be refused
    by safetensors and saved whole, each, by pickle.
    """
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=flat.dtype, device=flat.device)
    view: Tensor = torch.utils.dlpack.from_dlpack(flat.as_strided(tuple(shape), tuple(strides), start))
    return view


def memory_interval(t: Tensor) -> tuple[int, int]:
    """First and one past the last byte that ``t`` touches; (0, 0) if it has no elements."""
    if t.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
    begin = t.data_ptr()
    return begin, begin + (last + 1) * t.element_size()


def touched(t: Tensor, unit: int) -> Tensor:
    """Addresses of all pieces of ``unit`` bytes of ``t``, sorted: for the rare parameters whose intervals meet."""
    steps = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(t.shape, t.stride()):
        steps = steps.unsqueeze(-1) + torch.arange(size, device="cpu") * stride * t.element_size()
    pieces = steps.unsqueeze(-1) + torch.arange(0, t.element_size(), unit, device="cpu")
    return (pieces.reshape(-1) + t.data_ptr()).sort().values


def refuse_overlaps(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError, with both names, if two parameters share memory, or one has an element twice."""
    entries = [(*memory_interval(t), str(t.device), name, t) for name, t in named if t.numel()]
    entries.sort(key=lambda e: (e[2], e[0]))
    for _, _, _, name, t in entries:
        if not is_dense(t) and bool((touched(t, t.element_size()).diff() == 0).any()):
            raise ValueError(
                f"{name} has several elements at one place in memory (shape {tuple(t.shape)}, strides {t.stride()}); "
                "an expanded tensor cannot be updated in place: clone it first"
            )
    # Sorted by their beginnings, intervals that meet need not be neighbours: keep all that reach past the current one.
    active: list[tuple[int, str, str, Tensor]] = []
    for begin, end, device, name, t in entries:
        active = [other for other in active if other[0] > begin and other[1] == device]
        for _, _, other_name, other in active:
            unit = min(t.element_size(), other.element_size())
            both = torch.cat((touched(t, unit), touched(other, unit))).sort().values
            if bool((both.diff() == 0).any()):
                raise ValueError(
                    f"{other_name} and {name} share memory, and each would undo the other's update; "
                    "pass one of them, or pass clones"
                )
        active.append((end, device, name, t))


def owns_its_storage(p: Tensor) -> bool:
    """Whether ``p`` may be moved into a flat buffer: dense, not empty, no stranger in its storage."""
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
    """Give the parameters one flat buffer, each a storage of its own over its slice; values and layouts stay."""
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
    """Raise TypeError, with the parameter's name, if no kernel can serve it."""
    if p.dtype not in COMPUTE_DTYPE:
        known = ", ".join(str(d).removeprefix("torch.") for d in COMPUTE_DTYPE)
        raise TypeError(f"{name} has dtype {p.dtype}; supported are {known}")
    if p.layout is not torch.strided:
        raise TypeError(f"{name} has layout {p.layout}; only dense parameters are supported")
    if torch.nn.parameter.is_lazy(p):
        raise TypeError(f"{name} is not initialised yet: run one forward pass of the lazy module first")
    if p.device.type == "meta":
        raise TypeError(f"{name} is on the meta device: give the model memory first (to_empty)")
    if hasattr(p, "to_local") or hasattr(p, "_local_tensor"):
        raise TypeError(f"{name} is a DTensor; sharded parameters are not supported yet: pass the local tensors")
    if p.numel() and p.data_ptr() == 0:
        raise TypeError(f"{name} is a {type(p).__name__} without memory of its own; pass the tensors that it wraps")
