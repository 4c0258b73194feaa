"""The networks of Table 1's runs are the paper's and its authors', layer by layer, and so are the images they get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import write_mnist
from test_whitening import images, reference
from torch import Tensor, nn

from deeprelax.experiments.data import inputs, whitening
from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.runner import Runner, numerics
from deeprelax.experiments.table1 import experiment, protocol

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")

# RECIPES, the authors' program, and issue 4: 5x5 convolution, ReLU, pool by 3 and then by 2, batch norm, dropout.
LENET_AUTHORS = [
    *("conv 1-20 5x5", "ReLU", "max 3", "norm 20", "dropout 0.25"),
    *("conv 20-50 5x5", "ReLU", "max 2", "norm 50", "dropout 0.25"),
    *("flatten", "linear 200-500", "ReLU", "dropout 0.25", "linear 500-10"),
]
# Section 7.2: 20 and 50 channels, batch norm and dropout 0.25 after every convolution, 500 hidden units. It leaves the
# kernels and the pooling to "a standard LeNet", which has 5x5 and 2x2.
LENET = [
    *("conv 1-20 5x5", "norm 20", "ReLU", "max 2", "dropout 0.25"),
    *("conv 20-50 5x5", "norm 50", "ReLU", "max 2", "dropout 0.25"),
    *("flatten", "linear 800-500", "ReLU", "linear 500-10"),
]


def layers(*convolutions: str) -> list[str]:
    """Each with the batch norm and the ReLU that follow it: conv → BN → ReLU (issue 4)."""
    return [part for conv in convolutions for part in (conv, f"norm {conv.split()[1].partition('-')[2]}", "ReLU")]


# Table 1 of Springenberg et al. (2014), All-CNN-C; dropout 0.2 of the images and 0.5 after each stride of 2 (issue 4).
SIX = [
    "dropout 0.2",
    *layers("conv 3-96 3x3 padded", "conv 96-96 3x3 padded", "conv 96-96 3x3 padded /2"),
    "dropout 0.5",
    *layers("conv 96-192 3x3 padded", "conv 192-192 3x3 padded", "conv 192-192 3x3 padded /2"),
    "dropout 0.5",
]
ALLCNN = [*SIX, *layers("conv 192-192 3x3", "conv 192-192 1x1", "conv 192-10 1x1"), "average 6", "flatten"]
# RECIPES: the authors pad the seventh, so that 8x8 are left, and have 3x3 in the eighth.
ALLCNN_AUTHORS = [
    *SIX,
    *layers("conv 192-192 3x3 padded", "conv 192-192 3x3 padded", "conv 192-10 1x1"),
    *("average 8", "flatten"),
]
NETWORKS = {
    ("authors", "lenet"): LENET_AUTHORS,
    ("paper", "lenet"): LENET,
    ("authors", "allcnn"): ALLCNN_AUTHORS,
    ("paper", "allcnn"): ALLCNN,
}
SHAPES = {"lenet": (1, 28, 28), "allcnn": (3, 32, 32)}
every_network = pytest.mark.parametrize(("preset", "model"), NETWORKS)


def network(preset: str, model: str) -> nn.Module:
    """The one that a run trains, as the runner makes it."""
    x, y = torch.zeros(128, *SHAPES[model]), torch.zeros(128, dtype=torch.int64)
    return Runner(protocol.run(preset, model, "sgd", 0), Data(model, x, y, x, y)).model


def batch(model: str, count: int = 4) -> Tensor:
    """Images without a zero."""
    return 1 + torch.rand(count, *SHAPES[model], generator=torch.Generator().manual_seed(1))


Hook = Callable[[nn.Module, Tensor, Tensor], None]


def forward(model: nn.Module, inputs: Tensor, hook: Hook) -> Tensor:
    """The logits; ``hook`` is called with each layer, what it was given and what it made, in the order of the pass."""

    def call(layer: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
        hook(layer, arguments[0], result)

    handles = [m.register_forward_hook(call) for m in model.modules() if not list(m.children())]
    with torch.no_grad():
        logits: Tensor = model(inputs)
    for handle in handles:
        handle.remove()
    return logits


def named(layer: Any, given: Tensor) -> str:
    """A layer in the words of the lists above. What they have no words for is refused."""
    if isinstance(layer, nn.Conv2d):
        assert (layer.groups, layer.dilation, layer.bias is None) == (1, (1, 1), False)
        (size, _), (stride, _), padding = layer.kernel_size, layer.stride, layer.padding
        assert (layer.kernel_size, layer.stride) == ((size, size), (stride, stride))
        assert padding in ((0, 0), (size // 2, size // 2))
        ends = (" padded" if padding != (0, 0) else "") + (f" /{stride}" if stride != 1 else "")
        return f"conv {layer.in_channels}-{layer.out_channels} {size}x{size}{ends}"
    if isinstance(layer, nn.BatchNorm2d):
        return f"norm {layer.num_features}"
    if isinstance(layer, nn.MaxPool2d):
        assert (layer.stride, layer.padding) == (layer.kernel_size, 0)
        return f"max {layer.kernel_size}"
    if isinstance(layer, nn.AvgPool2d):
        assert given.shape[2:] == (layer.kernel_size, layer.kernel_size), "of the whole map"
        return f"average {layer.kernel_size}"
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features}-{layer.out_features}"
    return {nn.ReLU: "ReLU", nn.Flatten: "flatten", nn.Dropout: f"dropout {getattr(layer, 'p', '')}"}[type(layer)]


@every_network
def test_a_preset_trains_its_network_layer_by_layer(preset: str, model: str) -> None:
    """In the order in which the images pass them."""
    passed: list[str] = []
    logits = forward(network(preset, model), batch(model), lambda layer, x, _: passed.append(named(layer, x)))
    assert passed == NETWORKS[preset, model]
    assert logits.shape == (4, 10)


@every_network
def test_only_dropout_is_random_and_it_drops_the_stated_fraction(preset: str, model: str) -> None:
    """What remains is scaled up, so that the mean stays. In evaluation nothing is dropped."""
    trained = network(preset, model).train()
    torch.manual_seed(0)
    dropped: list[float] = []

    def watch(layer: nn.Module, given: Tensor, made: Tensor) -> None:
        if isinstance(layer, nn.Dropout):
            there = given != 0
            gone = (made == 0) & there
            rate = (gone.sum() / there.sum()).item()
            dropped.append(rate)
            torch.testing.assert_close(made[~gone], given[~gone] / (1 - layer.p))

    forward(trained, batch(model, 16), watch)
    expected = [float(layer.split()[1]) for layer in NETWORKS[preset, model] if layer.startswith("dropout")]
    assert dropped == pytest.approx(expected, abs=0.02)
    dropped.clear()

    def unchanged(layer: nn.Module, given: Tensor, made: Tensor) -> None:
        if isinstance(layer, nn.Dropout):
            dropped.append((made != given).sum().item())

    for layer in trained.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    first, second = (forward(trained, batch(model), unchanged) for _ in range(2))
    assert dropped == [0] * 2 * len(expected)
    assert torch.equal(first, second)


# What they are given.


def watched(runner: Runner) -> list[Tensor]:
    """The list to which every batch is added that the network will be given."""
    given: list[Tensor] = []
    runner.model.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0].clone()))
    return given


@pytest.mark.parametrize("preset", ["authors", "paper"])
def test_an_epoch_has_every_image_once_or_is_drawn_with_replacement(preset: str) -> None:
    """Images of the training set, not augmented, and in another order in the next epoch."""
    x = torch.rand(640, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    data = Data("mnist", x, torch.arange(640) % 10, x[:1], torch.zeros(1, dtype=torch.int64))
    run = protocol.run(preset, "lenet", "hj", 0)
    with numerics(run, CPU):
        runner = Runner(run, data)
        given = watched(runner)
        runner.advance(10)
    assert [batch.shape for batch in given] == [(128, 1, 28, 28)] * 10
    epochs = [[image.numpy().tobytes() for image in torch.cat(given[k : k + 5])] for k in (0, 5)]
    assert epochs[0] != epochs[1]
    for found in map(set, epochs):
        assert found <= {image.numpy().tobytes() for image in x}
        if preset == "authors":
            assert 360 < len(found) < 450  # 640 (1 - 1/e) = 405 are expected, with a deviation of 8
        else:
            assert len(found) == 640


@pytest.mark.parametrize("preset", ["authors", "paper"])
def test_the_network_is_given_mnist_as_it_is_in_the_files(preset: str, tmp_path: Path) -> None:
    """Section 7.1: no preprocessing; RECIPES: 0 to 255. In training, recalibration and evaluation."""
    raw = write_mnist(tmp_path, train=256, test=40)
    train, test = (
        torch.from_numpy(np.fromfile(raw / f"{name}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 1, 28, 28)).float()
        for name in ("train", "t10k")
    )
    run = protocol.run(preset, "lenet", "sgd", 0)
    data, _ = experiment.Loader(tmp_path, tmp_path / "cache", CPU)(run)
    with numerics(run, CPU):
        runner = Runner(run, data)
        given = watched(runner)
        runner.advance(2)
        runner.evaluate()
    assert (train.min().item(), train.max().item()) == (0, 255)
    known = {image.numpy().tobytes() for image in train}
    *of_training, of_validation = given
    assert all(image.numpy().tobytes() in known for batch in of_training for image in batch)
    assert len(of_training) == 2 + 2 + 1
    assert torch.equal(of_validation, test)  # section 7.1: the test set serves for validation


def test_cifar_is_whitened_as_the_runs_preset_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 4: the authors' and pylearn2's. Both from one folder, as of one --out; images of 3x4x4 take no time."""
    x, y = images(400)[:, :4, :4].transpose(0, 3, 1, 2), np.arange(400, dtype=np.uint8) % 10
    monkeypatch.setattr(inputs, "cifar10_arrays", lambda _: (x[:300], y[:300], x[300:], y[300:]))
    whitened = {}
    for preset, name in (("authors", "authors"), ("paper", "pylearn2")):
        run = protocol.run(preset, "allcnn", "hj", 0)
        data, digest = experiment.Loader(tmp_path, tmp_path / "cache", CPU)(run)
        with monkeypatch.context() as patch:
            patch.setattr(whitening, "fit", lambda *_: pytest.fail("it is in the cache"))
            again, digest_again = experiment.Loader(tmp_path, tmp_path / "cache", CPU)(run)
        assert digest == digest_again
        assert torch.equal(data.train_inputs, again.train_inputs)
        for part, some, labels in (("train", x[:300], y[:300]), ("validation", x[300:], y[300:])):
            expected = reference(x[:300], some, name).reshape(-1, 3, 4, 4)
            found = getattr(data, f"{part}_inputs").numpy()
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            assert getattr(data, f"{part}_targets").tolist() == labels.tolist()
        whitened[preset] = found
    assert np.abs(whitened["authors"] - whitened["paper"]).max() > 0.1
