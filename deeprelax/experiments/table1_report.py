"""Table 1 from stored runs, beside the paper's figures: for a terminal, in Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from deeprelax.experiments.protocol import OPTIMIZERS, PAPER, SEEDS
from deeprelax.experiments.report import TITLES
from deeprelax.experiments.store import DIVERGED, FINISHED, Stored

NAMES = {"lenet": "LeNet", "allcnn": "All-CNN"}
# What tells two groups of runs apart, besides the seed.
ASIDE = ("seed",)


@dataclass(frozen=True)
class Row:
    """One cell of the table: the runs of one setting.

    Attributes:
        error: mean validation error in percent at the end of the finished runs; None if there is none.
        deviation: sample standard deviation over the seeds; None for fewer than two.
        epochs: effective epochs of each run.
        seeds: finished runs.
        diverged: runs whose loss is no longer a number.
        running: runs that are not at their end.
        device, precision: what the runs were had with.
        seconds: of a run, mean.
    """

    preset: str
    model: str
    optimizer: str
    variant: str
    error: float | None
    deviation: float | None
    epochs: int
    seeds: int
    diverged: int
    running: int
    device: str
    precision: str
    seconds: float

    @property
    def caveats(self) -> list[str]:
        """What keeps the row from being the paper's, in words."""
        paper = PAPER[self.model, self.optimizer]
        found = []
        if self.seeds < SEEDS:
            found.append(f"{self.seeds} of {SEEDS} seeds")
        if self.epochs < paper.epochs:
            found.append(f"{self.epochs} of {paper.epochs} effective epochs")
        if self.diverged:
            found.append(f"{self.diverged} diverged")
        if self.running:
            found.append(f"{self.running} not at their end")
        return found

    @property
    def value(self) -> str:
        """In the paper's form: mean ± deviation @ effective epochs."""
        if self.error is None:
            return "-"
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.error:.2f}{deviation} @ {self.epochs}"


def device_of(stored: Stored) -> str:
    """The GPU's name, or the CPU's with its threads."""
    about = stored.header["machine"]
    return about["gpu"] or f"{about['cpu']}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}"


def precision_of(settings: dict[str, Any]) -> str:
    return settings["autocast"] or ("tf32" if settings["tf32"] else "fp32")


def groups(runs: Iterable[Stored]) -> dict[tuple[str, str, str, str], list[Stored]]:
    """Runs that differ in the seed only, by preset, model, optimizer and variant.

    Where runs of several settings are there, those with the most effective epochs are taken, and of these the group
    with the most runs.
    """
    every: dict[tuple[str, str, str, str], dict[str, list[Stored]]] = {}
    for stored in runs:
        settings = stored.settings
        key = (settings["preset"], settings["model"], settings["optimizer"], settings["variant"])
        same = str(sorted((name, str(value)) for name, value in settings.items() if name not in ASIDE))
        every.setdefault(key, {}).setdefault(f"{same} {device_of(stored)}", []).append(stored)
    return {
        key: max(of_settings.values(), key=lambda found: (found[0].settings["epochs"], len(found)))
        for key, of_settings in every.items()
    }


def row(key: tuple[str, str, str, str], found: Sequence[Stored]) -> Row:
    """The row of one group."""
    finished = [stored for stored in found if stored.ended == FINISHED]
    errors = [100 * stored.records[-1]["validation_error"] for stored in finished]
    settings = found[0].settings
    return Row(
        *key,
        error=statistics.mean(errors) if errors else None,
        deviation=statistics.stdev(errors) if len(errors) > 1 else None,
        epochs=settings["epochs"],
        seeds=len(finished),
        diverged=sum(stored.ended == DIVERGED for stored in found),
        running=sum(stored.ended is None for stored in found),
        device=device_of(found[0]),
        precision=precision_of(settings),
        seconds=statistics.mean(stored.records[-1]["seconds"] for stored in finished) if finished else 0.0,
    )


def rows(runs: Iterable[Stored], preset: str) -> list[Row]:
    """Every row that has runs, in the paper's order, then the ablations."""
    found = [row(key, group) for key, group in groups(runs).items() if key[0] == preset]
    order = {pair: number for number, pair in enumerate(PAPER)}
    return sorted(found, key=lambda each: (each.variant, order[each.model, each.optimizer]))


def markdown(found: Sequence[Row], models: Sequence[str] = tuple(NAMES)) -> str:
    """The table, a line for each row of the paper; one without runs says so."""
    by_row = {(each.model, each.optimizer): each for each in found if not each.variant}
    lines = [
        "| model | optimizer | paper | this program | what differs from the paper's runs | device | s per run |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, optimizer), paper in PAPER.items():
        if model not in models:
            continue
        each = by_row.get((model, optimizer))
        start = f"| {NAMES[model]} | {TITLES[optimizer]} | {_paper(model, optimizer)} |"
        if each is None:
            lines.append(f"{start} not run | 0 of {SEEDS} seeds, 0 of {paper.epochs} effective epochs | | |")
        else:
            differs = ", ".join(each.caveats) or "nothing in seeds and epochs"
            lines.append(
                f"{start} {each.value} | {differs} | {each.device}, {each.precision} | {_seconds(each.seconds)} |"
            )
    return "\n".join(lines) + "\n"


def ablation_markdown(found: Sequence[Row]) -> str:
    """Scoping on and off, noise on and off; empty where no variant was run."""
    variants = {(each.model, each.variant): each for each in found if each.optimizer == "entropy-sgd"}
    lines = []
    for model in NAMES:
        # A full run of other length is no comparison.
        if not any(variant and name == model for name, variant in variants):
            continue
        for variant, scoping, noise in (
            ("", "on", "on"),
            ("no-scoping", "off", "on"),
            ("no-noise", "on", "off"),
            ("no-scoping-no-noise", "off", "off"),
        ):
            each = variants.get((model, variant))
            value = f"{each.value} | {each.seeds}" if each else "not run | 0"
            lines.append(f"| {NAMES[model]} | {scoping} | {noise} | {value} |")
    if not lines:
        return ""
    heading = [
        "| model | scoping | thermal noise | validation error (%) @ effective epochs | seeds |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(heading + lines) + "\n"


def table(found: Sequence[Row], models: Sequence[str]) -> Table:
    """For a terminal."""
    result = Table(
        title="Validation error (%) @ effective epochs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("model", "optimizer", "paper", "here", "fewer than the paper", "device"):
        result.add_column(heading)
    by_row = {(each.model, each.optimizer): each for each in found if not each.variant}
    for model in models:
        for optimizer in OPTIMIZERS:
            each = by_row.get((model, optimizer))
            ours = [each.value, ", ".join(each.caveats), each.device] if each else ["not run", "", ""]
            result.add_row(NAMES[model], TITLES[optimizer], _paper(model, optimizer), *ours)
    for each in found:
        if each.variant:
            ours = [each.value, ", ".join(each.caveats), each.device]
            result.add_row(NAMES[each.model], f"{TITLES[each.optimizer]} {each.variant}", "", *ours)
    return result


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row with the paper's figure; None where there is none."""
    return [
        {**asdict(each), "paper": asdict(PAPER[each.model, each.optimizer]) if not each.variant else None}
        for each in found
    ]


def _paper(model: str, optimizer: str) -> str:
    paper = PAPER[model, optimizer]
    return f"{paper.error:.2f} ± {paper.deviation:.2f} @ {paper.epochs}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds else ""
