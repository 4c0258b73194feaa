"""Where weights, gradients and state lie: flat buffers, dense layouts, overlaps, moved parameters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels import Backend, Table, get
from deeprelax.kernels.calls import COMPUTE_DTYPE

# Called a thousand times a step on models of many small tensors: no Python frame each.
GRAD, DTYPE = attrgetter("grad"), attrgetter("dtype")


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


def same_layout(t: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether ``t`` has these strides wherever a dimension is larger than 1."""
    return all(size <= 1 or a == b for size, a, b in zip(t.shape, t.stride(), strides))


def own_storage(flat: Tensor, start: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """A tensor over part of ``flat`` with a storage of its own.

    Whatever saves models or state tells tensors apart by their storage: plain views of one buffer would be refused
    by safetensors and saved whole, each, by pickle.
    """
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=flat.dtype, device=flat.device)
    view: Tensor = torch.from_dlpack(flat.as_strided(tuple(shape), tuple(strides), start))
    return view


def memory_interval(t: Tensor) -> tuple[int, int]:
    """First and one past the last byte that ``t`` touches; (0, 0) if it has no elements."""
    if t.numel() == 0:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride()))
    begin = t.data_ptr()
    return begin, begin + (last + 1) * t.element_size()


def touched(t: Tensor) -> Tensor:
    """Addresses of all elements of ``t``, sorted: for the rare parameters whose intervals meet."""
    steps = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(t.shape, t.stride()):
        steps = steps.unsqueeze(-1) + torch.arange(size) * stride
    return (steps.reshape(-1) * t.element_size() + t.data_ptr()).sort().values


def refuse_overlaps(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError, with both names, if two parameters share memory, or one has an element twice."""
    entries = [(*memory_interval(t), str(t.device), name, t) for name, t in named if t.numel()]
    entries.sort(key=lambda e: (e[2], e[0]))
    for _, _, _, name, t in entries:
        if not is_dense(t) and bool((touched(t).diff() == 0).any()):
            raise ValueError(
                f"{name} has several elements at one place in memory (shape {tuple(t.shape)}, strides {t.stride()}); "
                "an expanded tensor cannot be updated in place: clone it first"
            )
    # Sorted by their beginnings, intervals that meet need not be neighbours: keep all that reach past the current one.
    active: list[tuple[int, str, str, Tensor]] = []
    for begin, end, device, name, t in entries:
        active = [other for other in active if other[0] > begin and other[1] == device]
        for _, _, other_name, other in active:
            both = torch.cat((touched(t), touched(other))).sort().values
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
        and not storage.is_shared()
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


class ParamSet:
    """The parameters of one group that have one device and one dtype: a table for the kernels and flat state.

    Args:
        params: the parameters.
        positions: place of each in its group.
        base: how many parameters the groups before this one have; base + position is the noise's parameter index.
        names: for error messages.
        backend: a backend's name or "auto".
        flatten: move the parameters into one flat buffer.
    """

    def __init__(
        self, params: list[Tensor], positions: list[int], base: int, names: list[str], backend: str, flatten: bool
    ) -> None:
        if flatten:
            move_into_flat_buffer(params)
        self.params = params
        self.positions = positions
        self.names = names
        self.addresses = list(map(Tensor.data_ptr, params))
        # A parameter with gaps is served by a contiguous copy, in and out.
        self.gaps = {t: torch.empty(p.shape, dtype=p.dtype, device=p.device) for t, p in enumerate(params)
                     if not is_dense(p)}
        weights = [self.gaps.get(t, p) for t, p in enumerate(params)]
        self.table = Table(weights, [base + i for i in positions], names)
        self.strides = [p.stride() if t not in self.gaps else contiguous_strides(p.shape)
                        for t, p in enumerate(params)]
        self.all_contiguous = all(w.is_contiguous() for w in weights)
        self.backend: Backend = get(backend, self.table.device)
        self.buffers: dict[str, Tensor] = {}
        # HJ: the gamma at which every weight of the set stands at x - gamma p; None: not known.
        self.placed_gamma: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def is_wide(self) -> bool:
        """Whether the state is wider than the weights."""
        return self.table.compute_dtype != self.table.dtype

    def add_buffer(self, name: str, state: dict[Tensor, dict[str, Any]], dtype: torch.dtype | None = None) -> None:
        """A zero buffer of that name, and each parameter's part of it, in its shape, in ``state``."""
        flat = self.table.new_buffer(dtype)
        self.buffers[name] = flat
        for t, p in enumerate(self.params):
            state[p][name] = own_storage(flat, self.table.offsets[t], p.shape, self.strides[t])

    def drop_buffer(self, name: str, state: dict[Tensor, dict[str, Any]]) -> None:
        """Forget a buffer."""
        del self.buffers[name]
        for p in self.params:
            state[p].pop(name, None)

    def is_current(self, group: Sequence[Tensor]) -> bool:
        """Whether the group's parameters are still those that this set was made for, where they were."""
        params = group if len(group) == len(self.params) else [group[i] for i in self.positions]
        return (
            all(map(is_, params, self.params))
            and list(map(Tensor.data_ptr, params)) == self.addresses
            and params[0].dtype == self.table.dtype
        )

    def gather(self) -> tuple[list[Tensor | None], array[int], bool]:
        """The gradients in their weights' layouts, their addresses (0: none), and whether any is missing.

        Raises:
            RuntimeError: a gradient is sparse, or has another dtype or size than its parameter.
        """
        grads = list(map(GRAD, self.params))
        try:
            if (
                self.all_contiguous
                and all(map(Tensor.is_contiguous, grads))  # type: ignore[arg-type]
                and list(map(Tensor.numel, grads)) == self.table.sizes  # type: ignore[arg-type]
                and set(map(DTYPE, grads)) == {self.table.dtype}
            ):
                return grads, array("q", map(Tensor.data_ptr, grads)), False  # type: ignore[arg-type]
        except (TypeError, RuntimeError):  # a missing or a sparse one
            pass
        ready = [None if g is None else self._in_layout(t, g) for t, g in enumerate(grads)]
        addresses = array("q", [0 if g is None else g.data_ptr() for g in ready])
        return ready, addresses, any(g is None for g in ready)

    def _in_layout(self, t: int, g: Tensor) -> Tensor:
        p = self.params[t]
        if g.layout is not torch.strided:
            raise RuntimeError(
                f"{self.names[t]} has a {g.layout} gradient; these optimizers need dense gradients "
                "(pass sparse=False to the embedding)"
            )
        if g.dtype != p.dtype or g.shape != p.shape or g.device != p.device:
            raise RuntimeError(
                f"{self.names[t]}: its gradient has dtype {g.dtype}, shape {tuple(g.shape)} and device {g.device}; "
                f"expected {p.dtype}, {tuple(p.shape)} and {p.device} as the parameter has"
            )
        g = g.detach()
        if same_layout(g, self.strides[t]):
            return g
        return torch.empty_strided(g.shape, self.strides[t], dtype=g.dtype, device=g.device).copy_(g)

    def copy_in(self) -> None:
        """Fill the contiguous copies of the parameters with gaps."""
        for t, copy in self.gaps.items():
            copy.copy_(self.params[t].detach())

    def copy_out(self) -> None:
        """Write them back."""
        for t, copy in self.gaps.items():
            self.params[t].detach().copy_(copy)


def supported(p: Tensor, name: str) -> None:
    """Raise TypeError, with the parameter's name, if no kernel can serve it."""
    if p.dtype not in COMPUTE_DTYPE:
        known = ", ".join(str(d).removeprefix("torch.") for d in COMPUTE_DTYPE)
        raise TypeError(f"{name} has dtype {p.dtype}; supported are {known}")
    if p.layout is not torch.strided:
        raise TypeError(f"{name} has layout {p.layout}; only dense parameters are supported")
    if isinstance(p, torch.nn.parameter.UninitializedTensorMixin):
        raise TypeError(f"{name} is not initialised yet: run one forward pass of the lazy module first")
    if hasattr(p, "to_local") or hasattr(p, "_local_tensor"):
        raise TypeError(f"{name} is a DTensor; sharded parameters are not supported yet: pass the local tensors")


