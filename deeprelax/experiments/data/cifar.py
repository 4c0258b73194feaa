"""CIFAR-10 as torchvision lays it out (cifar-10-batches-py), or as one file cifar10.npz."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from deeprelax.experiments.data.datasets import DEFAULT_FOLDER, DataError, check_published, check_varied

BATCHES = {  # with the MD5 of each, as torchvision has them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
IMAGES = 10_000  # of a batch
ARCHIVE = "cifar10.npz"
KEYS = ("x_train", "y_train", "x_test", "y_test")
PIXELS = 3 * 32 * 32
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cifar10_arrays(folder: Path | None, *, published: bool = True) -> Arrays:
    """Training images and labels, test images and labels: uint8, (50000, 3, 32, 32) and (50000,), and 10,000 for the
    test.

    Args:
        folder: has cifar10.npz or cifar-10-batches-py; downloaded to if it has neither. None is ``.data``.
        published: refuse batches other than those that were published; a test's own are smaller.

    Raises:
        DataError: a file is missing or damaged, or cannot be downloaded; the message names it.
        ImportError: for a download, torchvision is not installed.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"no folder {folder}: give the one that has {ARCHIVE} or cifar-10-batches-py in it, or an empty one to "
            "download to"
        )
    folder = folder or DEFAULT_FOLDER
    if (folder / ARCHIVE).is_file():
        return _read_archive(folder / ARCHIVE)
    batches = folder / "cifar-10-batches-py"
    if not any((batches / name).is_file() for name in BATCHES):
        _download(folder)
    parts = [_read_batch(batches / name, md5 if published else None) for name, md5 in BATCHES.items()]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts[:-1]))
    check_varied(batches, images)
    return images, labels, *parts[-1]


def _download(folder: Path) -> None:
    try:
        from torchvision.datasets import CIFAR10  # fails on import where it was built for another torch

        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder} has no {ARCHIVE} and no CIFAR-10, and downloading it failed: {error}") from error


def _read_archive(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            train_x, train_y, test_x, test_y = (np.asarray(archive[key]) for key in KEYS)
    except Exception as error:  # a damaged archive can fail with almost any exception
        raise DataError(f"{path} is damaged, or lacks one of {', '.join(KEYS)}: {error}") from error
    for key, images, labels in (("train", train_x, train_y), ("test", test_x, test_y)):
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
            raise DataError(
                f"{path} is damaged: x_{key} is {images.dtype} {images.shape}; uint8 (n, 32, 32, 3) was expected"
            )
        _check_labels(path, f"y_{key}", labels, len(images))
    check_varied(path, train_x)
    return _channels_first(train_x), train_y.astype(np.uint8), _channels_first(test_x), test_y.astype(np.uint8)


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


ARRAYS = {("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArraysOnly(pickle.Unpickler):
    """Lets a pickle build numpy arrays and nothing else, so that a tampered file can run no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) not in ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _read_batch(path: Path, md5: str | None) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} is missing; other files of CIFAR-10 are there")
    try:
        raw = path.read_bytes()
        content = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
        images, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"])
    except Exception as error:  # a damaged pickle can fail with almost any exception
        raise DataError(f"{path} is damaged: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS:
        raise DataError(f"{path} is damaged: data is {images.dtype} {images.shape}; uint8 (n, {PIXELS}) was expected")
    _check_labels(path, "labels", labels, len(images))
    if md5 is not None:
        if len(images) != IMAGES:
            raise DataError(f"{path} is damaged: it has {len(images):,} images; {IMAGES:,} were expected")
        check_published(path, raw, md5)
    return images.reshape(-1, 3, 32, 32), labels.astype(np.uint8)


def _check_labels(path: Path, name: str, labels: np.ndarray, images: int) -> None:
    if labels.shape != (images,) or not images:
        raise DataError(f"{path} is damaged: {name} has shape {labels.shape} for {images} images")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} is damaged: {name} holds something other than the classes 0 to 9")
