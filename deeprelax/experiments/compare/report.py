"""The table of a comparison, as Markdown, and its curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deeprelax.experiments.compare import runner
from deeprelax.experiments.compare.contestants import CONTESTANTS, DEFAULTS, EVERY, Contestant
from deeprelax.experiments.compare.tasks import NAMES
from deeprelax.files import write_picture

OURS = ("HJ", "EntropySGD", "EntropyAdamW", "OuterLoop(Muon)")


def curves_of(results: Sequence[dict[str, Any]], chosen: runner.Run | None) -> list[list[float]]:
    """The curves of the chosen setting, one per seed; none if nothing was chosen."""
    same = (r for r in results if replace(runner.Run(**r["run"]), seed=0) == chosen)
    return [r["curve"] for r in sorted(same, key=lambda r: r["run"]["seed"])]


def deviation(*samples: Sequence[float]) -> float | None:
    """The standard error of a mean, or of the difference of two; None if there is only one value."""
    if min(map(len, samples)) < 2:
        return None
    return math.hypot(*(statistics.stdev(values) / math.sqrt(len(values)) for values in samples))


def number(value: float, task: str) -> str:
    """In per cent, or nats."""
    return f"{value:.3f}" if task == "text-transformer" else f"{100 * value:.2f}"


def with_error(value: float, error: float | None, task: str) -> str:
    """ "1.20 ± 0.10", or "1.20" if no error is known."""
    return number(value, task) + ("" if error is None else f" ± {number(error, task)}")


def rows(
    last: Mapping[tuple[str, str], Sequence[float]],
    chosen: Mapping[tuple[str, str], runner.Run],
    present: Sequence[str],
    of: dict[str, Contestant],
) -> list[str]:
    """A row for each contestant with results: mean, standard error, and what was chosen where there was a choice."""
    lines = []
    for optimizer, contestant in of.items():
        cells = []
        for task in present:
            values = last[task, optimizer]
            figure = with_error(statistics.mean(values), deviation(values), task) if values else ""
            if values and contestant.other:
                run = chosen[task, optimizer]
                edge = {min(contestant.rates): "↓", max(contestant.rates): "↑"}.get(run.rate, "")
                figure += f" ({run.rate:g}{edge}, {contestant.other} {run.other:g})"
            cells.append(figure)
        if any(cells):
            lines.append(f"| {optimizer} | " + " | ".join(cells) + " |")
    return lines


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row per optimizer, a column per task: the mean over seeds, its standard error where there are several, and the
    chosen setting, with an arrow where the rate is at an end of those tried. Below, the difference of each of ours from
    the best peer."""
    present = [task for task in NAMES if any(r["run"]["task"] == task for r in results)]
    units = {task: "nats" if task == "text-transformer" else "error, %" for task in present}
    heading = [
        "| | " + " | ".join(f"{task} ({units[task]})" for task in present) + " |",
        "|---" * (len(present) + 1) + "|",
    ]
    chosen = runner.best(results)
    last = {
        (task, optimizer): [curve[-1] for curve in curves_of(results, chosen.get((task, optimizer)))]
        for task in present
        for optimizer in EVERY
    }
    parts = []
    if searched := rows(last, chosen, present, CONTESTANTS):
        parts.append([*heading, *searched])
    if defaults := rows(last, chosen, present, DEFAULTS):
        parts.append(["Constructed without arguments, at constant rates:", "", *heading, *defaults])
    if differences := less_the_best_peer(last, present):
        title = "Difference from the best peer, with its standard error:"
        heading = ["| | " + " | ".join(present) + " |", heading[1]]
        parts.append([title, "", *heading, *differences])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def less_the_best_peer(last: Mapping[tuple[str, str], Sequence[float]], present: Sequence[str]) -> list[str]:
    """A row for each of ours with results."""
    peers = [name for name in CONTESTANTS if name not in OURS]
    lines = []
    for optimizer in OURS:
        cells = []
        for task in present:
            theirs = [last[task, peer] for peer in peers if last[task, peer]]
            mine = last[task, optimizer]
            if not theirs or not mine:
                cells.append("")
                continue
            best = min(theirs, key=statistics.mean)
            difference = statistics.mean(mine) - statistics.mean(best)
            sign = "+" if difference >= 0 else "−"
            cells.append(sign + with_error(abs(difference), deviation(mine, best), task))
        if any(cells):
            lines.append(f"| {optimizer} | " + " | ".join(cells) + " |")
    return lines


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the curves: means, and bands from the least to the greatest over the seeds, a panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    present = [task for task in NAMES if any(r["run"]["task"] == task for r in results)]
    chosen = runner.best(results)
    figure, axes = plt.subplots(1, len(present), figsize=(4 * len(present), 3.6), squeeze=False)
    for axis, task in zip(axes[0], present):
        for optimizer in CONTESTANTS:
            curves = curves_of(results, chosen.get((task, optimizer)))
            if not curves:
                continue
            fractions = [(k + 1) / runner.POINTS for k in range(runner.POINTS)]
            mean = [statistics.mean(values) for values in zip(*curves)]
            (line,) = axis.plot(fractions, mean, label=optimizer, linestyle="-" if optimizer in OURS else "--")
            low, high = zip(*((min(values), max(values)) for values in zip(*curves)))
            axis.fill_between(fractions, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(task)
        axis.set_xlabel("fraction of the gradients")
        axis.set_yscale("log")
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    if lines:
        axes[0][0].legend(lines.values(), lines, fontsize=7)
    figure.tight_layout()
    write_picture(path, figure, dpi=120)
    plt.close(figure)
