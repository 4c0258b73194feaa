"""CIFAR-10 as torchvision lays it out (cifar-10-batches-py), or as one file cifar10.npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deeprelax.experiments.data.datasets import DEFAULT_FOLDER, DataError, check_varied, torchvision_datasets

ARCHIVE = "cifar10.npz"
KEYS = ("x_train", "y_train", "x_test", "y_test")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cifar10_arrays(folder: Path | None) -> Arrays:
    """Training images and labels, test images and labels: uint8, (50000, 3, 32, 32) and (50000,), and 10,000 for the
    test.

    Args:
        folder: has cifar10.npz or cifar-10-batches-py; downloaded to if it has neither. None is ``.data``.

    Raises:
        DataError: a file is missing or damaged, or cannot be downloaded; the message names it.
        ImportError: torchvision, which reads cifar-10-batches-py, is not installed.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"no folder {folder}: give the one that has {ARCHIVE} or cifar-10-batches-py in it, or an empty one to "
            "download to"
        )
    folder = folder or DEFAULT_FOLDER
    if (folder / ARCHIVE).is_file():
        return _read_archive(folder / ARCHIVE)
    return _read_batches(folder)


def _read_batches(folder: Path) -> Arrays:
    """The published files. torchvision compares their MD5 before it unpickles any, but does not say which differs."""
    torchvision = torchvision_datasets()
    CIFAR10 = torchvision.CIFAR10
    try:
        batches = folder / CIFAR10.base_folder
        files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
        is_new = not any((batches / name).is_file() for name, _ in files)
        for name, md5 in () if is_new else files:
            if not (batches / name).is_file():
                raise DataError(f"{batches / name} is missing; other files of CIFAR-10 exist")
            if not torchvision.utils.check_integrity(batches / name, md5):
                raise DataError(f"{batches / name} is damaged: its MD5 is not {md5}, that of the published file")
        parts = [CIFAR10(folder, train, download=is_new) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder} has no {ARCHIVE} and no CIFAR-10, and downloading it failed: {error}") from error
    train, test = ((_channels_first(part.data), np.asarray(part.targets, np.uint8)) for part in parts)
    return *train, *test


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


def _check_labels(path: Path, name: str, labels: np.ndarray, images: int) -> None:
    if labels.shape != (images,) or not images:
        raise DataError(f"{path} is damaged: {name} has shape {labels.shape} for {images} images")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path} is damaged: {name} holds something other than the classes 0 to 9")
