"""The two data sets of Table 1, preprocessed as a preset says, with a checksum of the images they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deeprelax.experiments.data import whitening
from deeprelax.experiments.data.cifar import cifar10_arrays
from deeprelax.experiments.data.datasets import Data, digest, mnist_arrays
from deeprelax.experiments.table1.protocol import WHITENING


def arrays(dataset: str, folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; errors as of ``load``."""
    return mnist_arrays(folder) if dataset == "mnist" else cifar10_arrays(folder)


def load(dataset: str, preset: str, folder: Path | None, cache: Path) -> tuple[Data, str]:
    """Images and their checksum.

    Args:
        dataset: "mnist" (raw values 0 to 255) or "cifar10" (normalised and whitened).
        preset: a key of ``protocol.NETWORKS``.
        folder: of the data, as ``data.load``.
        cache: where the whitening transform is kept.

    Raises:
        DataError, ImportError: as ``mnist_arrays`` and ``cifar10_arrays``.
    """
    train_x, train_y, test_x, test_y = arrays(dataset, folder)
    checksum = digest(train_x, train_y, test_x, test_y)
    if dataset == "mnist":
        train_x, test_x = train_x[:, None].astype(np.float32), test_x[:, None].astype(np.float32)
    else:
        chosen = WHITENING[preset]
        shape = train_x.shape[1:]
        train, test = (whitening.normalise(x, whitening.PRESETS[chosen]) for x in (train_x, test_x))
        transform = whitening.cached(train, chosen, checksum, cache)
        train_x, test_x = (transform.apply(x).reshape(-1, *shape) for x in (train, test))
    targets = (torch.from_numpy(y.astype(np.int64)) for y in (train_y, test_y))
    return Data(dataset, torch.from_numpy(train_x), next(targets), torch.from_numpy(test_x), next(targets)), checksum
