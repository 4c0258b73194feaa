"""Where these tests run: on a GPU, or, to try the tests themselves, emulated with DEEPRELAX_EMULATE_GPU=1."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import conftest
import pytest
import torch
from capture import Graph as Recorded
from capture import exchange_if_due
from torch import Tensor
from torch.nn import Parameter

from deeprelax import kernels
from deeprelax.kernels import Backend
from deeprelax.kernels.reference import Eager

EMULATED = os.environ.get("DEEPRELAX_EMULATE_GPU") == "1"
DEVICE = "cpu" if EMULATED else "cuda"
BACKENDS = ["cuda", "triton"]
only_real = pytest.mark.skipif(EMULATED, reason="cannot be emulated")
# Why tests are skipped on a GPU. make gpu allows the first reason; at any other it says that something is not proven.
ONE_GPU, MEMORY = "one GPU", "GPU memory"


def backend_named(name: str) -> Backend:
    """The backend itself; a GPU on which it does not work fails the test."""
    if name == "eager":
        return Eager()
    if not EMULATED:
        if reason := kernels.why_not(name):
            pytest.fail(f"the {name} backend does not work here: {reason}")
        return kernels.get(name, torch.device(DEVICE))
    if name != "cuda":
        pytest.skip(f"{name} is not emulated")
    from deeprelax.kernels.cuda import Cuda

    return Cuda(importlib.import_module("deeprelax._cuda"), emulated=True)


def use(monkeypatch: pytest.MonkeyPatch, name: str, capturable: bool = False) -> None:
    """Optimizers can have the backend, or the test fails; emulated, they get it on CPU tensors."""
    found = backend_named(name)
    if capturable and not getattr(found, "capturable", False):
        pytest.fail(f"{name} cannot be captured")
    if EMULATED:
        monkeypatch.setitem(conftest.BACKENDS, name, found)


def moved(t: Tensor, device: str = DEVICE) -> Tensor:
    """A copy on the device with the strides, the gaps and the storage offset of the tensor."""
    t = t.detach()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride())) if t.numel() else 0
    storage = torch.zeros(t.storage_offset() + reach, dtype=t.dtype, device=device)
    there = storage.as_strided(t.shape, t.stride(), t.storage_offset())
    return there.copy_(t)


def parameters_there(params: list[Parameter]) -> list[Parameter]:
    """The same on the device."""
    return [Parameter(moved(p)) for p in params]


def give_gradients(params: list[Parameter], theirs: list[Parameter], in_place: bool = False) -> None:
    """The gradients of ``params`` for the parameters on the device, at new addresses or at those that they have."""
    for p, q in zip(params, theirs, strict=True):
        if in_place and q.grad is not None and p.grad is not None:
            q.grad.copy_(p.grad)
        else:
            q.grad = None if p.grad is None else moved(p.grad)


def flat(t: Tensor) -> Tensor:
    return t.detach().cpu().reshape(-1)


class Graph:
    """One step, captured after warm-up steps by the caller; on the CPU the recorder of tests/capture.py."""

    def __init__(self, opt: Any, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any] | None = None) -> None:
        if EMULATED:
            self.replay: Callable[[], None] = Recorded().capture(opt, monkeypatch, work).replay
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            (work or opt.step)()

        def replay() -> None:
            graph.replay()
            exchange_if_due(opt)

        self.replay = replay


def warm_up(work: Callable[[], Any]) -> None:
    """Once on a side stream, as torch's documentation has it before a capture."""
    if EMULATED:
        work()
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
