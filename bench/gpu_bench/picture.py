"""``bandwidth.png``: bandwidth over size for every kernel, with the copy's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINES = {"cuda": "-", "triton": "--"}
COLOURS = {"EntropySGD": "tab:blue", "EntropySGD, noise": "tab:cyan", "HJ": "tab:red", "Heat": "tab:orange"}
COLOURS["EntropyAdamW"] = "tab:green"


def draw(rows: list[dict[str, Any]], about: dict[str, Any], path: Path) -> None:
    """A panel per configuration, in it one line per kernel and backend.

    Args:
        rows: name ("copy" or "rule [backend]"), configuration, elements and gb_per_s.
        about: the run's ``about``, for the title.
        path: a PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys(row["configuration"] for row in rows))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(1 + 6.5 * len(panels), 5), sharey=True, squeeze=False)
    for ax, configuration in zip(axes[0], panels):
        draw_lines(ax, [row for row in rows if row["configuration"] == configuration])
        ax.set_title(f"inner call, {configuration}")
    axes[0][0].set_ylabel("GB/s, reads and writes")
    axes[0][0].set_ylim(bottom=0)
    figure.suptitle(f"{about.get('gpu')}, commit {str(about.get('commit'))[:12]}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_lines(ax: Any, rows: list[dict[str, Any]]) -> None:
    """One panel."""
    lines: dict[str, dict[int, float]] = {}
    for row in rows:  # the copy is measured beside each backend: the faster one counts
        points = lines.setdefault(row["name"], {})
        points[row["elements"]] = max(row["gb_per_s"], points.get(row["elements"], 0.0))
    for name, points in lines.items():
        rule, _, backend = name.rstrip("]").rpartition(" [")
        sizes, rates = zip(*sorted(points.items()))
        if name == "copy":
            ax.plot(sizes, rates, color="black", linewidth=2.5, label="copy of as many fp32, device to device")
        else:
            style = LINES.get(backend, ":")
            ax.plot(sizes, rates, linestyle=style, marker=".", color=COLOURS.get(rule), label=name)
    ax.set_xscale("log", base=2)
    ax.grid(alpha=0.3)
    ax.set_xlabel("elements of one launch")
    ax.legend(fontsize="small")
