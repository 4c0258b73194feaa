"""Whole optimizers on the Triton backend, captured and replayed, in Triton's interpreter."""

import pytest
import torch
from capture import Graph, use
from conftest import make, same_bits, values
from interpreter import interpreted
from test_capturable import grads_in_place
from torch.nn import Parameter
from torch.optim.lr_scheduler import StepLR


@interpreted
def test_a_replayed_step_gives_the_bits_of_the_uncaptured_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five replays of one capture, which begins in mid-cycle, go through the cycles of 2 and of a learning rate: a rate
    or a phase baked in would show."""
    use(monkeypatch, "triton")
    torch.manual_seed(0)
    tensors = [torch.randn(5), torch.randn(2, 3).t()]
    a, b = ([Parameter(t.clone()) for t in tensors] for _ in range(2))
    reference = make(name, a, backend="eager", inner_steps=2)
    opt = make(name, b, capturable=True, inner_steps=2)
    assert {bucket.backend.name for bucket in opt._shared.plans[0].buckets} == {"triton"}
    schedules = [StepLR(each, 2, 0.3) for each in (reference, opt)]
    graph: Graph | None = None
    for step in range(6):
        for params in (a, b):
            grads_in_place(params, step)
        reference.step()
        if step == 0:
            opt.step()
        else:
            graph = graph or Graph().capture(opt, monkeypatch)
            graph.replay()
        for schedule in schedules:
            schedule.step()
        assert same_bits(values(a), values(b)), step
    clocks = [(each.phase, each.gamma, each.outer_step_happened) for each in (reference, opt)]
    assert clocks[0] == clocks[1]
