"""The tasks: a network, batches from real data, a loss and a figure on data that no gradient has seen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprelax.batchnorm import recalibrate_batchnorm
from deeprelax.experiments.data import cifar, datasets
from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.evaluation import evaluate, recalibration_order
from deeprelax.experiments.models import digits_cnn, digits_mlp, lenet_authors


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: what the tables call it.
        figure: what is measured: "error" (a fraction) or "nats" (mean cross-entropy).
        model: makes the network; its weights come from torch's global generator.
        batches: batches for ever, from a generator.
        loss: of the network on a batch.
        measure: the figure of the network.
        prepare: before it is measured: batch norm's statistics at the present weights.
        gradients: of a run.
    """

    name: str
    figure: str
    model: Callable[[], nn.Module]
    batches: Callable[[torch.Generator], Iterator[tuple[Tensor, Tensor]]]
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    measure: Callable[[nn.Module], float]
    prepare: Callable[[nn.Module], None]
    gradients: int


def digits_cnn_without_batchnorm() -> nn.Module:
    """``models.digits_cnn`` with biases in the place of its batch norm."""
    layers: list[nn.Module] = []
    for layer in digits_cnn().children():
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.Linear(layer.in_features, layer.out_features))
        elif not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layers.append(layer)
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, around which their input goes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=after // before, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.around = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the sum."""
        return F.relu(self.way(x) + self.around(x))


def small_resnet() -> nn.Module:
    """For images of 3x32x32: three residual blocks of 16, 32 and 64 channels; 77,466 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16),
        Residual(16, 32),
        Residual(32, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Transformer(nn.Module):
    """A character transformer: pre-norm, causal, learned positions.

    Args:
        characters: of the alphabet.
        context: characters that are seen at once.
        width: of the residual stream; the hidden layer has four times as many.
        depth: blocks.
    """

    def __init__(self, characters: int, context: int = 64, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, characters)
        for p in self.blocks.parameters():  # the layers are copies of one
            if p.dim() > 1:
                nn.init.normal_(p, std=0.05)

    def forward(self, text: Tensor) -> Tensor:
        """(batch, context) character numbers → (batch, context, characters) logits of the next one."""
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        return self.out(self.blocks(self.embedding(text) + self.position, mask=mask, is_causal=True))  # type: ignore[no-any-return]


@cache
def python_topics() -> tuple[Tensor, int]:
    """The text of the language reference that every Python installation brings, as character numbers, and how many
    characters there are."""
    topics = importlib.import_module("pydoc_data.topics").topics
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[c] for c in text]), len(alphabet)


def text_task(gradients: int, width: int, depth: int) -> Task:
    """Nats a character on the last tenth of the text."""
    text, characters = python_topics()
    cut, context = len(text) * 9 // 10, 64

    def windows(starts: Tensor) -> tuple[Tensor, Tensor]:
        every = text[starts[:, None] + torch.arange(context + 1)]
        return every[:, :-1], every[:, 1:]

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield windows(torch.randint(cut - context - 1, (16,), generator=generator))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        starts = torch.linspace(cut, len(text) - context - 1, 128).long()
        return float(loss(model, windows(starts)))

    model = lambda: Transformer(characters, context, width, depth)  # noqa: E731
    return Task("transformer, text", "nats", model, batches, loss, measure, lambda model: None, gradients)


def image_task(name: str, data: Data, model: Callable[[], nn.Module], gradients: int, batch: int) -> Task:
    """The error on the validation images."""
    count = len(data.train_inputs)

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for chosen in torch.split(torch.randperm(count, generator=generator)[: count // batch * batch], batch):
                yield data.train_inputs[chosen], data.train_targets[chosen]

    def prepare(network: nn.Module) -> None:
        order = recalibration_order(count, torch.device("cpu"))[: min(count, 20 * batch)]
        recalibrate_batchnorm(network, (data.train_inputs[chosen] for chosen in torch.split(order, batch)))

    def loss(network: nn.Module, each: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(each[0]), each[1])

    def measure(network: nn.Module) -> float:
        return evaluate(network, data.validation_inputs, data.validation_targets)[0]

    return Task(name, "error", model, batches, loss, measure, prepare, gradients)


def subset(data: Data, train: int, validation: int) -> Data:
    """So many images of each part, the same ones each time; files may hold them class by class."""
    chosen = [
        torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))[:count]
        for targets, count in ((data.train_targets, train), (data.validation_targets, validation))
    ]
    training = data.train_inputs[chosen[0]], data.train_targets[chosen[0]]
    return Data(data.name, *training, data.validation_inputs[chosen[1]], data.validation_targets[chosen[1]])


def cifar10(folder: Path | None) -> Data:
    """CIFAR-10 with the training images' mean and deviation taken out; the test images are the validation set."""
    train_x, train_y, test_x, test_y = (torch.from_numpy(array) for array in cifar.cifar10_arrays(folder))
    pixels = train_x.float()
    mean, deviation = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    inputs = [(images.float() - mean) / deviation for images in (train_x, test_x)]
    return Data("cifar10", inputs[0], train_y.long(), inputs[1], test_y.long())


# Gradients of a run of each task, and the transformer's width and depth, by preset.
PRESETS: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {"digits": (600,), "mnist": (400,), "cifar": (400,), "text": (600, 96, 3)},
    "long": {"digits": (100_000,), "mnist": (100_000,), "cifar": (100_000,), "text": (100_000, 96, 3)},
    "gpu": {"digits": (2000,), "mnist": (4000,), "cifar": (8000,), "text": (10000, 384, 6)},
    "test": {"digits": (40,), "mnist": (8,), "cifar": (8,), "text": (24, 16, 1)},
}
NAMES = ("digits-mlp", "digits-cnn", "mnist-cnn", "cifar-resnet", "text-transformer")


def digest(name: str, folder: Path | None) -> str:
    """A checksum of all that the task of that name trains and measures on, before it is scaled.

    Raises:
        DataError: as ``make``.
    """
    if name == "mnist-cnn":
        return datasets.digest(*datasets.mnist_arrays(folder))
    if name == "cifar-resnet":
        return datasets.digest(*cifar.cifar10_arrays(folder))
    if name == "text-transformer":
        return datasets.digest(python_topics()[0].numpy())
    return datasets.digest(*datasets.digits_arrays())


def source(name: str) -> str:
    """What has to be as it was for the data of the task of that name to be as they were."""
    if name == "text-transformer":
        return "its text is Python's documentation: use the Python of those runs"
    if name in ("mnist-cnn", "cifar-resnet"):
        return "give the --data of those runs"
    return "digits come with scikit-learn: use the version of those runs"


def make(name: str, preset: str, folder: Path | None) -> Task:
    """The task of that name.

    Args:
        name: one of ``NAMES``.
        preset: a key of ``PRESETS``.
        folder: of the data sets; see ``datasets.load``.

    Raises:
        DataError: data are missing or damaged.
    """
    sizes = PRESETS[preset]
    if name == "digits-mlp":
        return image_task("digits, MLP", datasets.load("digits"), digits_mlp, sizes["digits"][0], 64)
    if name == "digits-cnn":
        data = datasets.load("digits")
        return image_task("digits, CNN, no batch norm", data, digits_cnn_without_batchnorm, sizes["digits"][0], 64)
    if name == "mnist-cnn":
        data = subset(datasets.load("mnist", folder), 20_000, 2_000)
        return image_task("MNIST, CNN", data, lenet_authors, sizes["mnist"][0], 64)
    if name == "cifar-resnet":
        data = subset(cifar10(folder), 20_000, 2_000)
        return image_task("CIFAR-10, ResNet", data, small_resnet, sizes["cifar"][0], 64)
    gradients, width, depth = sizes["text"]
    return text_task(gradients, width, depth)
