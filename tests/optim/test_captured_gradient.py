"""A whole gradient (batch, forward, backward, step) in a graph: the gradients' memory is the capture's own."""

from __future__ import annotations

import copy
import functools
from typing import Any

import capture
import pytest
import torch
from conftest import plain
from test_reproduce import LENET, data_for, narrow, small
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deeprelax.experiments.runner import Runner, numerics

__all__ = ["narrow"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class Operations(capture.Operations):
    """Also those that return several tensors; each is written again to the memory that the capture gave it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(function), kwargs or {}
        assert "_local_scalar_dense" not in name, "a captured step must not wait for the device"
        assert "zero_" not in name, "backward writes a gradient, it need not add it to zeros"
        result = function(*args, **kwargs)
        if not any(part in name for part in (".detach", ".alias", "view", "as_strided", "empty")):
            places = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self._launches.append(functools.partial(self._again, places, function, args, kwargs))
        return result

    @staticmethod
    def _again(places: list[Tensor], function: Any, args: Any, kwargs: Any) -> None:
        found = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor)]
        for place, value in zip(places, found, strict=True):
            if place is not value:
                place.copy_(value)


@pytest.mark.parametrize(("optimizer", "model"), [("entropy-sgd", "allcnn"), ("heat", "lenet"), ("hj", "lenet")])
def test_replays_of_a_captured_gradient_are_the_gradients_of_the_run(
    optimizer: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the end of an epoch and of cycles, with dropout, and evaluated in between."""
    capture.use(monkeypatch, "cpu")
    monkeypatch.setattr(capture, "Operations", Operations)
    run, data = small(optimizer, model), LENET if model == "lenet" else data_for(model)
    with numerics(run, CPU):
        expected = Runner(run, data)
        expected.advance(12)
        figures = expected.evaluate()
        expected.advance(14)
        runner = Runner(run, data)
        runner.rehearse()
        before = copy.deepcopy(runner.state())
        assert all(p.grad is not None for p in runner.model.parameters())
        graph = capture.Graph().capture(runner.optimizer, monkeypatch, runner._gradient)
        places = [p.grad.data_ptr() for p in runner.model.parameters() if p.grad is not None]
        runner.load_state(before)  # unlike a real capture, this one computes
        runner._step = graph.replay
        runner.advance(12)
        assert runner.evaluate() == figures
        runner.advance(14)
        assert [p.grad.data_ptr() for p in runner.model.parameters() if p.grad is not None] == places
        assert plain(runner.state()) == plain(expected.state())


@pytest.mark.parametrize(("changes", "last"), [({}, False), ({"tf32": True}, True), ({"autocast": "bf16"}, True)])
def test_networks_for_tensor_cores_are_channels_last(changes: dict[str, Any], last: bool) -> None:
    run = small("sgd", "allcnn", **changes)
    with numerics(run, CPU):
        runner = Runner(run, data_for("allcnn"))
        weights = [m.weight for m in runner.model.modules() if isinstance(m, torch.nn.Conv2d)]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.shape[2] > 1) is last
        assert torch.backends.cudnn.allow_tf32 is last
