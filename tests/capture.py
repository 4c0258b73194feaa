"""A stand-in for a CUDA graph on machines without a GPU, and the backends that can be captured there."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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

    def prepare(self, table: Table, capturable: bool) -> None:
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


class Operations(TorchDispatchMode):
    """Notes torch's own operations, which a graph repeats on the memory that the capture saw; what asks the host for a
    value is an error in a capture."""

    def __init__(self, launches: list[Callable[[], None]]) -> None:
        super().__init__()
        self._launches = launches

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        assert "_local_scalar_dense" not in name, "a captured step must not wait for the device"
        result = function(*args, **kwargs)
        if function._schema.is_mutable:
            self._launches.append(functools.partial(function, *args, **kwargs))
        elif isinstance(result, Tensor) and not any(
            part in name for part in (".detach", ".alias", "view", "as_strided", "empty")
        ):
            self._launches.append(lambda: result.copy_(function(*args, **kwargs)))
        return result


class Graph:
    """Holds to what ``torch.cuda.CUDAGraph`` does with one ``step()``: its launches run when it is replayed, on the
    very tensors that the capture saw, with no Python of the optimizer's."""

    def __init__(self) -> None:
        self._launches: list[Callable[[], None]] = []

    def capture(self, opt: Any, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any] | None = None) -> Graph:
        with monkeypatch.context() as patch:
            for place in ("deeprelax.relaxation.capturing", "deeprelax.clocked.capturing"):
                patch.setattr(place, lambda device: True)
            for params in (params for sets in opt._sets for params in sets):
                patch.setattr(params, "backend", Recorder(params.backend, self._launches))
            patch.setattr(opt, "_tick_backend", lambda: opt._sets[0][0].backend)
            with Operations(self._launches):
                (work or opt.step)()
        return self

    @torch.no_grad()
    def replay(self) -> None:
        for launch in self._launches:
            launch()
