"""The recipes of LeNet learn from its first effective epochs on, at the schedule of the paper's full length.

Runs of three effective epochs fall to a tenth of the rate after one and a half: they cannot show it.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.runner import Runner, numerics
from deeprelax.experiments.table1 import protocol

pytestmark = pytest.mark.usefixtures("one_thread")

GRADIENTS = 200  # of batches of 16: 2.3 effective epochs; 10 outer updates of Entropy-SGD


@pytest.fixture(scope="module")
def digits() -> Data:
    """scikit-learn's digits in MNIST's size and range."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    x, y = F.pad(F.interpolate(pixels, scale_factor=3), (2, 2, 2, 2)), torch.from_numpy(labels)
    return Data("digits", x[:1400], y[:1400], x[1400:], y[1400:])


def error(data: Data, preset: str, optimizer: str, **options: object) -> float:
    run = protocol.run(preset, "lenet", optimizer, 0, options=options)
    with numerics(run, torch.device("cpu")):
        runner = Runner(dataclasses.replace(run, batch_size=16), data)
        runner.advance(GRADIENTS)
        assert runner.rate == run.options["lr"]  # the schedule is that of the full length
        return runner.evaluate()[0]


@pytest.mark.parametrize(
    ("preset", "optimizer"),
    [("authors", "entropy-sgd"), ("authors", "heat"), ("authors", "hj"), ("paper", "entropy-sgd")],
)
def test_a_recipe_learns_in_its_first_effective_epochs(digits: Data, preset: str, optimizer: str) -> None:
    assert error(digits, preset, optimizer) < 0.3


def test_the_momenta_of_one_program_with_the_rate_of_the_other_collapse(digits: Data) -> None:
    """What the recipe was before: η = 1 with the outer momentum that belongs to η = 0.1. The test above sees it."""
    both = {"momentum": 0.9, "carry_inner_momentum": True}
    assert error(digits, "authors", "entropy-sgd", **both) > 0.8
