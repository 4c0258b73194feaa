"""The output of an experiment: a table, a picture and a JSON file."""

from __future__ import annotations

import functools
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from deeprelax import files
from deeprelax.experiments.runs import Run
from deeprelax.experiments.training import Result

TITLES = {
    "sgd": "SGD",
    "heat": "Heat",
    "entropy-sgd": "Entropy-SGD",
    "hj": "HJ",
    "elastic-sgd": "Elastic-SGD",
    "parle": "Parle",
}
# Colours of equal difference for the colour-blind (Okabe and Ito); dashes and markers tell them apart without colour.
LINES = {
    "sgd": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "heat": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "entropy-sgd": {"color": "#0072B2", "linestyle": "-.", "marker": "^"},
    "hj": {"color": "#009E73", "linestyle": ":", "marker": "D"},
    "elastic-sgd": {"color": "#CC79A7", "linestyle": "--", "marker": "v"},
    "parle": {"color": "#56B4E9", "linestyle": "-.", "marker": "P"},
}


@dataclass(frozen=True)
class Experiment:
    """The results of every run by optimizer, and what they were produced with."""

    dataset: str
    results: dict[str, list[Result]]
    machine: dict[str, Any]

    @property
    def first(self) -> Run:
        """One of the runs, which share the network and the size of a batch."""
        return next(iter(self.results.values()))[0].run


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def with_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± deviation; the value alone if it is the only one."""
    mean, deviation = spread(values)
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def table(experiment: Experiment) -> Table:
    """One row per optimizer, at the end of the runs."""
    seeds = max(len(results) for results in experiment.results.values())
    of_seeds = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    first = experiment.first
    title = f"{experiment.dataset}, {first.model}, batches of {first.batch_size}: {of_seeds}"
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("optimizer", no_wrap=True)
    for heading in (
        "validation\nerror (%)",
        "training loss\n(nats)",
        "effective\nepochs",
        "seconds\nper run",
        "ms per\nstep()",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    workers = any(r.worker_error for results in experiment.results.values() for r in results)
    if workers:
        result.add_column("each worker's\nown error (%)", justify="right", no_wrap=True)
    for name, results in experiment.results.items():
        own = ", ".join(f"{100 * error:.2f}" for error in results[-1].worker_error)
        result.add_row(
            TITLES[name],
            with_spread([100 * r.validation_error[-1] for r in results], 2),
            with_spread([r.training_loss[-1] for r in results], 4),
            str(results[0].run.epochs),
            f"{spread([r.seconds for r in results])[0]:.1f}",
            f"{spread([r.step_ms for r in results])[0]:.2f}",
            *([own] if workers else []),
        )
    return result


def write_json(experiment: Experiment, path: Path) -> None:
    """Settings, every curve, versions and machine."""
    content = {
        "dataset": experiment.dataset,
        "machine": experiment.machine,
        "runs": [
            {"settings": settings(result.run), "optimizer": name, "seed": result.run.seed, **curves(result)}
            for name, results in experiment.results.items()
            for result in results
        ],
    }
    files.write_json(path, content)


def settings(run: Run) -> dict[str, Any]:
    """What an optimizer's seeds share; the rate is multiplied by ``factor`` after the effective epochs ``drops``."""
    shared = {name: getattr(run, name) for name in ("optimizer", "options", "model", "epochs", "batch_size")}
    factor = run.drops[0][1] if run.drops else 1.0
    return {**shared, "drops": [round(fraction * run.epochs) for fraction, _ in run.drops], "factor": factor}


def curves(result: Result) -> dict[str, Any]:
    """All of a result but its run."""
    return {name: value for name, value in vars(result).items() if name != "run"}


def draw_curve(
    ax: Axes, epochs: Sequence[float], points: Sequence[tuple[float, float]], name: str, label: str, nth: int
) -> None:
    """The ``nth`` optimizer's line through (mean, deviation) pairs, with a band of one deviation."""
    means = [mean for mean, _ in points]
    style: dict[str, Any] = LINES[name]
    every = max(1, len(means) // 8)
    ax.plot(
        epochs, means, label=label, linewidth=1.6, markersize=4.5,
        markevery=(min(nth * every // 4, len(means) - 1), every), **style,
    )  # fmt: skip
    if any(deviation for _, deviation in points):
        low = [max(mean - deviation, mean / 10) for mean, deviation in points]
        high = [mean + deviation for mean, deviation in points]
        ax.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def set_log_axis(ax: Axes, label: str) -> None:
    """A logarithmic y axis of that label, with plain numbers, after the curves are drawn."""
    ax.set_yscale("log")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom, top = ax.get_ylim()
    # A short run stays within a decade, where 1, 2 and 5 may give a single tick.
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if top > 5 * bottom else MaxNLocator(5))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def draw(experiment: Experiment, path: Path) -> None:
    """Both curves over the effective epochs: mean over the seeds, and a band of one standard deviation."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, quantity, label, scale in (
        (axes[0], "validation_error", "validation error (%)", 100.0),
        (axes[1], "training_loss", "training loss (nats)", 1.0),
    ):
        for k, (name, results) in enumerate(experiment.results.items()):
            curves = zip(*(getattr(r, quantity) for r in results))
            points = [spread([scale * value for value in values]) for values in curves]
            draw_curve(ax, range(1, len(points) + 1), points, name, TITLES[name], k)
        set_log_axis(ax, label)
        ax.set_xlabel("effective epochs (gradients over batches per epoch)")
    axes[0].legend(frameon=False)
    seeds = len(next(iter(experiment.results.values())))
    bands = f"; bands: one standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    figure.suptitle(f"{experiment.dataset}, {experiment.first.model}{bands}")
    files.write_picture(path, figure, dpi=150)


#: The files of an experiment in the order of writing, and what is in them.
WRITTEN = {"json": "all numbers", "txt": "table", "png": "curves"}


def paths(folder: Path, name: str) -> dict[str, Path]:
    """The files of an experiment by the suffixes in ``WRITTEN``."""
    return {kind: folder / f"{name}.{kind}" for kind in WRITTEN}


def write(experiment: Experiment, folder: Path, name: str, console: Console) -> None:
    """Write JSON, table and picture into ``folder``; print the table, and the paths of what is written, even if
    something cannot be.

    Raises:
        OSError: a file cannot be written; the message names it.
    """
    text = io.StringIO()
    Console(file=text, width=80).print(table(experiment))
    writers: dict[str, Callable[[Path], None]] = {
        "json": functools.partial(write_json, experiment),
        "txt": lambda path: files.write_text(path, text.getvalue()),
        "png": functools.partial(draw, experiment),
    }
    written = []
    try:
        for kind, path in paths(folder, name).items():
            writers[kind](path)
            written.append(f"{WRITTEN[kind]:11} {path}")
    finally:
        console.print(table(experiment))
        for line in written:
            console.print(line, soft_wrap=True, highlight=False)
