"""What a run of Table 1 does, row by row, each value with its source.

"authors" is the program that the paper's authors published for it, and their earlier one for Entropy-SGD; "measured"
is bench/results/choose_defaults.json. What neither the paper nor the authors give is marked "open": `deeprelax
reproduce search` looks for it.

The two presets differ in
- the networks: the authors' layers, or those of sections 7.2 and 7.3;
- the optimizers: the authors' momenta and no 1/γ in Entropy-SGD's outer step, or the paper's equations;
- the batches: drawn with replacement, or without;
- CIFAR-10's preprocessing: the authors', or that of Coates et al. (2010) as pylearn2 has it.
MNIST is fed as the raw values 0 to 255 in both: section 7.1 preprocesses nothing. Neither augments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deeprelax.experiments.models import NETWORKS
from deeprelax.experiments.runs import Run

MODELS = ("lenet", "allcnn")
OPTIMIZERS = ("entropy-sgd", "heat", "hj", "sgd")  # in the order of Table 1
DATASETS = {"lenet": "mnist", "allcnn": "cifar10"}
PRESETS = tuple(NETWORKS)
WHITENING = {"authors": "authors", "paper": "pylearn2"}
TRAINING_IMAGES = {"lenet": 60_000, "allcnn": 50_000}  # section 7.1
SEEDS = 6  # section 7.1


@dataclass(frozen=True)
class Figure:
    """One cell of the paper's Table 1: validation error in percent, and the effective epochs it was read at."""

    error: float
    deviation: float
    epochs: int


PAPER = {
    ("lenet", "entropy-sgd"): Figure(0.50, 0.01, 80),
    ("lenet", "heat"): Figure(0.59, 0.02, 75),
    ("lenet", "hj"): Figure(0.50, 0.01, 70),
    ("lenet", "sgd"): Figure(0.50, 0.02, 67),
    ("allcnn", "entropy-sgd"): Figure(7.96, 0.05, 160),
    ("allcnn", "heat"): Figure(9.04, 0.04, 150),
    ("allcnn", "hj"): Figure(7.89, 0.07, 145),
    ("allcnn", "sgd"): Figure(7.94, 0.06, 195),
}


@dataclass(frozen=True)
class Recipe:
    """``drops``: (effective epoch, factor) pairs at the paper's number of epochs, ``PAPER``'s."""

    options: dict[str, Any]
    drops: tuple[tuple[int, float], ...]


# The authors' SGD divides by 5: every 30 epochs on MNIST, every 60 on CIFAR-10. Section 6.4 gives the others "the same
# as that of SGD with the number of epochs scaled by a factor of L": an epoch of theirs is L passes over the data, so
# that the rate falls at the same *effective* epochs, as in the authors' program for Entropy-SGD on CIFAR-10
# (every 3 epochs of 20 passes).
_EVERY_30 = ((30, 0.2), (60, 0.04))
_EVERY_60 = ((60, 0.2), (120, 0.04), (180, 0.008))
_SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True}  # authors' baseline
_OUTER = {"momentum": 0.9, "nesterov": True}  # authors: the outer step
_ENTROPY_AUTHORS = {
    **{"inner_lr": 0.1, "inner_steps": 20, "alpha": 0.75, "scoping": 1e-3},  # sections 6.4, Remark 15
    # The authors' program for Entropy-SGD (ucla-vision/entropy-sgd: train.lua, entropyoptim.lua), which is where η = 1
    # comes from: x <- x - η (x - z) without momentum, and an inner velocity (Nesterov 0.9) that begins at zero in every
    # cycle. In their later program for this paper (pratikac/hamilton-jacobi: optim.py) the outer step has Nesterov
    # momentum 0.9 and the inner velocity is carried over, but there η = 0.1. η = 1 with that momentum is an outer step
    # of ten times x - z: LeNet ends in a dead network after 4 effective epochs. Here weight decay and (y - x)/γ are
    # part of the inner velocity, as in the later program; in the earlier one they are added after it.
    **{"lr": 1.0, "absorb_gamma": True, "temperature": 2e-8},
    **{"inner_momentum": 0.9, "carry_inner_momentum": False, "nesterov": True},
}
_ENTROPY_PAPER = {
    **{"inner_lr": 0.1, "inner_steps": 20, "alpha": 0.75, "scoping": 1e-3},  # section 6.4, Remark 15
    "temperature": 2e-8,  # authors
}
_HJ = {"inner_steps": 5, "alpha": 0.75, "scoping": 1e-3}  # Remark 15, section 6.4
_HEAT = {"inner_steps": 5, "scoping": 1e-3, "gamma": 1e-4}  # Remark 15, section 6.4; γ open: measured on digits
_ALLCNN = {"weight_decay": 1e-3}  # section 7.3

RECIPES: dict[tuple[str, str, str], Recipe] = {
    # γ₀ = 1/10⁻⁴, the rate divided by 10 after 2 epochs of 20 passes: the program's README, and mnistconv in train.lua.
    ("authors", "lenet", "entropy-sgd"): Recipe({**_ENTROPY_AUTHORS, "gamma": 1e4}, ((40, 0.1),)),
    # γ₀ = 1/0.03, and the rate divided by 5 every 3 epochs of 20 passes: the same for cifarconv.
    ("authors", "allcnn", "entropy-sgd"): Recipe(
        {**_ENTROPY_AUTHORS, "gamma": 1 / 0.03, **_ALLCNN}, ((60, 0.2), (120, 0.04))
    ),
    # η and γ₀ of HJ are open; with the authors' momentum η is their SGD's. Their HJ starts at p = ∇f(x).
    ("authors", "lenet", "hj"): Recipe({**_HJ, **_OUTER, "lr": 0.1, "gamma": 0.1, "warm_start": True}, _EVERY_30),
    ("authors", "allcnn", "hj"): Recipe(
        {**_HJ, **_OUTER, "lr": 0.1, "gamma": 0.1, "warm_start": True, **_ALLCNN}, _EVERY_60
    ),
    # The authors' program for HEAT is an average along a Langevin path, which section 6.3 is not; η is open.
    ("authors", "lenet", "heat"): Recipe({**_HEAT, **_OUTER, "lr": 0.1}, _EVERY_30),
    ("authors", "allcnn", "heat"): Recipe({**_HEAT, **_OUTER, "lr": 0.1, **_ALLCNN}, _EVERY_60),
    ("authors", "lenet", "sgd"): Recipe(_SGD, _EVERY_30),
    ("authors", "allcnn", "sgd"): Recipe({**_SGD, **_ALLCNN}, _EVERY_60),
    # The paper's equations; η and γ₀ open: measured on digits. "A well-tuned implementation of SGD" has momentum.
    ("paper", "lenet", "entropy-sgd"): Recipe({**_ENTROPY_PAPER, "lr": 1.0, "gamma": 1.0}, _EVERY_30),
    # Here scoping makes 3,120 steps, to γ = 0.044 γ₀. From γ₀ = 1 the inner loop would end at η'/γ = 2.3, and is not
    # stable from 2 on; with η = γ₀, η/γ would be 3.2 when the rate first falls, and from 2 on x overshoots.
    ("paper", "allcnn", "entropy-sgd"): Recipe({**_ENTROPY_PAPER, "lr": 5.0, "gamma": 10.0, **_ALLCNN}, _EVERY_60),
    ("paper", "lenet", "hj"): Recipe({**_HJ, "lr": 1.0, "gamma": 1.0}, _EVERY_30),
    ("paper", "allcnn", "hj"): Recipe({**_HJ, "lr": 1.0, "gamma": 1.0, **_ALLCNN}, _EVERY_60),
    # η by the search on LeNet in docs/reproduction.md: three times as much hardly learns.
    ("paper", "lenet", "heat"): Recipe({**_HEAT, "lr": 0.3}, _EVERY_30),
    ("paper", "allcnn", "heat"): Recipe({**_HEAT, "lr": 0.3, **_ALLCNN}, _EVERY_60),
    ("paper", "lenet", "sgd"): Recipe(_SGD, _EVERY_30),
    ("paper", "allcnn", "sgd"): Recipe({**_SGD, **_ALLCNN}, _EVERY_60),
}

# Section 8 says that scoping and thermal noise are disentangled: each switched off alone, and both.
ABLATION: dict[str, dict[str, Any]] = {
    "no-scoping": {"scoping": 0.0},
    "no-noise": {"temperature": 0.0},
    "no-scoping-no-noise": {"scoping": 0.0, "temperature": 0.0},
}
ABLATED = "entropy-sgd"  # the one optimizer that has both


def run(
    preset: str,
    model: str,
    optimizer: str,
    seed: int,
    *,
    epochs: int | None = None,
    variant: str = "",
    options: dict[str, Any] | None = None,
    drops: tuple[tuple[float, float], ...] | None = None,
    autocast: str = "",
    tf32: bool = False,
    evaluate_every: int | None = None,
) -> Run:
    """One run of a row.

    Args:
        epochs: effective epochs; None takes the paper's. With others the rate falls at the same fractions of the run.
        variant: a key of ``ABLATION``; or another word for the run's name; or "".
        options: put in the place of the recipe's.
        drops: in the place of the recipe's, as in ``Run``.
        evaluate_every: None evaluates at about 40 points of the run.
    """
    recipe, paper = RECIPES[preset, model, optimizer], PAPER[model, optimizer]
    epochs = epochs or paper.epochs
    own = tuple((epoch / paper.epochs, factor) for epoch, factor in recipe.drops if epoch < paper.epochs)
    return Run(
        preset=preset,
        model=model,
        optimizer=optimizer,
        seed=seed,
        epochs=epochs,
        options={**recipe.options, **(options or {}), **ABLATION.get(variant, {})},
        drops=own if drops is None else drops,
        variant=variant,
        with_replacement=preset == "authors",
        autocast=autocast,
        tf32=tf32,
        evaluate_every=evaluate_every or max(1, round(epochs / 40)),
    )
