"""CIFAR-10 is read whole or refused by name, and whitened as an independent reference whitens it."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from deeprelax.experiments.data import whitening
from deeprelax.experiments.data.cifar import cifar10_arrays
from deeprelax.experiments.data.datasets import DataError, digest


def images(count: int, seed: int = 0) -> np.ndarray:
    """Correlated uint8 images, (count, 32, 32, 3), as a sum of a few waves."""
    draw = np.random.default_rng(seed)
    waves = draw.normal(size=(20, 32 * 32 * 3))
    mixed = draw.normal(size=(count, 20)) @ waves + 0.3 * draw.normal(size=(count, 32 * 32 * 3))
    scaled = 255 * (mixed - mixed.min()) / np.ptp(mixed)
    return scaled.astype(np.uint8).reshape(count, 32, 32, 3)


def write_cifar(folder: Path, layout: str, train: int = 50, test: int = 20) -> list[Path]:
    """A small data set in one of the two layouts; its files."""
    x, y = images(train + test), (np.arange(train + test) % 10).astype(np.uint8)
    if layout == "npz":
        path = folder / "cifar10.npz"
        np.savez_compressed(path, x_train=x[:train], y_train=y[:train], x_test=x[train:], y_test=y[train:])
        return [path]
    batches = folder / CIFAR10.base_folder
    batches.mkdir()
    size = train // 5
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for k, name in enumerate(names):
        part = slice(k * size, (k + 1) * size) if k < 5 else slice(train, None)
        rows = x[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (batches / name).write_bytes(pickle.dumps({"data": rows, "labels": y[part].tolist()}, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": []}))
    return [batches / name for name in [*names, "batches.meta"]]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Small batches, whose MD5 torchvision takes for those of the published files."""
    paths = write_cifar(tmp_path, "batches")
    listed = [[path.name, hashlib.md5(path.read_bytes()).hexdigest()] for path in paths]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:6])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": listed[6][1]})
    return paths


def reference(train: np.ndarray, test: np.ndarray, preset: str) -> np.ndarray:
    """Whitened test images, all in float64, through the singular values of the data instead of the covariance."""

    def contrast(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1).astype(np.float64)
        rows = rows - rows.mean(1)[:, None]
        if preset == "authors":
            return rows / rows.std(1, ddof=1)[:, None]
        return 55 * rows / np.linalg.norm(rows, axis=1)[:, None]

    a, b = contrast(train), contrast(test)
    mean = a.mean(0)
    _, singular, basis = np.linalg.svd((a - mean) / np.sqrt(len(a)), full_matrices=False)
    basis, singular = basis[singular > 1e-6], singular[singular > 1e-6]
    factor = 1 / (singular + 1e-5) if preset == "authors" else 1 / np.sqrt(singular**2 + 0.1)
    return (b - mean) @ basis.T * factor @ basis


@pytest.mark.parametrize("preset", whitening.PRESETS)
def test_cached_whitening_equals_a_float64_reference(tmp_path: Path, preset: str) -> None:
    """More images than pixels, so that the eigenvalue 0 of the centring is the only one."""
    small = images(400)[:, :8, :8]
    train, test = small[:300], small[300:]
    for _ in range(2):  # computed, then read
        normalised = whitening.normalise(train, whitening.PRESETS[preset])
        fitted = whitening.cached(normalised, preset, "digest", tmp_path)
        found = fitted.apply(whitening.normalise(test, whitening.PRESETS[preset]))
        expected = reference(train, test, preset)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-4 * np.abs(expected).max())
    assert len(list(tmp_path.iterdir())) == 1


def test_whitening_leaves_out_the_eigenvalue_that_centring_makes_zero() -> None:
    """What is left of the vector of ones is rounding; 1/(√λ + 10⁻⁵) would make it the largest direction of all."""
    fitted = whitening.fit(
        whitening.normalise(images(400)[:, :8, :8], whitening.PRESETS["authors"]), whitening.PRESETS["authors"]
    )
    ones = np.ones(192) / np.sqrt(192)
    assert np.abs(fitted.matrix @ ones).max() < 1e-6 * np.abs(fitted.matrix).max()  # float32 images: 2⁻²⁴ each
    assert np.linalg.matrix_rank(fitted.matrix) == 191


def test_a_cache_of_other_data_or_settings_is_not_used(tmp_path: Path) -> None:
    preset = whitening.PRESETS["authors"]
    first, second = (whitening.normalise(images(300, seed)[:, :6, :6], preset) for seed in (0, 1))
    a = whitening.cached(first, "authors", "one", tmp_path)
    b = whitening.cached(second, "authors", "two", tmp_path)
    assert not np.array_equal(a.matrix, b.matrix)
    assert np.array_equal(b.matrix, whitening.fit(second, preset).matrix)


def test_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    normalised = whitening.normalise(images(300)[:, :6, :6], whitening.PRESETS["authors"])
    expected = whitening.cached(normalised, "authors", "one", tmp_path)
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    places = [
        *range(0, 200, 11),
        *range(200, len(whole) - 400, len(whole) // 8),
        *range(len(whole) - 400, len(whole), 17),
    ]
    flipped = (whole[:k] + bytes([whole[k] ^ 0x41]) + whole[k + 1 :] for k in places)
    for damaged in (whole[:1000], whole[:-4000], b"", *flipped):
        path.write_bytes(damaged)
        assert np.array_equal(whitening.cached(normalised, "authors", "one", tmp_path).matrix, expected.matrix)


def test_a_flat_image_becomes_zero() -> None:
    for preset in whitening.PRESETS.values():
        assert not whitening.normalise(np.full((2, 4, 4, 3), 200, np.uint8), preset).any()


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("layout", ["batches", "npz"])
def test_cifar_is_read_from_both_layouts(tmp_path: Path, layout: str) -> None:
    if layout == "npz":
        write_cifar(tmp_path, layout)
    train_x, train_y, test_x, test_y = cifar10_arrays(tmp_path)
    expected = images(70).transpose(0, 3, 1, 2)
    assert np.array_equal(train_x, expected[:50])
    assert np.array_equal(test_x, expected[50:])
    assert train_y.tolist() == [i % 10 for i in range(50)]
    assert test_y.tolist() == [i % 10 for i in range(20)]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def other_labels(path: Path) -> None:
    with np.load(path) as archive:
        np.savez(path, **{**archive, "y_train": np.full(50, 10, np.uint8)})


def other_shape(path: Path) -> None:
    with np.load(path) as archive:
        np.savez(path, **{**archive, "x_test": np.zeros((20, 3, 32, 32), np.uint8)})


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_byte_anywhere_is_refused_or_harmless(tmp_path: Path, compressed: bool) -> None:
    """Headers, names and times of an archive are not all under a checksum; what is read is."""
    (path,) = write_cifar(tmp_path, "npz", train=6, test=3)
    with np.load(path) as archive:
        held = dict(archive)
    if not compressed:
        np.savez(path, **held)
    expected, content = cifar10_arrays(tmp_path), path.read_bytes()
    places = [*range(0, 300, 3), *range(300, len(content) - 600, 1701), *range(len(content) - 600, len(content), 3)]
    for k in places:
        path.write_bytes(content[:k] + bytes([content[k] ^ 0x41]) + content[k + 1 :])
        found = None
        with contextlib.suppress(DataError):
            found = cifar10_arrays(tmp_path)
        assert found is None or all(np.array_equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, other_labels, other_shape])
def test_a_damaged_cifar_archive_is_refused_with_its_name(tmp_path: Path, damage) -> None:
    (path,) = write_cifar(tmp_path, "npz")
    damage(path)
    with pytest.raises(DataError, match=path.name):
        cifar10_arrays(tmp_path)


@pytest.mark.parametrize(("damage", "said"), [(truncate, "damaged"), (flip_a_bit, "damaged"), (Path.unlink, "missing")])
@pytest.mark.parametrize("number", [0, 3, 5, 6])
def test_a_batch_that_was_not_published_is_refused_by_name(
    tmp_path: Path, published: list[Path], number: int, damage, said: str
) -> None:
    """Before it is unpickled, so that a tampered file runs no code."""
    damage(published[number])
    with pytest.raises(DataError, match=f"{published[number].name} is {said}"):
        cifar10_arrays(tmp_path)


def test_a_folder_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        cifar10_arrays(tmp_path / "nowhere")


def test_the_checksum_of_the_data_tells_sets_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder, count in zip(folders, (50, 60)):
        folder.mkdir()
        write_cifar(folder, "npz", train=count)
    digests = [digest(*cifar10_arrays(folder)) for folder in (folders[0], folders[0], folders[1])]
    assert digests[0] == digests[1] != digests[2]
