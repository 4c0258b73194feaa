"""The networks of the experiments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def digits_cnn() -> nn.Module:
    """For images of 1x8x8: two 3x3 convolutions with batch norm, a hidden layer of 64; 38,394 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def digits_mlp() -> nn.Module:
    """For images of 1x8x8: two hidden layers of 64, no batch norm, so harder on an optimizer; 8,970 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def lenet() -> nn.Module:
    """For images of 1x28x28: section 7.2, batch norm and dropout after every convolution; 431,220 parameters.

    The section gives 20 and 50 channels and 500 hidden units; 5x5 kernels and 2x2 pooling are LeNet's own.
    """
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(20, 50, 5),
        nn.BatchNorm2d(50),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


def lenet_authors() -> nn.Module:
    """For images of 1x28x28: the authors' program, which pools by 3 first, puts batch norm after the pooling, and has
    a third dropout after the hidden layer; 131,220 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.BatchNorm2d(20),
        nn.Dropout(0.25),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(50),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(200, 500),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(500, 10),
    )


def _convolution(before: int, after: int, size: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, size, stride, padding), nn.BatchNorm2d(after), nn.ReLU()]


def _allcnn_base(width: int) -> list[nn.Module]:
    """The six layers that both variants share: 3x32x32 to (2 width)x8x8."""
    return [
        nn.Dropout(0.2),
        *_convolution(3, width),
        *_convolution(width, width),
        *_convolution(width, width, stride=2),
        nn.Dropout(0.5),
        *_convolution(width, 2 * width),
        *_convolution(2 * width, 2 * width),
        *_convolution(2 * width, 2 * width, stride=2),
        nn.Dropout(0.5),
    ]


def allcnn(width: int = 96) -> nn.Module:
    """For images of 3x32x32: All-CNN-C of Springenberg et al. (2014), their table 1, with batch norm after every
    convolution (section 7.3); 1,372,254 parameters.

    Args:
        width: channels of the first three convolutions, half of the others'.
    """
    return nn.Sequential(
        *_allcnn_base(width),
        *_convolution(2 * width, 2 * width, padding=0),
        *_convolution(2 * width, 2 * width, size=1, padding=0),
        *_convolution(2 * width, 10, size=1, padding=0),
        nn.AvgPool2d(6),
        nn.Flatten(),
    )


def allcnn_authors(width: int = 96) -> nn.Module:
    """For images of 3x32x32: the authors' program, whose seventh convolution is padded and whose eighth is 3x3;
    1,667,166 parameters.

    Args:
        width: as for ``allcnn``.
    """
    return nn.Sequential(
        *_allcnn_base(width),
        *_convolution(2 * width, 2 * width),
        *_convolution(2 * width, 2 * width),
        *_convolution(2 * width, 10, size=1, padding=0),
        nn.AvgPool2d(8),
        nn.Flatten(),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "digits-cnn": (digits_cnn, (1, 8, 8)),
    "digits-mlp": (digits_mlp, (1, 8, 8)),
    "lenet": (lenet, (1, 28, 28)),
    "lenet-authors": (lenet_authors, (1, 28, 28)),
    "allcnn": (allcnn, (3, 32, 32)),
    "allcnn-authors": (allcnn_authors, (3, 32, 32)),
}
# The networks of Table 1: the authors' layers, or those of sections 7.2 and 7.3.
NETWORKS = {
    "authors": {"lenet": "lenet-authors", "allcnn": "allcnn-authors"},
    "paper": {"lenet": "lenet", "allcnn": "allcnn"},
}


def build(name: str, image_shape: torch.Size) -> nn.Module:
    """The network ``name`` with fresh weights, drawn from torch's generator.

    Raises:
        ValueError: there is no such network, or it takes images of another shape (channels, height, width).
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join(MODELS)}")
    make, expected = MODELS[name]
    if tuple(image_shape) != expected:
        raise ValueError(f"{name} takes images of shape {expected}, and these have {tuple(image_shape)}")
    return make()
