"""Data sets as whole tensors: scikit-learn's digits, which need no download, and MNIST from its original files."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEFAULT_FOLDER = Path(".data")
# The number of items and the MD5 of each published file of MNIST. Shorter files, as in tests, are not compared.
PUBLISHED = {
    "train-images-idx3-ubyte": (60_000, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_000, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (10_000, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_000, "27ae3e4e09519cfbb04c329615203637"),
}
MNIST_FILES = tuple(PUBLISHED)
PART_SEED = 0


class DataError(ValueError):
    """A data folder or file is missing or damaged; the message names it."""


@dataclass(frozen=True)
class Data:
    """Inputs are float32 (images, channels, height, width); targets are int64 class numbers."""

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor

    def to(self, device: torch.device) -> Data:
        """A copy on the device."""
        return Data(self.name, *(value.to(device) for value in vars(self).values() if isinstance(value, Tensor)))

    def part(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Copies of training inputs and targets ``begin`` to ``end`` of a random order that is always the same."""
        order = torch.randperm(len(self.train_targets), generator=torch.Generator().manual_seed(PART_SEED))
        chosen = order[begin:end].to(self.train_inputs.device)
        return self.train_inputs[chosen], self.train_targets[chosen]


def load(name: str, folder: Path | None = None) -> Data:
    """The data set ``name``.

    Args:
        name: "digits" or "mnist".
        folder: for MNIST, the folder that has MNIST/raw; None is ``.data``, made if need be.

    Raises:
        DataError: the folder or a file in it is missing or damaged, or cannot be downloaded.
        ImportError: scikit-learn, or for a download torchvision, is not installed.
    """
    if name == "digits":
        return _digits()
    if name == "mnist":
        return _mnist(folder)
    raise ValueError(f"no data set is called {name!r}; there are digits and mnist")


def _standardised(name: str, train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray]) -> Data:
    """One mean and one deviation for all pixels, the training set's: some pixels are the same in every image."""
    mean, deviation = train[0].mean(dtype=np.float64), train[0].std(dtype=np.float64)
    tensors = []
    for images, labels in (train, validation):
        scaled = ((images.astype(np.float32) - np.float32(mean)) / np.float32(deviation))[:, None]
        tensors += [torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))]
    return Data(name, *tensors)


def digest(*arrays: np.ndarray) -> str:
    """A checksum, 16 hexadecimal digits, of dtypes, shapes and values."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def digits_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """1,347 training images of 8x8 and their labels, 450 for validation and theirs, the classes in equal proportion in
    both; always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        images.reshape(-1, 8, 8), labels, test_size=450, stratify=labels, random_state=0
    )
    return train_x, train_y, val_x, val_y


def _digits() -> Data:
    train_x, train_y, val_x, val_y = digits_arrays()
    return _standardised("digits", (train_x, train_y), (val_x, val_y))


def mnist_arrays(folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels: uint8, (60000, 28, 28) and (60000,), and 10,000 for the test.

    Args:
        folder: the one that has MNIST/raw; downloaded to if it has nothing. None is ``.data``, made if need be.

    Raises:
        DataError, ImportError: as ``load``.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"no folder {folder}: give the one that has MNIST/raw in it, or an empty one to download to")
    folder = folder or DEFAULT_FOLDER
    raw = folder / "MNIST" / "raw"
    if not any(_find(raw, name) for name in MNIST_FILES):
        _download(folder)
    train_x, train_y, val_x, val_y = (_read_idx(raw, name) for name in MNIST_FILES)
    for name, images, labels in ((MNIST_FILES[1], train_x, train_y), (MNIST_FILES[3], val_x, val_y)):
        if len(images) != len(labels):
            raise DataError(f"{raw / name} has {len(labels)} labels for {len(images)} images")
        if labels.max() > 9:
            raise DataError(f"{raw / name} is damaged: it has a label {labels.max()}; 0 to 9 were expected")
    if train_x.shape[1:] != val_x.shape[1:]:
        raise DataError(
            f"{raw / MNIST_FILES[2]} has images of {_size(val_x)}, and {MNIST_FILES[0]} of {_size(train_x)}: both must "
            "be of one size; replace the file that is not MNIST's"
        )
    check_varied(raw / MNIST_FILES[0], train_x)
    return train_x, train_y, val_x, val_y


def _size(images: np.ndarray) -> str:
    return "x".join(str(n) for n in images.shape[1:])


def check_varied(path: Path, images: np.ndarray) -> None:
    """DataError, which names the file, if all pixels of all images are equal: their deviation would be 0."""
    if images.min() == images.max():
        raise DataError(
            f"{path} has {len(images)} images in which every pixel is {images.flat[0]}: nothing can be learned; "
            "replace the file"
        )


def _mnist(folder: Path | None) -> Data:
    """60,000 training images of 28x28; the 10,000 test images serve for validation, as in the paper."""
    train_x, train_y, val_x, val_y = mnist_arrays(folder)
    return _standardised("mnist", (train_x, train_y), (val_x, val_y))


def _find(raw: Path, name: str) -> Path | None:
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def torchvision_datasets() -> Any:
    """``torchvision.datasets``.

    Raises:
        DataError: it is a build for another torch.
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except (OSError, RuntimeError) as error:
        raise DataError(
            "torchvision, which downloads data sets and reads cifar-10-batches-py, is not a build for torch "
            f"{torch.__version__}, CPU or CUDA: install one ({error})"
        ) from error


def _download(folder: Path) -> None:
    torchvision = torchvision_datasets()
    try:
        torchvision.MNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"MNIST is not in {folder / 'MNIST' / 'raw'}, and downloading it failed: {error}") from error


def _read_idx(raw: Path, name: str) -> np.ndarray:
    """The uint8 array in an idx file, plain or gzipped: (images, height, width) or (labels,).

    torchvision reads plain files only and checks no MD5 of theirs.
    """
    path = _find(raw, name)
    if path is None:
        raise DataError(f"{raw / name} (or {name}.gz) is missing; other files of MNIST exist")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    ndim = 3 if "idx3" in name else 1
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise DataError(f"{path} is damaged: it does not start as an idx file of bytes in {ndim} dimension(s)")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", ndim, offset=4))
    expected = header + math.prod(shape)  # numpy's product of large numbers would wrap around
    if len(content) != expected or 0 in shape:
        raise DataError(f"{path} is damaged: {len(content)} bytes, and its header {shape} asks for {expected}")
    length, md5 = PUBLISHED[name]
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if shape[0] == length and found != md5:
        raise DataError(f"{path} is damaged: its MD5 is {found}; that of the published file is {md5}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
