"""Table 1: which runs it takes, in which order, and running those that are missing."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from deeprelax.experiments.data import datasets, inputs
from deeprelax.experiments.data.datasets import Data, DataError
from deeprelax.experiments.progress import Watch, bars
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import protocol, store
from deeprelax.experiments.table1.protocol import ABLATED, ABLATION, DATASETS

Options = dict[str, dict[str, dict[str, Any]]]


def plan(
    preset: str,
    models: Sequence[str],
    optimizers: Sequence[str],
    seeds: int,
    *,
    ablation: bool = False,
    found: Options | None = None,
    **common: Any,
) -> list[Run]:
    """The runs, most informative first: one seed of every row, then of every ablation, then the next seed.

    Args:
        preset, models, optimizers: as ``protocol`` names them; SGD comes early: the others are compared with it.
        ablation: also the variants of Entropy-SGD without scoping and without noise.
        found: for a model and an optimizer, what a search chose: "options" and "drops" for ``protocol.run``.
        common: passed to ``protocol.run``: epochs, autocast, tf32, evaluate_every.
    """
    runs = []
    rows = [o for o in ("sgd", "entropy-sgd", "hj", "heat") if o in optimizers]
    for seed in range(seeds):
        for variant in ("", *(ABLATION if ablation else ())):
            for model in models:
                for optimizer in rows if not variant else [ABLATED]:
                    chosen = (found or {}).get(model, {}).get(optimizer, {})
                    runs.append(protocol.run(preset, model, optimizer, seed, variant=variant, **chosen, **common))
    return runs


class Loader:
    """Data sets on the device, held once loaded, since runs of both models alternate: whitened CIFAR-10 takes 0.7 GB,
    MNIST 0.2. Of the training set ``images`` of all, or None for all of it."""

    def __init__(self, folder: Path | None, cache: Path, device: torch.device, images: int | None = None) -> None:
        self._folder, self._cache, self._device, self._images = folder, cache, device, images
        self._part = "" if images is None else f" {images} for training"
        self._held: dict[tuple[str, str], tuple[Data, str]] = {}

    def __call__(self, run: Run) -> tuple[Data, str]:
        """The run's data and their checksum.

        Raises:
            DataError, ImportError: as ``inputs.load``; DataError if the training set has fewer images.
        """
        wanted = (DATASETS[run.model], run.preset)
        if wanted not in self._held:
            data, digest = inputs.load(*wanted, self._folder, self._cache)
            if self._images is not None:
                if self._images > len(data.train_targets):
                    raise DataError(f"--images {self._images}: {data.name} has only {len(data.train_targets)}")
                part = data.part(0, self._images)
                data = Data(data.name, *part, data.validation_inputs, data.validation_targets)
            self._held[wanted] = (data.to(self._device), digest + self._part)
        return self._held[wanted]

    def digest(self, run: Run) -> str:
        """Their checksum alone: whitening takes much longer than reading."""
        return datasets.digest(*inputs.arrays(DATASETS[run.model], self._folder)) + self._part


def execute(
    runs: Sequence[Run],
    load: Callable[[Run], tuple[Data, str]],
    out: Path,
    console: Console,
    *,
    budget_minutes: float | None = None,
    until: int | None = None,
    checkpoint_seconds: float = 60.0,
    compare: Callable[[Run], str] | None = None,
    alike: Sequence[str] = ("model",),
    stop: Callable[[], bool] = lambda: False,
) -> list[Run]:
    """Run what is missing.

    Args:
        load: gives a run's data.
        budget_minutes: no run is begun after it, and one that is under way is saved and left for the next call.
        until: effective epochs after which every run is saved and left for a later call.
        compare: gives the checksum of a run's data, of every model even if no run is missing, to check that stored runs
            used them. Default: only the data of missing runs are compared.
        alike: names of settings; stored runs that have those of a planned run must have used its data.
        stop: when it returns True, the run under way is saved, and it and the rest are left for the next call.

    Returns:
        The runs that are not at their end.

    Raises:
        StoreError, DataError, ValueError: as ``store.execute`` and ``inputs.load``.
    """
    deadline = float("inf") if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    left: list[Run] = []
    checked: set[tuple[Any, ...]] = set()
    checksum = compare or (lambda run: load(run)[1])

    def check(run: Run) -> None:
        if (key := tuple(run.settings()[name] for name in alike)) not in checked:
            store.check_data(run, checksum(run), out, alike)
            checked.add(key)

    for run in runs if compare else ():
        check(run)
    with bars(console, 40) as progress:
        lengths = [(run, min(run.epochs, until or run.epochs)) for run in runs]
        overall = {model: _Bar(progress, model, lengths, out) for model in dict.fromkeys(run.model for run in runs)}
        for run, epochs in lengths:
            if _has_ended(run, out):
                continue
            if stop() or time.monotonic() >= deadline:
                left.append(run)
                continue
            check(run)
            data, digest = load(run)
            task = progress.add_task(run.name, total=epochs, state="")
            watch, bar = Watch(progress, task, run.name, epochs), overall[run.model]
            how = store.execute(
                run, data, digest, out, deadline=deadline, until=until, stop=stop,
                checkpoint_seconds=checkpoint_seconds,
                on_progress=lambda *done, watch=watch, bar=bar: bar.show(watch(*done)),
                warn=functools.partial(console.print, style="yellow", highlight=False, soft_wrap=True),
            )  # fmt: skip
            progress.remove_task(task)
            console.print(f"{run.name}: {how}{_error(run, out)}", highlight=False, soft_wrap=True)
            if how == store.PAUSED:
                left.append(run)
            if how != store.PAUSED or not (stop() or time.monotonic() >= deadline):
                bar.add(epochs)
    return left


class _Bar:
    """The progress of all runs of a model. Epochs of LeNet and of All-CNN take different times, so that a bar of both
    could not estimate the time left."""

    def __init__(self, progress: Progress, model: str, lengths: Sequence[tuple[Run, int]], out: Path) -> None:
        lengths = [(run, epochs) for run, epochs in lengths if run.model == model]
        self._progress, self._before = progress, sum(epochs for run, epochs in lengths if _has_ended(run, out))
        self._task = progress.add_task(
            f"all runs of {model}", total=sum(epochs for _, epochs in lengths), completed=self._before, state=""
        )

    def show(self, epochs: float) -> None:
        """So many epochs of the run that is under way."""
        self._progress.update(self._task, completed=self._before + epochs)

    def add(self, epochs: int) -> None:
        """A run of so many epochs has ended."""
        self._before += epochs
        self.show(0)


def _has_ended(run: Run, out: Path) -> bool:
    """By the run's file alone, since loading the data just to compare their checksum would take long."""
    path = store.path_of(run, out)
    if not path.exists():
        return False
    stored = store.read(path)
    return stored.ended is not None and store.ended(run, stored.header["data"], out)


def _error(run: Run, out: Path) -> str:
    records = store.read(store.path_of(run, out)).records
    if not records:
        return ""
    last = records[-1]
    return (
        f", {last['validation_error']:.2%} validation error at {last['effective_epoch']:g} effective epochs, "
        f"{last['seconds']:.0f} s"
    )
