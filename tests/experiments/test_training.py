"""A real training run: every optimizer learns the digits."""

from __future__ import annotations

import pytest
import torch

from deeprelax.experiments import recipes
from deeprelax.experiments.data.datasets import Data, load
from deeprelax.experiments.evaluation import recalibrate, recalibration_order
from deeprelax.experiments.models import MODELS, build
from deeprelax.experiments.runs import OPTIMIZERS, Run
from deeprelax.experiments.training import train

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 14


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


RUNS = [recipes.run("digits", optimizer, 0, epochs=EPOCHS) for optimizer in OPTIMIZERS]
DEFAULTS = [Run("", "digits-cnn", optimizer, 0, EPOCHS, {}, ()) for optimizer in ("entropy-sgd", "hj", "heat")]


@pytest.mark.parametrize(
    "run", RUNS + DEFAULTS, ids=lambda run: f"{run.optimizer}-{'recipe' if run.options else 'defaults'}"
)
def test_every_optimizer_learns_the_digits_also_with_its_defaults(digits: Data, run: Run) -> None:
    result, _ = train(run, digits)
    assert len(result.validation_error) == EPOCHS
    assert result.validation_error[-1] < 0.04
    assert result.training_loss[-1] < 0.5


def test_training_leaves_the_callers_generator_alone(digits: Data) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(recipes.run("digits", "heat", 1, epochs=1), digits)
    assert torch.equal(torch.rand(3), expected)


def recalibrated(data: Data, order: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = build("digits-cnn", data.train_inputs.shape[1:])
    recalibrate(model, data.train_inputs[order], batch_size=128)
    return [value for norm in (model[1], model[5], model[9]) for value in (norm.running_mean, norm.running_var)]


def test_recalibration_does_not_depend_on_how_the_images_are_stored(digits: Data) -> None:
    """Batches of one class each have a smaller variance, and other weights of the classes in it."""
    by_class = recalibrated(digits, digits.train_targets.argsort(stable=True))
    shuffled = recalibrated(digits, torch.randperm(1347, generator=torch.Generator().manual_seed(3)))
    for a, b in zip(by_class, shuffled):
        assert (a - b).norm() < 0.06 * b.norm()


def test_recalibration_averages_as_torch_without_synchronising(digits: Data) -> None:
    torch.manual_seed(0)
    model = build("digits-cnn", digits.train_inputs.shape[1:])
    model[1].running_mean.fill_(7)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        recalibrate(model, digits.train_inputs, batch_size=128)
    names = {event.key for event in profile.key_averages()}
    assert "aten::native_batch_norm" in names
    assert "aten::_local_scalar_dense" not in names
    found = [model[1].running_mean.clone(), model[9].running_var.clone()]
    assert model[1].momentum == 0.1
    for norm in (model[1], model[5], model[9]):
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None
    with torch.no_grad():
        for chosen in recalibration_order(1347, torch.device("cpu"))[:1280].split(128):
            model(digits.train_inputs[chosen])
    assert torch.equal(found[0], model[1].running_mean)
    assert torch.equal(found[1], model[9].running_var)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet", 431_220), ("lenet-authors", 131_220), ("allcnn", 1_372_254), ("allcnn-authors", 1_667_166)],
)
def test_the_papers_networks_have_their_size(name: str, parameters: int) -> None:
    """LeNet: 1·20·5² + 20 + 20·50·5² + 50 + (800 or 200)·500 + 500 + 5,010, and 2·(20 + 50) of batch norm."""
    shape = torch.Size(MODELS[name][1])
    with torch.device("meta"):
        model = build(name, shape)
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_digits_are_split_in_equal_proportion_and_always_alike(digits: Data) -> None:
    assert digits.train_inputs.shape == (1347, 1, 8, 8)
    assert digits.validation_inputs.shape == (450, 1, 8, 8)
    assert digits.validation_targets.bincount().min() >= 43
    assert torch.equal(load("digits").train_inputs, digits.train_inputs)
    assert abs(digits.train_inputs.mean().item()) < 1e-4
    assert abs(digits.train_inputs.std().item() - 1) < 1e-3
