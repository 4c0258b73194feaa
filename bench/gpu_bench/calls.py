"""Single calls of the update rules on memory of our own: no optimizer's host time enters."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deeprelax import kernels
from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.kernels import Backend, ClockMemory, CycleState, Hyper, Scalars, Table, Tick, Update
from deeprelax.kernels.scalars import ENTROPY_ADAMW, ENTROPY_SGD, HEAT, HJ
from deeprelax.optim.bucket import buffers_of
from gpu_bench.timing import Contestant

KINDS = ("first", "inner", "last")
COPY_BYTES = 8  # per element: fp32, read and written
PASSES = 4  # of the cache's size are moved before the same memory is used again


KERNELS = {"EntropySGD": ENTROPY_SGD, "HJ": HJ, "Heat": HEAT, "EntropyAdamW": ENTROPY_ADAMW}


@dataclass(frozen=True)
class Rule:
    """An update rule; Heat has no variant without noise."""

    name: str
    optimizer: str
    noise: bool
    length: int  # L

    @property
    def kernel(self) -> kernels.Rule:
        """The rule as the backends know it."""
        return KERNELS[self.optimizer]

    def hyper(self, weight_decay: float) -> Hyper:
        return Hyper(
            inner_steps=self.length,
            keep=1 - 1e-3,
            weight_decay=weight_decay,
            alpha=0.0 if self.kernel is ENTROPY_ADAMW else 0.75,
            temperature=1e-8 if self.noise else 0.0,
            beta1=0.9,
            beta2=0.95,
            epsilon=1e-8,
        )

    def call(self, kind: str, weight_decay: float = 0.0, flags: int = 0) -> Scalars:
        """The scalars of the call of that kind, in mid-run."""
        gamma = {"Heat": 1e-4, "EntropyAdamW": math.inf}.get(self.optimizer, 1.0)
        at = CycleState(
            lr=1e-3,
            inner_lr=1e-3,
            gamma=gamma,
            next_gamma=gamma,
            step=7,
            phase={"first": 0, "inner": 1, "last": self.length - 1}[kind],
            cycle_steps=self.length,
            fresh=False,
            seed=1,
        )
        scalars = self.kernel.scalars(self.hyper(weight_decay), at)
        scalars.flags |= flags
        return scalars

    def per_cycle(self, values: dict[str, float]) -> float:
        """The mean over a cycle of a value per kind of call."""
        return (values["first"] + (self.length - 2) * values["inner"] + values["last"]) / self.length


RULES = (
    Rule("EntropySGD", "EntropySGD", False, 20),
    Rule("EntropySGD, noise", "EntropySGD", True, 20),
    Rule("HJ", "HJ", False, 5),
    Rule("Heat", "Heat", True, 5),
    Rule("EntropyAdamW", "EntropyAdamW", False, 20),
)


@dataclass(frozen=True)
class Configuration:
    """What the kernels run on."""

    name: str
    dtype: torch.dtype
    weight_decay: float = 0.0

    def bytes(self, rule: Rule, kind: str) -> int:
        """Per element."""
        return bytes_moved(rule.optimizer, self.dtype, kind, weight_decay=self.weight_decay)


FP32 = Configuration("fp32", torch.float32)
BF16 = Configuration("bf16", torch.bfloat16)
CONFIGURATIONS = (FP32, BF16, Configuration("fp32, weight decay", torch.float32, 1e-4))


@dataclass(frozen=True)
class Extra:
    """A common setting that costs no memory traffic, measured on inner calls of Entropy-SGD beside the plain one.

    Attributes:
        name: what it is.
        weight_decay: of the call.
        scale: a GradScaler's loss scale, which a captured step reads on the device.
        shift: elements by which gradients miss the alignment of 16 bytes, as bucket views do.
    """

    name: str
    weight_decay: float = 0.0
    scale: float = 1.0
    shift: int = 0


PLAIN_CALL = Extra("plain")
EXTRAS = (
    PLAIN_CALL,
    Extra("gradient unaligned", shift=1),
    Extra("weight decay", weight_decay=1e-4),
    Extra("captured, GradScaler", scale=1024.0),
)


class Memory:
    """Random weights, gradients and state of so many elements, and a place to copy to; slices of it are launched on.

    Args:
        elements: a multiple of 128, so that slices of a power of two are aligned.
        device: where.
        cache: bytes of the device's cache; default what it says.
    """

    def __init__(self, elements: int, device: torch.device, cache: int | None = None) -> None:
        def normal() -> Tensor:
            return torch.randn(elements, device=device)

        self.elements = elements
        self.wide = {"w": normal(), "g": torch.randn(elements + 1, device=device)}  # one more for a shifted slice
        self.narrow = {name: t.to(torch.bfloat16) for name, t in self.wide.items()}
        self.x, self.y, self.average, self.target = normal(), normal(), normal(), normal()
        self.square = normal().abs_()
        self.missed = torch.zeros(1, dtype=torch.int64, device=device)
        self._tables: dict[tuple[torch.dtype, int, int], Table] = {}
        self._cache = cache_of(device) if cache is None else cache
        self._turns: dict[int, Turns] = {}  # by the size of a slice
        self._device = device

    def _slice(self, size: int, number: int) -> slice:
        return slice(number * size, (number + 1) * size)

    def _bound(
        self, backend: Backend, rule: Rule, dtype: torch.dtype, size: int, number: int, shift: int = 0
    ) -> tuple[Update, list[Tensor | None], array[int]]:
        """The rule on the numbered slice of ``size`` elements, its gradients and their addresses."""
        at = self._slice(size, number)
        own = self.wide if dtype == torch.float32 else self.narrow
        key = dtype, size, number
        if key not in self._tables:
            self._tables[key] = Table([own["w"][at]], [0])
        own_state = {name: self.average[at] for name in ("z", "p", "s", "exp_avg")}
        own_state |= {"x": self.x[at], "y": self.y[at], "exp_avg_sq": self.square[at], "missed": self.missed}
        buffers = {name: own_state[name] for name in buffers_of(rule.kernel, dtype != torch.float32, False)}
        grad = own["g"][at.start + shift : at.stop + shift]
        return backend.bind(rule.kernel, self._tables[key], buffers), [grad], array("q", [grad.data_ptr()])

    def launch(
        self, backend: Backend, rule: Rule, call: Scalars, dtype: torch.dtype, size: int, number: int, shift: int = 0
    ) -> Callable[[], None]:
        """The call on the numbered slice of ``size`` elements."""
        update, grads, addresses = self._bound(backend, rule, dtype, size, number, shift)
        return lambda: update.run(call, grads, addresses)

    def extra(self, backend: Backend, rule: Rule, extra: Extra, dtype: torch.dtype) -> Callable[[], None]:
        """An inner call on all elements."""
        call = rule.call("inner", extra.weight_decay)
        if extra.scale == 1:
            return self.launch(backend, rule, call, dtype, self.elements, 0, extra.shift)
        clock, lr = ClockMemory(self._device), torch.tensor(1e-3, device=self._device)
        counters = {"phase": 1, "step": 7, "cycle_steps": rule.length, "seed": 1}
        for name, value in {"gamma": 1.0, "cycle_gamma": 1.0, **counters}.items():
            clock.set(name, value)
        scale = torch.full((), extra.scale, device=self._device)
        tick = Tick(rule.kernel, rule.hyper(extra.weight_decay), clock, lr, lr, scale, torch.zeros_like(scale))
        update, grads, addresses = self._bound(backend, rule, dtype, self.elements, 0, extra.shift)
        backend.tick(tick)  # once: it is the rule's kernel that is measured, at one place in the cycle
        return lambda: update.run_ticked(tick, grads, addresses)

    def contestant(
        self, backend: Backend, rule: Rule, call: Scalars, dtype: torch.dtype, size: int, calls: int
    ) -> Contestant:
        """``calls`` calls, each on the slice whose turn it is."""
        launches = [self.launch(backend, rule, call, dtype, size, i) for i in range(self.slices(size, calls))]
        return self.repeated(launches, size, calls)

    def copies(self, size: int, calls: int) -> Contestant:
        """Copies of ``size`` fp32 elements on the same slices."""
        at = [self._slice(size, i) for i in range(self.slices(size, calls))]
        pairs = [(self.target[s], self.x[s]) for s in at]
        return self.repeated([lambda to=to, source=source: to.copy_(source) for to, source in pairs], size, calls)

    def slices(self, size: int, calls: int) -> int:
        """How many there are, of so many elements: when a slice's turn comes again, even a contestant that moves no
        more than a copy has moved PASSES times what the cache holds since then."""
        between = math.ceil(PASSES * self._cache / (COPY_BYTES * size))
        return max(1, min(self.elements // size, calls + between))

    def repeated(self, launches: list[Callable[[], object]], size: int, calls: int) -> Contestant:
        """``calls`` of the launches, one a slice of ``size`` elements, each on the slice whose turn it is."""
        turns = self._turns.setdefault(size, Turns())

        def enqueue() -> None:
            for i in turns.take(calls):
                launches[i % len(launches)]()

        return Contestant(enqueue, calls)


class Turns:
    """The numbers of the calls on one size of slice. All contestants draw from it: each resumes where the one before it
    has ended, and finds nothing in the cache that that one has left there."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, calls: int) -> range:
        self._next += calls
        return range(self._next - calls, self._next)


def cache_of(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache; 0 elsewhere."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0
