"""One launch's parameters: their table, their gradients as the kernels want them, and flat state."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from operator import attrgetter, is_, is_not
from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels import Backend, Table, get
from deeprelax.kernels.layout import Layout
from deeprelax.memory import contiguous_strides, is_dense, move_into_flat_buffer, own_storage

GRAD = attrgetter("grad")
IS_THERE = partial(is_not, None)


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
        self.backend: Backend = get(backend, params[0].device)
        if flatten:
            move_into_flat_buffer(params)
        self.params = params
        self.positions = positions
        self.names = names
        self.addresses = array("q", map(Tensor.data_ptr, params))
        # A parameter with gaps is served by a contiguous copy, in and out.
        self.gaps = {
            t: torch.empty(p.shape, dtype=p.dtype, device=p.device) for t, p in enumerate(params) if not is_dense(p)
        }
        weights = [self.gaps.get(t, p) for t, p in enumerate(params)]
        self.table = Table(weights, [base + i for i in positions], names)
        self.strides = [p.stride() if t not in self.gaps else contiguous_strides(p.shape) for t, p in enumerate(params)]
        dtype, device, shapes = params[0].dtype, params[0].device, [p.shape for p in params]
        self._layout = Layout(dtype, device, shapes, [p.stride() for p in params])
        self._grad_layout = Layout(dtype, device, shapes, self.strides)
        self.buffers: dict[str, Tensor] = {}
        # HJ: the gamma at which every weight of the set stands at x - gamma p; None: not known.
        self.placed_gamma: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.table.dtype
        return dtype

    @property
    def is_wide(self) -> bool:
        """Whether the state is wider than the weights."""
        return bool(self.table.compute_dtype != self.table.dtype)

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
        params = list(group) if len(group) == len(self.params) else [group[i] for i in self.positions]
        found = self._layout.addresses(params) if all(map(is_, params, self.params)) else None
        return found is not None and found[0] == self.addresses

    def holds(self, position: int, p: Tensor) -> bool:
        """Whether ``p``, at that place of the group, is as it was."""
        t = self.positions.index(position)
        return p is self.params[t] and p.data_ptr() == self.addresses[t] and self._layout.fits(t, p)

    def gather(self) -> tuple[list[Tensor | None], array[int], bool]:
        """The gradients in their weights' layouts, their addresses (0: none), and whether any is missing.

        Raises:
            RuntimeError: a gradient is sparse, or has another dtype or size than its parameter.
        """
        grads = list(map(GRAD, self.params))
        found = self._grad_layout.addresses(grads)
        # DLPack does not tell of torch's negative bit (views made by .imag of a conjugate).
        if found is not None and not any(map(Tensor.is_neg, filter(IS_THERE, grads) if found[1] else grads)):
            return grads, *found
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
        g = g.detach().resolve_neg()
        if hasattr(g, "wait"):  # a collective's result that may still be on its way
            g = g.wait()
        if self._grad_layout.fits(t, g):
            return g
        return torch.empty_strided(g.shape, self.strides[t], dtype=g.dtype, device=g.device).copy_(g)

    def buffers_for(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Those of the named buffers that there are."""
        return {name: self.buffers[name] for name in names if name in self.buffers}

    def written(self) -> None:
        """A kernel has written to the weights: write back those that it had as copies, and let autograd notice, for
        whatever was saved for a backward pass holds the old ones."""
        self.copy_out()
        torch.autograd.graph.increment_version(self.params)

    def copy_in(self) -> None:
        """Fill the contiguous copies of the parameters with gaps."""
        for t, copy in self.gaps.items():
            copy.copy_(self.params[t].detach())

    def copy_out(self) -> None:
        """Write them back."""
        for t, copy in self.gaps.items():
            self.params[t].detach().copy_(copy)
