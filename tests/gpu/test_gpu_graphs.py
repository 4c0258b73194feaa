"""A captured step, replayed, gives the bits of the uncaptured run on the CPU."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
import torch
from conftest import make, same_bits, set_gradients, values
from on_gpu import BACKENDS, DEVICE, EMULATED, Graph, give_gradients, only_real, parameters_there, use, warm_up
from test_capturable import SCHEDULERS, dense
from torch.nn import Parameter


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param, capturable=True)
    return str(request.param)


def pair(
    name: str, backend: str, mine: list[Parameter] | None = None, **changes: Any
) -> tuple[list[Parameter], Any, list[Parameter], Any]:
    """The reference's parameters and optimizer, and those on the device."""
    mine = dense() if mine is None else mine
    theirs = parameters_there(mine)
    reference = make(name, mine, backend="eager", **changes)
    return mine, reference, theirs, make(name, theirs, backend=backend, capturable=True, **changes)


def reference_step(
    reference: Any, mine: list[Parameter], theirs: list[Parameter], step: int, in_place: bool = False
) -> None:
    """A step of the reference with new gradients, which the parameters on the device get too."""
    set_gradients(mine, step)
    give_gradients(mine, theirs, in_place)
    reference.step()


def same(mine: list[Parameter], theirs: list[Parameter]) -> bool:
    return same_bits(values(mine), [v.cpu() for v in values(theirs)])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_replayed_step_gives_the_uncaptured_bits_when_scheduled(
    name: str, backend: str, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten replays of one capture go through two and a half cycles of 4; a rate or a phase baked in would show."""
    mine, reference, theirs, opt = pair(name, backend)
    schedules = [SCHEDULERS[scheduler](o) for o in (reference, opt)]
    graph: Graph | None = None
    for step in range(13):
        reference_step(reference, mine, theirs, step, in_place=True)
        if step < 2:
            warm_up(opt.step)
        else:
            if graph is None:
                before = values(theirs)
                graph = Graph(opt, monkeypatch)
                assert same_bits(before, values(theirs))  # a capture runs nothing
            graph.replay()
        for schedule in schedules:
            schedule.step()
        assert same(mine, theirs), step
        clocks = [(o.phase, o.gamma, o.outer_step_happened) for o in (reference, opt)]
        assert clocks[0] == clocks[1], step


@pytest.mark.parametrize("tensors", [1, 3])
def test_an_odd_number_of_tensors_can_be_captured_more_than_once(
    name: str, backend: str, tensors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every capture has its own place for the gradients' addresses, 8 bytes each: Triton would compile another
    kernel for a place that is no multiple of 16, and a capture cannot load one."""
    weights = [Parameter(torch.linspace(-1, 1, 5 + i)) for i in range(tensors)]
    mine, reference, theirs, opt = pair(name, backend, weights)
    for step in range(4):
        reference_step(reference, mine, theirs, step)
        if step == 0:
            warm_up(opt.step)
        else:
            Graph(opt, monkeypatch).replay()
        assert same(mine, theirs), step


def test_the_very_first_step_may_be_captured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been launched before: whatever a capture cannot do was done when the optimizer was made.

    Triton's kernels are compiled in a first step, and it says so.
    """
    use(monkeypatch, "cuda", capturable=True)
    mine, reference, theirs, opt = pair(name, "cuda")
    for q in theirs:
        q.grad = torch.zeros_like(q)
    before = values(theirs)
    graph = Graph(opt, monkeypatch)
    assert same_bits(before, values(theirs))
    for step in range(9):
        reference_step(reference, mine, theirs, step, in_place=True)
        graph.replay()
        assert same(mine, theirs), step


@only_real
def test_a_triton_kernel_that_is_new_in_a_capture_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """New in this process: other tests of a worker have launched the same kernels."""
    use(monkeypatch, "triton", capturable=True)
    update = importlib.import_module("deeprelax.kernels.triton.kernels").update
    monkeypatch.setattr(update, "device_caches", defaultdict(update.create_binder))
    mine, _, theirs, opt = pair(name, "triton", weight_decay=0.0)
    set_gradients(mine, 0)
    give_gradients(mine, theirs)
    warm_up(opt.step)
    opt.param_groups[0]["weight_decay"] = 0.1
    before = values(theirs)
    with pytest.raises(RuntimeError, match=r"run one step\(\) with the same settings before"):
        Graph(opt, monkeypatch)
    assert same_bits(before, values(theirs))
    warm_up(opt.step)
    Graph(opt, monkeypatch).replay()


@only_real
@pytest.mark.parametrize("rule", ["EntropySGD", "HJ", "Heat"])
def test_it_may_be_the_first_use_of_kernels_in_a_process(rule: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", f"very_first_step and {rule}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout


@only_real
def test_a_whole_training_step_in_one_graph_gives_the_same_bits(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same work on the same GPU, captured and not: gradients get new addresses in the graph's own memory."""
    torch.manual_seed(0)
    weights = [torch.randn(16, 8), torch.randn(16), torch.randn(4, 16)]
    runs = []
    for captured in (False, True):
        params = [Parameter(w.cuda()) for w in weights]
        opt = make(name, params, backend=backend, capturable=captured)
        inputs = torch.zeros(32, 8, device="cuda")

        def work(params: list[Parameter] = params, opt: Any = opt, inputs: torch.Tensor = inputs) -> None:
            opt.zero_grad(set_to_none=True)
            hidden = torch.tanh(torch.nn.functional.linear(inputs, params[0], params[1]))
            torch.nn.functional.linear(hidden, params[2]).square().mean().backward()
            opt.step()

        graph: Graph | None = None
        seen = []
        draw = torch.Generator().manual_seed(3)
        for step in range(13):
            inputs.copy_(torch.randn(32, 8, generator=draw))
            if not captured or step < 2:
                warm_up(work)
            else:
                graph = graph or Graph(opt, monkeypatch, work)
                graph.replay()
            seen.append([v.cpu() for v in values(params)])
        runs.append(seen)
    for step, (a, b) in enumerate(zip(*runs)):
        assert same_bits(a, b), step


def test_two_graphs_of_one_optimizer_take_turns(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own gradients, at other addresses."""
    mine, reference, theirs, opt = pair(name, backend)
    reference_step(reference, mine, theirs, 0)
    warm_up(opt.step)
    graphs, grads = [], []
    for _ in range(2):
        give_gradients(mine, theirs)
        grads.append([q.grad for q in theirs])
        graphs.append(Graph(opt, monkeypatch))
        reference_step(reference, mine, theirs, 5)  # for a step outside of any graph
        opt.step()
        assert same(mine, theirs)
    for step, which in enumerate([0, 1, 1, 0, 0, 1, 0, 1, 1]):
        set_gradients(mine, step + 7)
        for p, g in zip(mine, grads[which]):
            assert g is not None
            g.copy_(p.grad)
        reference.step()
        graphs[which].replay()
        assert same(mine, theirs), step


def test_capturing_without_a_gradient_is_refused_by_name(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = parameters_there(dense())
    named = [(f"layer{i}.weight", p) for i, p in enumerate(theirs)]
    opt = make(name, named, backend=backend, capturable=True)
    for p in theirs:
        p.grad = torch.ones_like(p)
    warm_up(opt.step)
    theirs[1].grad = None
    with pytest.raises(RuntimeError, match=r"layer1\.weight has no gradient while a CUDA graph is captured"):
        Graph(opt, monkeypatch)
    theirs[1].grad = torch.ones_like(theirs[1])
    warm_up(opt.step)


def test_capturing_without_capturable_is_refused(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = parameters_there(dense())
    opt = make(name, theirs, backend=backend)
    for p in theirs:
        p.grad = torch.ones_like(p)
    opt.step()
    with pytest.raises(RuntimeError, match="needs capturable=True"):
        Graph(opt, monkeypatch)


def test_a_replayed_step_follows_the_scaler(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale and overflow are read when the graph runs; an overflow changes nothing, clock included."""
    mine, reference, theirs, opt = pair(name, backend)
    scale, found_inf = (torch.full((), value, device=DEVICE) for value in (16.0, 0.0))
    for q in theirs:
        q.grad = torch.zeros_like(q)
    opt.grad_scale, opt.found_inf = scale, found_inf
    graph: Graph | None = None
    taken = 0
    for overflow in (False, False, True, False, False, True, False, False):
        scale.fill_(4.0 if taken % 2 else 16.0)
        found_inf.fill_(float(overflow))
        set_gradients(mine, taken)
        for p, q in zip(mine, theirs):
            q.grad.copy_(p.grad * float(scale))
        if overflow:
            theirs[0].grad[0] = float("inf")
        else:
            reference.step()
            taken += 1
        if taken == 1 and graph is None:
            warm_up(opt.step)
            graph = Graph(opt, monkeypatch)
        else:
            graph.replay()
        assert same(mine, theirs), (taken, overflow)
    assert opt.phase == reference.phase
    assert EMULATED or theirs[0].is_cuda
