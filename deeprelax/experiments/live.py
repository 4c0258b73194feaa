"""Runs the experiments one after the other and shows how far they are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deeprelax.experiments.data import Data
from deeprelax.experiments.report import TITLES
from deeprelax.experiments.training import Result, Settings, train


def run_all(
    settings: dict[str, Settings], data: Data, seeds: Sequence[int], backend: str, console: Console
) -> dict[str, list[Result]]:
    """Every optimizer with every seed.

    On a terminal there is a progress bar for each run, with the error so far and the time left (at its end, the time
    taken); elsewhere a line is printed when a run has ended.

    Raises:
        DivergedError: a run's training loss is no longer a finite number.
    """
    results: dict[str, list[Result]] = {name: [] for name in settings}
    with _progress(console) as progress:
        tasks = {
            (name, seed): progress.add_task(f"{TITLES[name]}, seed {seed}", total=each.epochs, start=False, state="")
            for name, each in settings.items()
            for seed in seeds
        }
        for (name, seed), task in tasks.items():
            progress.start_task(task)

            show = functools.partial(_show, progress, task)
            result, _ = train(settings[name], data, seed, backend=backend, on_epoch=show)
            results[name].append(result)
            if not console.is_terminal:
                console.print(f"{TITLES[name]:11} seed {seed}: {_state(result)} after {result.seconds:.1f} s")
    return results


def _show(progress: Progress, task: TaskID, result: Result) -> None:
    progress.update(task, completed=len(result.validation_error), state=_state(result))


def _state(result: Result) -> str:
    return f"{result.validation_error[-1]:6.2%} error"


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TextColumn("{task.fields[state]:>13}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress
