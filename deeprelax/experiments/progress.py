"""Runs the experiments one after the other and shows how far they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.report import TITLES
from deeprelax.experiments.training import Result, Settings, train
from deeprelax.terminal import Pace


def run_all(
    settings: dict[str, Settings],
    data: Data,
    seeds: Sequence[int],
    backend: str,
    console: Console,
    results: dict[str, list[Result]],
) -> None:
    """Every optimizer with every seed.

    On a terminal there is a progress bar for each run, with the error so far and the time left (at its end, the time
    taken); elsewhere a line is printed every minute and when a run has ended.

    Args:
        results: by optimizer; a run is added when it has ended, so that those before an interruption are not lost.

    Raises:
        DivergedError: a run's training loss is no longer a finite number.
    """
    with _progress(console) as progress:
        tasks = {
            (name, seed): progress.add_task(f"{TITLES[name]}, seed {seed}", total=each.epochs, start=False, state="")
            for name, each in settings.items()
            for seed in seeds
        }
        for (name, seed), task in tasks.items():
            progress.start_task(task)
            watch = _Watch(f"{TITLES[name]:11} seed {seed}", settings[name].epochs, progress, task, console)
            result, _ = train(
                settings[name], data, seed, backend=backend, on_epoch=watch.epoch, on_gradient=watch.gradient
            )
            results.setdefault(name, []).append(result)
            if not console.is_terminal:
                console.print(f"{watch.name}: {watch.state} after {result.seconds:.1f} s")


class _Watch:
    """Moves a run's bar, or prints its progress."""

    def __init__(self, name: str, epochs: int, progress: Progress, task: TaskID, console: Console) -> None:
        self.name, self.state = name, ""
        self._epochs, self._progress, self._task, self._console, self._pace = epochs, progress, task, console, Pace()

    def epoch(self, result: Result) -> None:
        self.state = f"{result.validation_error[-1]:6.2%} error"
        self._progress.update(self._task, state=self.state)

    def gradient(self, done: int, total: int) -> None:
        at = self._epochs * done / total
        if self._console.is_terminal:
            self._progress.update(self._task, completed=at)
        elif left := self._pace.left(done / total):
            state = f", {self.state.strip()}" if self.state else ""
            self._console.print(f"{self.name}: {at:.1f} of {self._epochs} epochs{state}, {left}")


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.1f}/{task.total:.0f} epochs"),
        TextColumn("{task.fields[state]:>13}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    # An epoch's gradients are quicker than the evaluation after it: the time left is of several epochs' speed.
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        yield progress
