"""The settings that a search tries: a few around the recipe's, then some from the best, equally many for every row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import protocol, store
from deeprelax.experiments.table1.store import Stored

# What a trial does to the recipe: factors of η and of γ₀, and whether the rate falls earlier.
Trial = tuple[float, float, bool]
TRIALS: tuple[Trial, ...] = (
    (1.0, 1.0, False), (0.3, 1.0, False), (3.0, 1.0, False), (1.0, 0.1, False), (1.0, 10.0, False), (1.0, 1.0, True),
)  # fmt: skip
# SGD has no γ; its trials go to more rates and to both schedules.
SGD_TRIALS: tuple[Trial, ...] = (
    (1.0, 1.0, False), (0.3, 1.0, False), (3.0, 1.0, False), (0.1, 1.0, False), (1.0, 1.0, True), (0.3, 1.0, True),
)  # fmt: skip
FURTHER = 2  # trials that the results of those before choose
EARLY = 0.7  # of the fraction of the run at which the recipe's rate falls
FINER = 1.7  # a factor of η between two of the above


def first(optimizer: str) -> tuple[Trial, ...]:
    """The trials that do not depend on results."""
    return SGD_TRIALS if optimizer == "sgd" else TRIALS


def plan(preset: str, models: Iterable[str], optimizers: Iterable[str], epochs: int) -> list[Run]:
    """The first trial of every optimizer, then the second, and so on; all of ``epochs`` effective epochs."""
    optimizers = list(optimizers)
    return [
        run_of(preset, model, optimizer, epochs, number, first(optimizer)[number])
        for model in models
        for number in range(len(TRIALS))
        for optimizer in optimizers
    ]


def further(
    preset: str, models: Iterable[str], optimizers: Iterable[str], epochs: int, number: int, folder: Path
) -> list[Run]:
    """Trial ``number`` of every row, from the results of those before it, which are in ``folder``."""
    optimizers = list(optimizers)
    runs = []
    for model in models:
        for optimizer in optimizers:
            tried: list[Trial] = list(first(optimizer))
            scores: list[tuple[float, float]] = []
            for k in range(number):
                if k == len(tried):
                    tried.append(after(tried, scores))
                done = store.read(store.path_of(run_of(preset, model, optimizer, epochs, k, tried[k]), folder))
                scores.append(score(done))
            runs.append(run_of(preset, model, optimizer, epochs, number, after(tried, scores)))
    return runs


def after(tried: Sequence[Trial], scores: Sequence[tuple[float, float]]) -> Trial:
    """From the best trial: further out if it lies at the edge of the values tried, first in η, then in γ₀; otherwise a
    finer step of η. If all diverged, a smaller η."""
    best = min(scores)
    rate, smoothing, early = tried[scores.index(best)]
    rates, smoothings = ({trial[k] for trial in tried} for k in (0, 1))
    if best[0] == float("inf"):
        return (min(rates) / 3, smoothing, early)
    steps = []
    if rate == max(rates):
        steps.append((3.0, 1.0))
    if rate == min(rates):
        steps.append((1 / 3, 1.0))
    if len(smoothings) > 1 and smoothing == max(smoothings):
        steps.append((1.0, 10.0))
    if len(smoothings) > 1 and smoothing == min(smoothings):
        steps.append((1.0, 0.1))
    steps += [(FINER, 1.0), (1 / FINER, 1.0)]
    candidates = [(rate * eta, smoothing * gamma, early) for eta, gamma in steps]
    return next(candidate for candidate in candidates if candidate not in tried)


def score(stored: Stored) -> tuple[float, float]:
    """Lower is better: error, then training loss; a trial that diverged comes last."""
    last = stored.records[-1]
    if stored.ended != store.FINISHED:
        return float("inf"), float("inf")
    return last["validation_error"], last["training_loss"]


def run_of(preset: str, model: str, optimizer: str, epochs: int, number: int, trial: Trial) -> Run:
    """The run of one trial."""
    rate, smoothing, early = trial
    base = protocol.run(preset, model, optimizer, 0)
    options = {"lr": base.options["lr"] * rate}
    if "gamma" in base.options:
        options["gamma"] = base.options["gamma"] * smoothing
    drops = tuple((fraction * (EARLY if early else 1.0), factor) for fraction, factor in base.drops)
    return protocol.run(
        preset, model, optimizer, 0, epochs=epochs, variant=f"trial{number}", options=options, drops=drops,
        evaluate_every=epochs,
    )  # fmt: skip
