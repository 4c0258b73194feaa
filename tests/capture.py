"""A stand-in for a CUDA graph on machines without a GPU, and the backends that can be captured there."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deeprelax import kernels
from deeprelax.kernels import Backend, Table, Tick

BACKENDS = ["eager", "cpu", "cuda"]


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the optimizers of this test run on that backend with CPU tensors; "cuda" is its code, emulated."""
    if name == "cuda":
        module = pytest.importorskip("deeprelax._cuda")
        from deeprelax.kernels.cuda_backend import Cuda

        emulated = Cuda(module, emulated=True)
        for place in ("deeprelax.param_set.get", "deeprelax.clocked.get"):
            monkeypatch.setattr(place, lambda *_: emulated)
    elif kernels.why_not(name):
        pytest.skip(kernels.why_not(name))
    else:
        monkeypatch.setenv("DEEPRELAX_BACKEND", name)


class Recorder:
    """A backend that notes what it is asked for and does it when the graph is replayed."""

    capturable = True

    def __init__(self, real: Backend, launches: list[Callable[[], None]]) -> None:
        self.name = real.name
        self._real = real
        self._launches = launches

    def run(self, *arguments: Any) -> None:
        raise AssertionError("a captured step must not bake its scalars in")

    def prepare_capture(self, table: Table) -> None:
        raise AssertionError("memory cannot be pinned in a capture")

    def tick(self, tick: Tick) -> None:
        self._launches.append(functools.partial(self._real.tick, tick))

    def run_ticked(
        self,
        tick: Tick,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        self._launches.append(functools.partial(self._real.run_ticked, tick, table, grads, addresses, buffers))


class Graph:
    """Holds to what ``torch.cuda.CUDAGraph`` does with one ``step()``: nothing runs while it is captured, and a replay
    runs no Python of the optimizer's, on the very tensors that the capture saw."""

    def __init__(self) -> None:
        self._launches: list[Callable[[], None]] = []

    def capture(self, opt: Any, monkeypatch: pytest.MonkeyPatch, step: Callable[[], Any] | None = None) -> Graph:
        with monkeypatch.context() as patch:
            patch.setattr("deeprelax.relaxation.capturing", lambda device: True)
            for params in (params for sets in opt._sets for params in sets):
                patch.setattr(params, "backend", Recorder(params.backend, self._launches))
            patch.setattr(opt, "_tick_backend", lambda: opt._sets[0][0].backend)
            (step or opt.step)()
        return self

    @torch.no_grad()
    def replay(self) -> None:
        for launch in self._launches:
            launch()
