"""Global contrast normalisation and ZCA whitening of CIFAR-10 (section 7.1), in two presets.

"authors": every image minus its mean, over its standard deviation (ddof 1); W = U diag(1/(√λ + 10⁻⁵)) Uᵀ, as the
paper's authors' program. "pylearn2": every image minus its mean, times 55 over the √ of the sum of squares; W = U
diag(1/√(λ + 0.1)) Uᵀ, as the pipeline of that library, which papers of the time used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deeprelax.files import replacing

CHUNK = 2_000  # images in float64 at a time: 49 MB


@dataclass(frozen=True)
class Preset:
    """How images are normalised and whitened.

    Attributes:
        ddof: of an image's standard deviation; None divides by the √ of the sum of squares.
        scale: factor after that division.
        bias: added to the eigenvalues of the covariance.
        floor: added to their roots.
    """

    ddof: int | None
    scale: float
    bias: float
    floor: float


PRESETS = {
    "authors": Preset(ddof=1, scale=1.0, bias=0.0, floor=1e-5),
    "pylearn2": Preset(ddof=None, scale=55.0, bias=0.1, floor=0.0),
}


@dataclass(frozen=True)
class Whitening:
    """An image x becomes (x - mean) @ matrix; both float64, of shape (pixels,) and (pixels, pixels)."""

    mean: np.ndarray
    matrix: np.ndarray

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Normalised images (n, pixels) float64 to whitened ones, float32."""
        result = np.empty(images.shape, np.float32)
        mean, matrix = self.mean.astype(np.float32), self.matrix.astype(np.float32)
        for start in range(0, len(images), CHUNK):
            part = slice(start, start + CHUNK)
            np.matmul(images[part].astype(np.float32) - mean, matrix, out=result[part])
        return result


def normalise(images: np.ndarray, preset: Preset) -> np.ndarray:
    """Global contrast normalisation, image by image: any dtype (n, …) to float32 (n, pixels); flat images become 0."""
    result = np.empty((len(images), int(np.prod(images.shape[1:]))), np.float32)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].reshape(-1, result.shape[1]).astype(np.float64)
        part -= part.mean(axis=1, keepdims=True)
        squares = (part**2).sum(axis=1, keepdims=True)
        size = np.sqrt(squares if preset.ddof is None else squares / (part.shape[1] - preset.ddof))
        result[start : start + CHUNK] = preset.scale * part / np.where(size < 1e-8, 1.0, size)
    return result


def fit(normalised: np.ndarray, preset: Preset) -> Whitening:
    """The transform of a training set (n, pixels).

    Centring every image makes the covariance singular: the vector of ones has the eigenvalue 0 but for rounding, and
    1/(√λ + 10⁻⁵) would blow that rounding up. So the decomposition is in float64, and what is zero to its precision
    is left out.
    """
    count, pixels = normalised.shape
    mean = normalised.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((pixels, pixels))
    for start in range(0, count, CHUNK):
        part = normalised[start : start + CHUNK] - mean
        covariance += part.T @ part
    values, vectors = np.linalg.eigh(covariance / count)
    # Images were rounded to float32, which lifts the zero eigenvalue to about the square of that rounding.
    kept = values > values[-1] * np.finfo(np.float32).eps ** 2 * pixels
    values, vectors = values[kept], vectors[:, kept]
    return Whitening(mean, (vectors / (np.sqrt(values + preset.bias) + preset.floor)) @ vectors.T)


def cached(normalised: np.ndarray, name: str, digest: str, folder: Path) -> Whitening:
    """``fit``, kept in ``folder`` under the checksum of the data and of the preset.

    A file of another checksum, or a damaged one, is not used: the transform is computed again and replaces it.

    Args:
        normalised: the training set, (n, pixels).
        name: a key of ``PRESETS``.
        digest: of the data set that ``normalised`` was made from.
        folder: made if need be.
    """
    preset = PRESETS[name]
    checksum = hashlib.sha256(f"{digest} {preset} {normalised.shape}".encode()).hexdigest()
    path = folder / f"zca-{name}.npz"
    found = _read(path, checksum, normalised.shape[1])
    if found is not None:
        return found
    fitted = fit(normalised, preset)
    with replacing(path) as partial:
        np.savez(partial, checksum=np.array(checksum), mean=fitted.mean, matrix=fitted.matrix)
    return fitted


def _read(path: Path, checksum: str, pixels: int) -> Whitening | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if str(archive["checksum"]) != checksum:
                return None
            whitening = Whitening(np.asarray(archive["mean"]), np.asarray(archive["matrix"]))
    except Exception:  # a damaged archive can fail with almost any exception
        return None
    fits = whitening.matrix.shape == (pixels, pixels) and whitening.mean.shape == (pixels,)
    return whitening if fits else None
