"""skorch with ``EvalPoint``: what is validated, saved and predicted is x, and a loaded run continues exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SETTINGS, same_bits, values
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint
from torch import nn

import deeprelax
from deeprelax.integrations.skorch import EvalPoint

pytestmark = pytest.mark.usefixtures("one_thread")
DRAW = np.random.default_rng(0)
INPUTS = DRAW.standard_normal((40, 4)).astype("float32")
CLASSES = (INPUTS[:, 0] > 0).astype("int64")


class Recorder(Callback):  # type: ignore[misc]
    """x after every training batch, by ``at_x()``, and what a validation batch saw."""

    def on_batch_end(self, net: Any, training: bool = False, **_: Any) -> None:
        if training:
            with net.optimizer_.at_x():
                net.x = values(net.module_.parameters())
        else:
            net.validated = values(net.module_.parameters())


def network(name: str, folder: Path) -> Any:
    """Four batches of training an epoch, so that epochs end within cycles of three."""
    torch.manual_seed(0)
    settings = {**SETTINGS[name], "inner_steps": 3}
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(4, 2), nn.Softmax(-1)),
        optimizer=getattr(deeprelax, name),
        lr=settings.pop("lr"),
        batch_size=8,
        max_epochs=1,
        verbose=0,
        callbacks=[Recorder(), EvalPoint(), Checkpoint(dirname=folder, monitor=None)],
        **{f"optimizer__{key}": value for key, value in settings.items()},
    )
    return net.initialize()


def test_checkpoints_validation_and_the_end_are_x_and_loading_is_exact(name: str, tmp_path: Path):
    net = network(name, tmp_path)
    for _ in range(2):
        net.partial_fit(INPUTS, CLASSES)
        assert net.optimizer_.phase != 0
        for found in (torch.load(tmp_path / "params.pt", weights_only=True).values(), net.validated):
            assert same_bits(found, net.x)
        assert same_bits(net.module_.parameters(), net.x)
    other = network(name, tmp_path / "other")
    other.load_params(f_params=tmp_path / "params.pt", f_optimizer=tmp_path / "optimizer.pt")
    for each in (net, other):
        each.partial_fit(INPUTS, CLASSES)
    assert same_bits(net.module_.parameters(), other.module_.parameters())
