"""What a run does: its network, optimizer, seed, batches and schedule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

import deeprelax
from deeprelax.experiments.models import NETWORKS

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "heat": deeprelax.Heat,
    "entropy-sgd": deeprelax.EntropySGD,
    "hj": deeprelax.HJ,
}
# With several workers under torchrun.
WORKERS: dict[str, type[torch.optim.Optimizer]] = {"elastic-sgd": deeprelax.ElasticSGD, "parle": deeprelax.Parle}
EVERY = OPTIMIZERS | WORKERS
BATCH_SIZE = 128  # section 7.1


@dataclass(frozen=True)
class Run:
    """One run; with the data it determines every bit of the result on one machine.

    Attributes:
        preset: a key of ``models.NETWORKS``, whose networks "lenet" and "allcnn" stand for; "" outside of Table 1.
        model: a key of ``models.MODELS``; with a preset, of its networks.
        optimizer: a key of ``EVERY``.
        seed: of the weights, the batches, dropout and the optimizer's noise.
        epochs: effective epochs: gradients over batches per epoch (Remark 15).
        options: arguments of the optimizer.
        drops: (fraction of the run, factor) pairs: the learning rate is the one in ``options`` times the factor of
            the last fraction passed.
        variant: "" for a row of Table 1; otherwise what was switched off (a key of
            ``protocol.ABLATION``), or a trial of a search.
        batch_size: images per gradient.
        with_replacement: how the batches are drawn.
        autocast: "bf16" for mixed precision, "" for float32.
        tf32: let a GPU round the factors of float32 products to TF32. A bf16 run is evaluated so.
        evaluate_every: effective epochs between two evaluations; the last is at the end.
    """

    preset: str
    model: str
    optimizer: str
    seed: int
    epochs: int
    options: dict[str, Any]
    drops: tuple[tuple[float, float], ...]
    variant: str = ""
    batch_size: int = BATCH_SIZE
    with_replacement: bool = False
    autocast: str = ""
    tf32: bool = False
    evaluate_every: int = 1

    @property
    def network(self) -> str:
        """The network's name in ``models.MODELS``."""
        return NETWORKS[self.preset][self.model] if self.preset else self.model

    @property
    def name(self) -> str:
        """The run's file name without ending; different for runs that a user may want to compare."""
        parts = [self.preset, self.model, self.optimizer, self.variant, self.autocast, "tf32" if self.tf32 else ""]
        return "-".join([part for part in parts if part] + [f"{self.epochs}ep", f"seed{self.seed}"])

    def rate_factor(self, progress: float) -> float:
        """What the learning rate is multiplied by after this fraction of the run."""
        return next((factor for fraction, factor in reversed(self.drops) if progress >= fraction), 1.0)

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            name: [list(pair) for pair in value] if name == "drops" else value
            for name, value in dataclasses.asdict(self).items()
        }
