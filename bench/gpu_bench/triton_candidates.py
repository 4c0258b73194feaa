"""The work of one program of the Triton kernels that bench/tune_triton.py tries, and what it tries it on."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import torch

from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.kernels import Table
from deeprelax.kernels.triton.backend import Launch, Triton, TritonUpdate
from deeprelax.kernels.triton.sizes import SIZES, Kind, Sizes
from deeprelax.optim.bucket import buffers_of, new_buffer
from gpu_bench.calls import RULES, Rule

DTYPES = {4: torch.float32, 2: torch.bfloat16, 8: torch.float64}  # those with targets first
WARPS = (2, 4, 8)
ACCESSES = (1, 2)  # of a thread to one operand, in one pass
PASSES = (1, 2)

OPTIMIZERS = {"entropy_sgd": "EntropySGD", "hj": "HJ", "heat": "Heat", "entropy_adamw": "EntropyAdamW"}


def kinds(rules: tuple[str, ...] = (), dtypes: tuple[str, ...] = ()) -> list[Kind]:
    """Those of the table ``SIZES``, in the order of ``DTYPES``: of those rules and dtypes, or of all."""
    return [
        kind
        for item, dtype in DTYPES.items()
        for kind in SIZES
        if kind[1] == item
        and rule_of(kind)
        and (not rules or kind[0] in rules)
        and (not dtypes or str(dtype).endswith(dtypes))
    ]


def candidates(kind: Kind) -> Iterator[Sizes]:
    """What is tried for that kind; without noise, ``per_thread`` is of no consequence."""
    _, bytes_each, noise = kind
    widest = max(4, 16 // bytes_each)
    for per_thread in sorted({4, widest}) if noise else (widest,):
        for warps in WARPS:
            for accesses in ACCESSES:
                for passes in PASSES:
                    yield Sizes(32 * warps * widest * accesses, per_thread, warps, passes)


def rule_of(kind: Kind) -> Rule | None:
    """Whose inner call, what most of a run consists of, is tried: the one that the other parts measure, if they do."""
    return next((rule for rule in RULES if (rule.optimizer, rule.noise) == (OPTIMIZERS.get(kind[0]), kind[2])), None)


class Work:
    """The inner call of a kind on one weight with ``elements`` elements.

    Attributes:
        bytes: that one call reads and writes.
    """

    def __init__(self, kind: Kind, elements: int, device: torch.device) -> None:
        rule = rule_of(kind)
        assert rule is not None
        self._kind, self._call = kind, rule.call("inner")
        dtype = DTYPES[kind[1]]
        weight, self._grad = (torch.randn(elements, device=device).to(dtype) for _ in range(2))
        self._table = Table([weight], [0])
        self._addresses = array("q", [self._grad.data_ptr()])
        names = buffers_of(rule.kernel, dtype != self._table.compute_dtype, False)
        self._buffers = {name: new_buffer(name, self._table) for name in names}
        self._rule, self._bound = rule, dict[int, TritonUpdate]()
        for name, buffer in self._buffers.items():
            if name != "missed":
                buffer.normal_().abs_()  # a square is not negative
        self.bytes = bytes_moved(rule.optimizer, dtype, "inner") * elements

    def backend(self, sizes: Sizes) -> Triton:
        """One whose programs of this kind do that much."""
        return Triton({**SIZES, self._kind: sizes})

    def _update(self, backend: Triton) -> TritonUpdate:
        if id(backend) not in self._bound:
            self._bound[id(backend)] = backend.bind(self._rule.kernel, self._table, self._buffers)
        return self._bound[id(backend)]

    def run(self, backend: Triton) -> None:
        self._update(backend).run(self._call, [self._grad], self._addresses)

    def launch(self, backend: Triton) -> Launch:
        """What ``run`` launches."""
        return self._update(backend).launch(self._call, self._addresses)
