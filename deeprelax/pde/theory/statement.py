"""A statement of the theory, and what the pictures and texts of all statements share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Numbers = dict[str, Any]  # plain numbers, strings, lists and dictionaries: what JSON holds

# Told apart without colour by dashes and markers (colours: Okabe and Ito).
BLACK: dict[str, Any] = {"color": "#000000", "linestyle": "-"}
RED: dict[str, Any] = {"color": "#D55E00", "linestyle": "--"}
BLUE: dict[str, Any] = {"color": "#0072B2", "linestyle": "-."}
GREEN: dict[str, Any] = {"color": "#009E73", "linestyle": ":"}
STYLES = (BLACK, RED, BLUE, GREEN)
MARKERS = "osD^"
CONFIDENCE = 1.96  # standard errors on either side of a mean: 95 %


@dataclass(frozen=True)
class Statement:
    """One section of the page.

    Attributes:
        key: name of its picture and of its numbers.
        title: of the section.
        measure: the numbers; the tests call the same function.
        draw: a picture from the numbers, onto its axes.
        tell: the section's text, in Markdown, from the numbers.
        panels: how many axes the picture has; four stand in two rows.
    """

    key: str
    title: str
    measure: Callable[[], Numbers]
    draw: Callable[[Numbers, Sequence[Axes]], None]
    tell: Callable[[Numbers], str]
    panels: int = 2

    def figure(self, numbers: Numbers) -> Figure:
        """Its picture."""
        rows = 2 if self.panels > 3 else 1
        columns = self.panels // rows
        figure = Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        self.draw(numbers, list(axes))
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        return figure


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def interval(mean: float, error: float) -> str:
    """A mean and its 95 % confidence interval, in Markdown."""
    return f"{mean:.4f} [{mean - CONFIDENCE * error:.4f}, {mean + CONFIDENCE * error:.4f}]"


def ticks_at(ax: Axes, values: Sequence[float]) -> None:
    """Ticks of a logarithmic x axis at the values themselves; matplotlib's own overlap within a decade or two."""
    ax.set_xticks(values, [f"{v:g}" for v in values])
    ax.xaxis.minorticks_off()


def legend(ax: Axes, **where: Any) -> None:
    """A small legend without a frame."""
    ax.legend(fontsize=8, frameon=False, **where)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def floats(values: Any) -> list[float]:
    """An array as a flat list."""
    return [float(v) for v in np.asarray(values).ravel()]
