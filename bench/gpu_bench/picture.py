"""``bandwidth.png``: bandwidth over size for every kernel, with the copy's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINES = {"cuda": "-", "triton": "--"}
COLOURS = {"EntropySGD": "tab:blue", "EntropySGD, noise": "tab:cyan", "HJ": "tab:red", "Heat": "tab:orange"}


def draw(rows: list[dict[str, Any]], about: dict[str, Any], path: Path) -> None:
    """One line per kernel and backend.

    Args:
        rows: name ("copy" or "rule [backend]"), elements and gb_per_s.
        about: the run's ``about``, for the title.
        path: a PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    lines: dict[str, dict[int, float]] = {}
    for row in rows:  # the copy is measured beside each backend: the faster one counts
        points = lines.setdefault(row["name"], {})
        points[row["elements"]] = max(row["gb_per_s"], points.get(row["elements"], 0.0))
    for name, points in lines.items():
        rule, _, backend = name.rstrip("]").rpartition(" [")
        sizes, rates = zip(*sorted(points.items()))
        if name == "copy":
            axes.plot(sizes, rates, color="black", linewidth=2.5, label="copy, device to device")
        else:
            style = LINES.get(backend, ":")
            axes.plot(sizes, rates, linestyle=style, marker=".", color=COLOURS.get(rule), label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("elements of one launch")
    axes.set_ylabel("GB/s, reads and writes")
    axes.set_title(f"Inner call, fp32: {about.get('gpu')}, commit {str(about.get('commit'))[:12]}")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
