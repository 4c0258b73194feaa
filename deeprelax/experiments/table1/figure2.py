"""Figure 2 from stored runs: validation error on MNIST, training loss and validation error on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from deeprelax.experiments.report import TITLES, draw_curve, set_log_axis, spread
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
    return [(epoch, *spread(values), len(values)) for epoch, values in sorted(found.items())]


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
                seeds = sorted({count for *_, count in points})
                of_seeds = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
                name += f" ({of_seeds} seed{'s' if seeds[-1] > 1 else ''})"
                scaled = [(scale * mean, scale * deviation) for _, mean, deviation, _ in points]
                draw_curve(ax, [epoch for epoch, *_ in points], scaled, optimizer, name, drawn)
                drawn += 1
                several |= seeds[-1] > 1
        set_log_axis(ax, label)
        ax.set(title=title, xlabel="effective epochs", xlim=(0, None))
        ax.legend(frameon=False, fontsize="small")
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
