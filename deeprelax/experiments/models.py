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
    """For images of 1x28x28: the paper's section 7.2, sized as its authors' program; 131,220 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Dropout(0.25),
        nn.Conv2d(20, 50, 5),
        nn.BatchNorm2d(50),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(200, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "digits-cnn": (digits_cnn, (1, 8, 8)),
    "digits-mlp": (digits_mlp, (1, 8, 8)),
    "lenet": (lenet, (1, 28, 28)),
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
