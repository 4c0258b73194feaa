"""The progress of runs: bars on a terminal, otherwise a line now and then."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.report import TITLES
from deeprelax.experiments.runs import Run
from deeprelax.experiments.training import Result, train
from deeprelax.terminal import Pace


def bars(console: Console, names: int) -> Progress:
    """Bars with ``names`` columns for their names; nothing is drawn without a terminal."""
    columns = (
        TextColumn(f"{{task.description:{names}}}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f}/{task.total:.0f} effective epochs"),
        TextColumn("{task.fields[state]:>13}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    # On a slow machine a few gradients or an evaluation take longer than the 30 seconds over which rich averages.
    return Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600)


class Watch:
    """Moves a run's bar, or prints a line every minute without a terminal."""

    def __init__(self, progress: Progress, task: TaskID, name: str, epochs: int) -> None:
        self._progress, self._task, self._name, self._epochs, self._pace = progress, task, name, epochs, Pace()

    def __call__(self, done: int, total: int, error: float | None) -> float:
        """Show ``done`` of ``total`` gradients and the last validation error; returns the effective epochs."""
        epochs = self._epochs * done / total
        state = "" if error is None else f"{error:.2%} error"
        self._progress.update(self._task, completed=epochs, state=state)
        if not self._progress.console.is_terminal and (left := self._pace.left(done / total)):
            words = [f"{self._name}: {epochs:.1f}/{self._epochs} effective epochs", state, left]
            self._progress.console.print(", ".join(filter(None, words)), highlight=False, soft_wrap=True)
        return epochs


def run_all(runs: Sequence[Run], data: Data, backend: str, console: Console, results: dict[str, list[Result]]) -> None:
    """Train one network after the other.

    Args:
        results: by optimizer; a run is added when it has ended, so that those before an interruption are not lost.

    Raises:
        DivergedError: a run's training loss is no longer a finite number.
    """
    with bars(console, 20) as progress:
        names = [f"{TITLES[run.optimizer]:11} seed {run.seed}" for run in runs]
        tasks = [progress.add_task(name, total=run.epochs, start=False, state="") for name, run in zip(names, runs)]
        for run, name, task in zip(runs, names, tasks):
            progress.start_task(task)
            result, _ = train(run, data, backend=backend, on_progress=Watch(progress, task, name, run.epochs))
            results.setdefault(run.optimizer, []).append(result)
            if not console.is_terminal:
                console.print(f"{name}: {result.validation_error[-1]:6.2%} error after {result.seconds:.1f} s")
