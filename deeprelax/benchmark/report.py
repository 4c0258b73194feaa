"""Prints the benchmark's tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(workload: dict[str, Any], machine: dict[str, Any], preset: str) -> None:
    """One workload: its contestants, then the promises with what was measured."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    title = f"{workload['name']}: {machine['cpu']}, {machine['threads']} threads, fp32"
    table = Table(title=title, title_justify="left")
    for heading in ("one inner step()", "µs", "ns/parameter", "GB/s", "x fused AdamW", "x fused SGD"):
        table.add_column(heading, justify="left" if heading.startswith("one") else "right")
    for r in workload["contestants"]:
        table.add_row(
            r["name"],
            f"{r['microseconds']:,.0f}",
            f"{r['ns_per_parameter']:.3f}",
            f"{r['gb_per_s']:.1f}",
            f"{r['by_fused_adamw']:.2f}",
            f"{r['by_fused_sgd']:.2f}",
        )
    console.print(table)
    # The targets are defined for the sizes of the full benchmark.
    for t in workload["targets"] if preset == "full" else []:
        relation = "at least" if t["at_least"] else "at most"
        verdict = "[green]met[/green]" if t["met"] else "[red]missed[/red]"
        console.print(f"  {t['promise']}: {t['measured']:.2f} ({relation} {t['bound']:g}: {verdict})")
