"""One launch: parameters of one device and dtype, the layout of their gradients, flat state, table and backend."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deeprelax.kernels import Backend, Rule, Table, Update, get
from deeprelax.kernels.layout import Layout, same_strides
from deeprelax.kernels.reference import take_x
from deeprelax.optim.flat_storage import contiguous_strides, is_dense, move_into_flat_buffer, own_storage
from deeprelax.optim.sharding import (
    dense_strides,
    gradient_part,
    is_sharded,
    like,
    part,
    place_of_part,
    same_placement,
)
from deeprelax.optim.state import State

VERSION = attrgetter("_version")

# Gradients in their weights' layouts, their addresses (0: none), and whether any is missing.
Gradients: TypeAlias = "tuple[list[Tensor | None], array[int], bool]"


def buffers_of(rule: Rule, wide: bool, stochastic_rounding: bool) -> list[str]:
    """The buffers that a rule keeps from construction on; ``wide``: the state is wider than the weights."""
    return [*rule.kept, "y"] if rule.keeps_y and wide and not stochastic_rounding else [*rule.kept]


def is_optional(rule: Rule, name: str) -> bool:
    """Whether a buffer exists only while a hyper-parameter is not 0, or in eval mode."""
    return name == "inner" or any(name == buffer for _, buffer in rule.optional)


def state_shape(name: str, p: Tensor) -> torch.Size:
    """The shape of a parameter's part of a buffer: the parameter's, except for a count."""
    return torch.Size() if name == "missed" else p.shape


def misfit(name: str, p: Tensor, value: Any) -> str:
    """Why a value cannot be a parameter's state of that name; empty if it can."""
    shape = state_shape(name, p)
    if not isinstance(value, Tensor):
        return f"{type(value).__name__}; expected a tensor of shape {tuple(shape)}"
    if value.shape != shape:
        return f"of shape {tuple(value.shape)}; expected shape {tuple(shape)}"
    if name != "missed" and not same_placement(p, value):
        kinds = [str(v._spec.placements) if is_sharded(v) else "a plain tensor" for v in (value, p)]  # type: ignore[attr-defined]
        return (
            f"{kinds[0]}, and the parameter {kinds[1]}: load it with "
            "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict, which distributes it"
        )
    return ""


def new_buffer(name: str, table: Table) -> Tensor:
    """A flat buffer of that name, of zeros."""
    if name == "missed":
        return torch.zeros(len(table.weights), dtype=torch.int64, device=table.device)
    flat: Tensor = table.new_buffer(table.dtype if name == "inner" else None)
    return flat


class Bucket:
    """Parameters of one group on one device and of one dtype, which are either all sharded or all not.

    Args:
        rule: the update rule.
        params: the parameters.
        positions: the position of each in its group.
        noise: for each the noise's parameter index, and the index in it of the unsharded parameter's first element.
        names: for error messages.
        backend: a backend, its name, or "auto".
        flatten: move the parameters into one flat buffer.
        capturable: whether steps on it may be captured in a CUDA graph.
        stochastic_rounding: whether bfloat16 weights are rounded stochastically.
    """

    def __init__(
        self,
        rule: Rule,
        params: list[Tensor],
        positions: list[int],
        noise: list[tuple[int, int]],
        names: list[str],
        backend: str | Backend,
        flatten: bool,
        capturable: bool,
        stochastic_rounding: bool,
    ) -> None:
        self.rule = rule
        self.backend = get(backend, params[0].device) if isinstance(backend, str) else backend
        if flatten:
            move_into_flat_buffer(params)
        self.params = params
        self.sharded = is_sharded(params[0])
        self.parts = parts = list(map(part, params))
        self.positions = positions
        self.names = names
        self._capturable = capturable
        self.addresses = array("q", map(Tensor.data_ptr, parts))
        if self.sharded:
            self.strides = [dense_strides(p, local.shape) for p, local in zip(params, parts)]
        else:
            self.strides = [p.stride() if is_dense(p) else contiguous_strides(p.shape) for p in params]
        # A parameter with gaps, or a part in another order than the unsharded parameter, is updated through a copy.
        self.gaps = {
            t: torch.empty_strided(p.shape, strides, dtype=p.dtype, device=p.device)
            for t, (p, strides) in enumerate(zip(parts, self.strides))
            if not same_strides(p.shape, p.stride(), strides) and p.numel()
        }
        weights = [self.gaps.get(t, p) for t, p in enumerate(parts)]
        places = [place_of_part(p, name) for p, name in zip(params, names)]
        starts = [first + start for (_, first), (start, _) in zip(noise, places)]
        self.table = Table(weights, [index for index, _ in noise], starts, [run for _, run in places])
        dtype, device, shapes = parts[0].dtype, parts[0].device, [p.shape for p in parts]
        specs = [p._spec for p in params] if self.sharded else None  # type: ignore[attr-defined]
        self._layout = Layout(dtype, device, shapes, [p.stride() for p in parts], specs)
        self._grad_layout = Layout(dtype, device, shapes, self.strides, specs)
        self.kept = buffers_of(rule, self.is_wide, stochastic_rounding)
        self.buffers: dict[str, Tensor] = {}
        self.views: dict[str, list[Tensor]] = {}  # of each parameter's part
        self.shown: dict[str, list[Tensor]] = {}  # the same as the state has them
        self.update: Update
        # The parameters' version counters after our last write, and how often we have written since they were noted;
        # None while weights may be loaded, and writes by other code are expected.
        self._versions: list[int] | None = None
        self._writes = 0

    @property
    def is_wide(self) -> bool:
        """Whether the state is wider than the weights."""
        return bool(self.table.compute_dtype != self.table.dtype)

    # State.

    def add_buffers(self, names: Iterable[str], state: State) -> None:
        """Add a zero buffer for each name that has none yet, and put each parameter's part of it, in its shape, into
        ``state``; "inner" has the weights' dtype."""
        new = {}
        with torch.inference_mode(False):  # a buffer made in inference mode could not be updated outside it
            for name in names:
                if name not in self.buffers:
                    flat = new_buffer(name, self.table)
                    new[name] = flat, [self._view(name, flat, t) for t in range(len(self.params))]
        for name, (flat, views) in new.items():
            self.buffers[name], self.views[name] = flat, views
            self.shown[name] = [self._shown(name, t, view) for t, view in enumerate(views)]
            for p, shown in zip(self.params, self.shown[name]):
                state[p].put(name, shown)
        if new.keys() - {"inner"}:
            self.update = self.backend.bind(
                self.rule, self.table, {n: b for n, b in self.buffers.items() if n != "inner"}, self._capturable
            )

    def _place(self, name: str, t: int) -> int:
        """Where one parameter's part of a flat buffer begins."""
        return t if name == "missed" else self.table.offsets[t]

    def _view(self, name: str, flat: Tensor, t: int) -> Tensor:
        """One parameter's part of a flat buffer."""
        shape = state_shape(name, self.parts[t])
        strides = self.table.state_strides(t, self.strides[t]) if shape else ()
        return own_storage(flat, self._place(name, t), shape, strides)

    def _shown(self, name: str, t: int, view: Tensor) -> Tensor:
        """That part as the state holds it."""
        return view if name == "missed" else like(self.params[t], view)

    def _is_in_place(self, name: str, t: int) -> bool:
        """Whether the state is still in the flat buffer: sharing memory with another process moves a tensor."""
        flat, view = self.buffers[name], self.views[name][t]
        expected = flat.data_ptr() + self._place(name, t) * flat.element_size()
        return view.numel() == 0 or view.data_ptr() == expected

    def drop_buffer(self, name: str, state: State) -> None:
        """Forget a buffer, if there is one of that name."""
        if self.buffers.pop(name, None) is not None:
            del self.views[name], self.shown[name]
            for p in self.params:
                state[p].drop(name)

    def begin(self, t: int, name: str, step: int) -> None:
        """Initialise the part of a parameter that joins after ``step`` steps: x, y and z are the parameter, it has
        missed all those steps, and everything else is 0."""
        view = self.views[name][t]
        if name in ("x", "y", "z"):
            view.copy_(self.parts[t].detach())
        elif name == "missed":
            view.fill_(step)
        else:
            view.zero_()

    @torch.no_grad()
    def take_over(self, t: int, values: Mapping[str, Any], state: State, step: int) -> None:
        """Copy the values of one parameter's state into its buffers; ``begin`` initialises what is missing.

        Raises:
            ValueError: a value is not a tensor of the parameter's shape.
        """
        p, entry = self.params[t], state[self.params[t]]
        optional = [name for name in values if is_optional(self.rule, name) and isinstance(values[name], Tensor)]
        self.add_buffers(optional, state)
        for name, views in self.views.items():
            value = values.get(name)
            if not self._is_in_place(name, t):
                views[t] = self._view(name, self.buffers[name], t)
                self.shown[name][t] = self._shown(name, t, views[t])
            if value is None:
                self.begin(t, name, step)
            elif value is not self.shown[name][t]:
                if problem := misfit(name, p, value):
                    raise ValueError(f"{self.names[t]}: its state {name} is {problem}")
                views[t].copy_(part(value))
            entry.put(name, self.shown[name][t])
        for name in [name for name in entry if name not in self.views]:
            entry.drop(name)  # the float32 y of a model that was cast to float32 since, or other code's

    def owns(self, t: int, values: Mapping[str, Any]) -> bool:
        """Whether a parameter's state is what this bucket made, and not put in by other code."""
        return all(values.get(name) is shown[t] and self._is_in_place(name, t) for name, shown in self.shown.items())

    # Parameters and gradients.

    def is_current(self, params: list[Tensor]) -> bool:
        """Whether these are the parameters, require gradients, and have the same addresses and layouts as before."""
        return len(params) == len(self.params) and self._layout.parameters(self.params, params) == self.addresses

    def position(self, p: Tensor) -> int:
        """The place of one of the parameters in the bucket."""
        return next(t for t, own in enumerate(self.params) if own is p)

    def holds(self, p: Tensor) -> bool:
        """Whether one of the parameters has the same address and layout as before."""
        t = self.position(p)
        return part(p).data_ptr() == self.addresses[t] and self._layout.fits(t, part(p))

    def gather(self) -> Gradients:
        """The gradients.

        Raises:
            RuntimeError: a gradient is sparse, or has another dtype or size than its parameter.
        """
        found: Gradients | None = self._grad_layout.gradients(self.params)
        if found is not None:
            return found
        ready = [None if p.grad is None else self._in_layout(t, p.grad) for t, p in enumerate(self.params)]
        addresses = array("q", [0 if g is None else g.data_ptr() for g in ready])
        return ready, addresses, any(g is None for g in ready)

    def no_gradients(self) -> tuple[list[Tensor | None], array[int]]:
        """What ``gather`` returns if every gradient is missing."""
        return [None] * len(self.params), array("q", bytes(8 * len(self.params)))

    def _in_layout(self, t: int, g: Tensor) -> Tensor:
        p = self.parts[t]
        if g.layout is not torch.strided:
            raise RuntimeError(
                f"{self.names[t]} has a {g.layout} gradient; these optimizers need dense gradients "
                "(pass sparse=False to the embedding)"
            )
        g = gradient_part(self.params[t], self.names[t], g)
        if g.dtype != p.dtype or g.shape != p.shape or g.device != p.device:
            raise RuntimeError(
                f"{self.names[t]}: its gradient has dtype {g.dtype}, shape {tuple(g.shape)} and device {g.device}; "
                f"expected {p.dtype}, {tuple(p.shape)} and {p.device} as the parameter has"
            )
        g = g.detach().resolve_neg()
        if hasattr(g, "wait"):  # the result of a collective that may still be running
            g = g.wait()
        if self._grad_layout.fits(t, g):
            return g
        return torch.empty_strided(g.shape, self.strides[t], dtype=g.dtype, device=g.device).copy_(g)

    # Our writes, and those of other code.

    def read_in(self) -> None:
        """Before a kernel reads the weights: fill the contiguous copies of the parameters with gaps."""
        for t, copy in self.gaps.items():
            copy.copy_(self.parts[t].detach())

    def written(self) -> None:
        """After a kernel has written to the weights: write back the copies, and increase the version counters, so
        that autograd refuses a backward pass that has saved the old weights."""
        for t, copy in self.gaps.items():
            self.parts[t].detach().copy_(copy)
        torch.autograd.graph.increment_version(self.params)
        if self.sharded:
            torch.autograd.graph.increment_version(self.parts)
        self._writes += 1

    def count_missing(self, grads: Sequence[Tensor | None], calls: int | Tensor = 1) -> None:
        """Add ``calls`` to the count of each weight without a gradient."""
        if self.rule.counts:
            missing = torch.tensor([g is None for g in grads], dtype=torch.int64, device="cpu")
            self.buffers["missed"].add_(missing.to(self.table.device) * calls)

    def note_versions(self) -> None:
        """Note the version counters: later writes by other code will be noticed."""
        if any(map(Tensor.is_inference, self.parts)):  # these have no version counters
            self._versions = None
            return
        self._versions, self._writes = self._counters(), 0

    def _counters(self) -> list[int]:
        counters = list(map(VERSION, self.parts))
        if self.sharded:  # torch's functions count a write in one or in both
            counters = list(map(operator.add, counters, map(VERSION, self.params)))
        return counters

    def forget_versions(self) -> None:
        """Expect writes by other code until the next step: weights may be loaded."""
        self._versions = None

    def foreign_writes(self) -> list[int]:
        """Which parameters other code has written to since our last write."""
        if self._versions is None:
            return []
        found, ours = enumerate(zip(self._versions, self._counters())), 1 + self.sharded
        # A write-back of a copy counts as well.
        return [t for t, (noted, now) in found if now != noted + self._writes * (ours + (t in self.gaps))]

    # Which point the parameters hold.

    def points(self) -> Tensor:
        """The points that the parameters hold, in the state's dtype, as one flat tensor."""
        if "y" in self.buffers:
            return self.buffers["y"]
        flat = torch.zeros_like(self.buffers["x"])
        for t, p in enumerate(self.parts):
            self.part(flat, t).copy_(p.detach())
        return flat

    def part(self, flat: Tensor, t: int) -> Tensor:
        """One parameter's part of a flat tensor, in the parameter's shape."""
        return self._view("x", flat, t)

    def put(self, t: int, value: Tensor) -> None:
        """Write to one of the parameters."""
        self.parts[t].detach().copy_(value)
        if self.sharded:
            torch.autograd.graph.increment_version(self.params[t : t + 1])

    def put_x(self) -> None:
        """Put x into the parameters, and into y if there is one."""
        for t, x in enumerate(self.views["x"]):
            self.put(t, x)
        if "y" in self.buffers:
            self.buffers["y"].copy_(self.buffers["x"])
        self.note_versions()

    def refresh_x(self) -> None:
        """Write x into the state; the parameters hold it."""
        for p, x in zip(self.parts, self.views["x"]):
            x.copy_(take_x(x, p.detach()))

    def show_x(self, state: State, keep: Sequence[int]) -> None:
        """Keep the inner point as a buffer, and put x into the parameters other than those of ``keep``."""
        self.add_buffers(["inner"], state)
        for t, p in enumerate(self.parts):
            self.views["inner"][t].copy_(p.detach())
            if t not in keep:
                self.put(t, self.views["x"][t])
        self.note_versions()

    def show_inner(self, state: State) -> None:
        """Put the inner point back, if it is kept."""
        if "inner" in self.buffers:
            for t, inner in enumerate(self.views["inner"]):
                self.put(t, inner)
            self.drop_buffer("inner", state)
            self.note_versions()
