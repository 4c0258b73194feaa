"""Figure 2 from stored runs: validation error on MNIST, training loss and validation error on CIFAR-10."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from deeprelax.experiments.report import LINES, TITLES
from deeprelax.experiments.table1.protocol import OPTIMIZERS
from deeprelax.experiments.table1.report import PAPERS_PRECISION, Key, as_preset, groups, precision_of, produced_with
from deeprelax.experiments.table1.store import Stored
from deeprelax.files import write_picture

PANELS = (
    ("lenet", "validation_error", "LeNet on MNIST", "validation error (%)", 100.0),
    ("allcnn", "training_loss", "All-CNN on CIFAR-10", "training loss (nats)", 1.0),
    ("allcnn", "validation_error", "All-CNN on CIFAR-10", "validation error (%)", 100.0),
)


def curve(runs: Sequence[Stored], quantity: str) -> list[tuple[float, float, float, int]]:
    """(effective epochs, mean, deviation, seeds) wherever a run was evaluated; the deviation of one seed is 0."""
    found: dict[float, list[float]] = {}
    for stored in runs:
        for record in stored.records:
            if record[quantity] is not None:
                found.setdefault(record["effective_epoch"], []).append(record[quantity])
    return [
        (at, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
        for at, values in sorted(found.items())
    ]


def paths(preset: str, out: Path) -> list[Path]:
    """figure2-PRESET.png and .svg in ``out``."""
    return [out / f"figure2-{preset}.{kind}" for kind in ("png", "svg")]


def draw(runs: Sequence[Stored], preset: str, out: Path) -> list[Path]:
    """Write the files of ``paths``, with the panels that have runs, and return them."""
    chosen = groups(runs)
    found_of = {model: [chosen.get((preset, model, name, ""), []) for name in OPTIMIZERS] for model, *_ in PANELS}
    panels = [panel for panel in PANELS if any(curve(found, panel[1]) for found in found_of[panel[0]])]
    figure = Figure(figsize=(1 + 4 * len(panels), 4.2), layout="constrained")
    several = False
    for ax, (model, quantity, title, label, scale) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        drawn = 0
        for optimizer, found in zip(OPTIMIZERS, found_of[model]):
            points = curve(found, quantity)
            if points:
                settings = found[0].settings
                precision = precision_of(settings)
                name = TITLES[optimizer] + ("" if precision == PAPERS_PRECISION else f" in {precision}")
                name += "" if as_preset(settings) else ", other settings"
                _line(ax, points, scale, optimizer, name, drawn)
                drawn += 1
                several |= any(count > 1 for *_, count in points)
        ax.set_title(title)
        ax.set_xlabel("effective epochs")
        ax.set_ylabel(label)
        _decorate(ax)
    bands = "; bands: one standard deviation over the seeds" if several else ""
    figure.suptitle(f"{preset} preset{bands}; {_means(chosen, preset)}", fontsize="medium", wrap=True)
    png, svg = paths(preset, out)
    # The same runs give the same file: no date, and names within the SVG that are not random.
    with matplotlib.rc_context({"svg.hashsalt": "deeprelax"}):
        write_picture(png, figure, dpi=150)
        write_picture(svg, figure, metadata={"Date": None})
    return [png, svg]


def _means(chosen: dict[Key, list[Stored]], preset: str) -> str:
    """The devices and precisions of the runs that are drawn."""
    drawn = [found for (of, _, _, variant), found in chosen.items() if of == preset and not variant]
    return "; ".join(sorted({produced_with(stored) for found in drawn for stored in found}))


def _line(
    ax: Axes, points: Sequence[tuple[float, float, float, int]], scale: float, optimizer: str, title: str, nth: int
) -> None:
    style: dict[str, Any] = LINES[optimizer]
    epochs = [at for at, *_ in points]
    means = [scale * mean for _, mean, _, _ in points]
    every = max(1, len(points) // 8)
    seeds = sorted({count for *_, count in points})
    of_seeds = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    name = f"{title} ({of_seeds} seed{'s' if seeds[-1] > 1 else ''})"
    ax.plot(
        epochs, means, label=name, linewidth=1.6, markersize=4.5,
        markevery=(min(nth * every // 4, len(points) - 1), every), **style,
    )  # fmt: skip
    if seeds[-1] == 1:
        return
    low = [max(scale * (mean - deviation), scale * mean / 10) for _, mean, deviation, _ in points]
    high = [scale * (mean + deviation) for _, mean, deviation, _ in points]
    ax.fill_between(epochs, low, high, color=style["color"], alpha=0.25, linewidth=0)


def _decorate(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom, top = ax.get_ylim()
    # A short run stays within a decade, where 1, 2 and 5 may give a single tick.
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if top > 5 * bottom else MaxNLocator(5))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
