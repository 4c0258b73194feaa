"""CIFAR-10 from its file through whitening to a network that trains on it."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_whitening import images

from deeprelax.experiments import models
from deeprelax.experiments.data import inputs, whitening
from deeprelax.experiments.table1 import protocol, store

pytestmark = pytest.mark.usefixtures("one_thread")


def test_cifar_is_whitened_once_and_trains_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images with noise, stored class by class as the file of 50,000 is. Whitened, 320 images of 3,072 values have
    nothing in common, so that a network can learn them and nothing else."""
    patterns, draw = images(10), np.random.default_rng(1)
    parts = {}
    for part, count in (("train", 320), ("test", 50)):
        labels = np.sort(np.arange(count) % 10).astype(np.uint8)
        noisy = patterns[labels] + draw.normal(scale=8, size=(count, 32, 32, 3))
        parts |= {f"x_{part}": noisy.clip(0, 255).astype(np.uint8), f"y_{part}": labels}
    np.savez(tmp_path / "cifar10.npz", **parts)
    data, digest = inputs.load("cifar10", "authors", tmp_path, tmp_path / "cache")
    assert data.train_inputs.shape == (320, 3, 32, 32)
    assert data.train_inputs.dtype == torch.float32
    variances = torch.linalg.svdvals(data.train_inputs.flatten(1).double()) ** 2 / 320
    assert variances[:310].std() < 0.05  # of the directions that 320 images have, each as long as the others
    assert variances[0] == pytest.approx(1, abs=0.05)
    monkeypatch.setattr(whitening, "fit", lambda *_: pytest.fail("it is in the cache"))
    again, digest_again = inputs.load("cifar10", "authors", tmp_path, tmp_path / "cache")
    assert digest == digest_again
    assert torch.equal(data.train_inputs, again.train_inputs)
    assert torch.equal(data.validation_inputs, again.validation_inputs)

    monkeypatch.setitem(
        models.MODELS, "allcnn-authors", (functools.partial(models.allcnn_authors, width=4), (3, 32, 32))
    )
    run = protocol.run("authors", "allcnn", "sgd", 0, epochs=14)
    run = dataclasses.replace(run, batch_size=16, options={**run.options, "lr": 0.03})
    assert store.execute(run, data, digest, tmp_path) == store.FINISHED
    first, *_, last = store.read(store.path_of(run, tmp_path)).records
    assert last["training_loss"] < first["training_loss"]
