"""Streams, devices, launches without waiting, and what a failed launch says."""

from __future__ import annotations

import ctypes
import importlib
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import OPTIMIZERS, make, parameters, same_bits, set_gradients, values
from on_gpu import BACKENDS, ONE_GPU, backend_named, only_real, parameters_there, use
from torch.nn import Parameter

import deeprelax
from deeprelax.kernels import CycleState, Hyper, Scalars, Table
from deeprelax.kernels.scalars import HJ

pytestmark = only_real


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return str(request.param)


def contiguous() -> list[Parameter]:
    return [p for p in parameters() if p.is_contiguous() and p.numel()]


def test_a_step_runs_on_the_current_stream_in_the_order_of_its_work(name: str, backend: str) -> None:
    """The gradients come late on a side stream. On another stream the kernels would not find them yet."""
    mine = contiguous()
    theirs = parameters_there(mine)
    reference, opt = make(name, mine, backend="eager"), make(name, theirs, backend=backend)
    stream = torch.cuda.Stream()
    ready = [torch.zeros_like(q) for q in theirs]
    torch.cuda.synchronize()
    for step in range(9):
        set_gradients(mine, step)
        reference.step()
        new = [p.grad.pin_memory() for p in mine]
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)  # some 10 ms
            for q, into, g in zip(theirs, ready, new):
                q.grad = into.copy_(g, non_blocking=True)
            opt.step()
            found = [q.detach().clone() for q in theirs]
        stream.synchronize()  # this stream alone
        assert same_bits(values(mine), [v.cpu() for v in found]), step


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=ONE_GPU)
def test_parameters_may_be_on_a_device_other_than_the_current_one(name: str, backend: str) -> None:
    mine = contiguous()
    theirs = [Parameter(p.detach().to("cuda:1")) for p in mine]
    reference, opt = make(name, mine, backend="eager"), make(name, theirs, backend=backend)
    for step in range(9):
        set_gradients(mine, step)
        for p, q in zip(mine, theirs):
            q.grad = p.grad.to("cuda:1")
        reference.step()
        opt.step()
        assert torch.cuda.current_device() == 0
    assert same_bits(values(mine), [v.cpu() for v in values(theirs)])


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not hasattr(getattr(deeprelax, name), "exchange")])
@pytest.mark.parametrize(("capturable", "scaled"), [(False, False), (True, False), (True, True)])
def test_a_step_does_not_make_the_host_wait(
    name: str, backend: str, capturable: bool, scaled: bool, no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step uploads its tables; from the second on nothing waits, at any phase, with new gradients too. Those
    that exchange with other workers do wait: for whether one is due, and for the other workers' steps."""
    use(monkeypatch, backend, capturable)
    params = parameters_there(contiguous())
    opt = make(name, params, backend=backend, capturable=capturable)
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0, enabled=scaled)
    scaler.scale(torch.ones(1, device="cuda"))
    for step in range(10):
        for p in params:
            p.grad = torch.full_like(p, 0.1 * step)
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        scaler.step(opt)
        torch.cuda.set_sync_debug_mode("default")
        scaler.update()


@pytest.mark.parametrize("capturable", [False, True])
def test_gradients_at_new_addresses_reach_the_kernels_of_their_own_step(
    name: str, backend: str, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of steps are queued behind a busy device, each with gradients somewhere else: addresses that were
    written over before their copy had run would give another step's gradients, or freed memory."""
    use(monkeypatch, backend, capturable)
    count, steps = 12, 200
    draw = torch.Generator().manual_seed(1)
    start = [torch.randn(1000 + 37 * i, generator=draw) for i in range(count)]
    all_grads = [torch.randn(steps, s.numel(), generator=draw) for s in start]
    mine, theirs = ([Parameter(s.clone().to(device)) for s in start] for device in ("cpu", "cuda"))
    reference = make(name, mine, backend="cpu", scoping=0.0)
    opt = make(name, theirs, backend=backend, capturable=capturable, scoping=0.0)
    on_device = [g.cuda() for g in all_grads]
    for step in range(steps):
        for p, g in zip(mine, all_grads):
            p.grad = g[step]
        reference.step()
    torch.cuda.synchronize()
    kept = []
    for step in range(steps):
        if step % 20 == 0:
            torch.cuda._sleep(40_000_000)
        opt.zero_grad(set_to_none=True)
        kept = [*kept[-2:], torch.empty(500 + 300 * (step * 7 % 11), device="cuda")]  # the allocator is kept moving
        for q, g in zip(theirs, on_device):
            q.grad = g[step].clone()
        opt.step()
    torch.cuda.synchronize()
    assert all(bool(p.isfinite().all()) for p in mine)
    assert same_bits(values(mine), [v.cpu() for v in values(theirs)])


def test_a_launch_that_fails_says_which_kernel_and_what_sizes() -> None:
    """More blocks than a grid can have are refused by the driver before anything runs."""
    backend_named("cuda")
    module = importlib.import_module("deeprelax._cuda")
    weight = torch.zeros(1, device="cuda")
    table = Table([weight], [0])
    buffers = {"x": table.new_buffer(), "p": table.new_buffer()}
    update: Any = backend_named("cuda").bind(HJ, table, buffers)
    addresses, launch = array("q", [weight.data_ptr()]), update._launch
    launch.grads = addresses.buffer_info()[0]
    n_chunks, device = launch.n_chunks, launch.device
    for n, where, message in (
        (2**31, device, r"hj<float32>, 2147483648 chunks of \d+ elements .*cuda:0: .*cudaError"),
        (n_chunks, 99, r"chunks of \d+ elements .*cuda:99: .*cudaErrorInvalidDevice"),
    ):
        *_, first_chunks = update._kept
        first_chunks[-1] = launch.n_chunks = n
        launch.device = where
        with pytest.raises(RuntimeError, match=message):
            module.run(update._address, ctypes.addressof(scalars()), torch.cuda.current_stream().cuda_stream)
    assert_that_it_goes_on()


def scalars() -> Scalars:
    """The scalars of a cycle of one call with η = α = 0.5."""
    hyper = Hyper(inner_steps=1, keep=1.0, alpha=0.5)
    return HJ.scalars(hyper, CycleState(0.5, 0.0, 1.0, 1.0, step=0, phase=0, cycle_steps=1, fresh=True, seed=0))


def assert_that_it_goes_on() -> None:
    """The error belonged to one launch: the next one works."""
    w, g = torch.ones(100, device="cuda"), torch.ones(100, device="cuda")
    table = Table([w], [0])
    buffers = {"x": table.new_buffer(), "p": table.new_buffer()}
    backend_named("cuda").bind(HJ, table, buffers).run(scalars(), [g], array("q", [g.data_ptr()]))
    assert bool((w.cpu() == 0.75).all())
