"""A stand-in for a CUDA graph on machines without a GPU, and the backends that can be captured there."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deeprelax import kernels
from deeprelax.kernels import Tick, Update

BACKENDS = ["eager", "cpu", "cuda"]


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let ``make`` give the optimizers of this test that backend with CPU tensors; "cuda" is its code, emulated."""
    if name == "cuda":
        module = pytest.importorskip("deeprelax._cuda")
        from deeprelax.kernels.cuda import Cuda

        monkeypatch.setitem(conftest.BACKENDS, "auto", Cuda(module, emulated=True))
    elif kernels.why_not(name):
        pytest.skip(kernels.why_not(name))
    else:
        monkeypatch.setitem(conftest.BACKENDS, "auto", name)


class Recorder:
    """An update that notes what it is asked for and does it when the graph is replayed."""

    def __init__(self, real: Update, launches: list[Callable[[], None]]) -> None:
        self._real = real
        self._launches = launches

    def run(self, *arguments: Any) -> None:
        raise AssertionError("a captured step must not bake its scalars in")

    def run_ticked(self, tick: Tick, grads: list[Tensor | None], addresses: array[int]) -> None:
        self._launches.append(functools.partial(self._real.run_ticked, tick, grads, addresses))


class Operations(TorchDispatchMode):
    """Notes torch's own operations, which a graph repeats on the memory that the capture saw; reading a value
    on the host is an error in a capture."""

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


def exchange_if_due(opt: Any) -> None:
    """What a captured step leaves to the user, after a replay that ends a cycle."""
    if hasattr(opt, "exchange") and opt.outer_step_happened:
        opt.exchange()


class Graph:
    """Treats one ``step()`` as ``torch.cuda.CUDAGraph`` does: its launches run when it is replayed, on the tensors that
    the capture saw, without the optimizer's Python code."""

    def __init__(self) -> None:
        self._launches: list[Callable[[], None]] = []
        self._opt: Any = None

    def capture(self, opt: Any, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any] | None = None) -> Graph:
        self._opt = opt
        with monkeypatch.context() as patch:
            for module in ("groups", "relaxation", "clock", "device_clock", "elastic_sgd"):
                patch.setattr(f"deeprelax.optim.{module}.capturing", lambda device: True)
            for plan in opt._shared.plans:
                for bucket in plan.buckets:
                    patch.setattr(bucket, "update", Recorder(bucket.update, self._launches))
                    patch.setattr(bucket, "backend", SimpleNamespace(name="recorder", capturable=True))
                if hasattr(plan.clock, "backend"):
                    tick = functools.partial(self._record, plan.clock.backend.tick)
                    patch.setattr(plan.clock, "backend", SimpleNamespace(tick=tick))
            with Operations(self._launches):
                (work or opt.step)()
        return self

    def _record(self, tick: Callable[[Tick], None], of: Tick) -> None:
        self._launches.append(functools.partial(tick, of))

    @torch.no_grad()
    def replay(self) -> None:
        for launch in self._launches:
            launch()
        exchange_if_due(self._opt)
