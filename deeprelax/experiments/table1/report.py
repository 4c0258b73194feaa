"""Table 1 from stored runs, next to the paper's figures: for a terminal, in Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from deeprelax.experiments.report import TITLES
from deeprelax.experiments.runs import BATCH_SIZE
from deeprelax.experiments.table1 import protocol
from deeprelax.experiments.table1.protocol import OPTIMIZERS, PAPER, SEEDS, TRAINING_IMAGES
from deeprelax.experiments.table1.store import DIVERGED, FINISHED, Stored

NAMES = {"lenet": "LeNet", "allcnn": "All-CNN"}
PAPERS_PRECISION = "fp32"
Key = tuple[str, str, str, str]  # preset, model, optimizer, variant


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
        moved: runs that were resumed on another machine or with another version of the program.
        gradients: of an effective epoch; None before the first evaluation.
        as_preset: whether the settings are the preset's, and not those that a search found or an older version had.
        device, precision: that the runs were produced with.
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
    moved: int
    gradients: int | None
    as_preset: bool
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
        if self.epochs > paper.epochs:
            found.append(f"{self.epochs} effective epochs instead of {paper.epochs}")
        whole = TRAINING_IMAGES[self.model] // BATCH_SIZE
        if self.gradients not in (None, whole):
            found.append(f"{self.gradients} gradients an epoch instead of {whole}: not all images")
        if not self.as_preset:
            found.append("settings other than the preset's")
        if self.precision != PAPERS_PRECISION:
            found.append(f"{self.precision} instead of {PAPERS_PRECISION}")
        if self.diverged:
            found.append(f"{self.diverged} diverged")
        if self.running:
            found.append(f"{self.running} not at their end")
        if self.moved:
            found.append(f"{self.moved} resumed on another machine or version")
        return found

    @property
    def differs(self) -> str:
        """The caveats in a line."""
        return ", ".join(self.caveats) or "nothing in seeds, epochs, images, settings and precision"

    @property
    def value(self) -> str:
        """In the paper's form: mean ± deviation @ effective epochs."""
        if self.error is None:
            return "-"
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.error:.2f}{deviation} @ {self.epochs}"


def device_of(place: dict[str, Any]) -> str:
    """The GPU's name, or the CPU's with its threads."""
    about = place["machine"]
    return about["gpu"] or f"{about['cpu']}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}"


def origin(stored: Stored) -> str:
    """What runs must share besides their settings to be compared: where they were begun, and the data."""
    return f"{device_of(stored.header)} {stored.header['data']}"


def precision_of(settings: dict[str, Any]) -> str:
    """ "fp32", "tf32" or the dtype of autocast."""
    return settings["autocast"] or ("tf32" if settings["tf32"] else "fp32")


def produced_with(stored: Stored) -> str:
    """Devices and precision."""
    return f"{_devices([stored])}, {precision_of(stored.settings)}"


def _devices(found: Iterable[Stored]) -> str:
    return " and ".join(dict.fromkeys(device_of(place) for stored in found for place in stored.places))


def groups(runs: Iterable[Stored]) -> dict[Key, list[Stored]]:
    """Runs that differ in the seed only, by preset, model, optimizer and variant; of one device, and the same data.

    If runs of several settings exist, the group is chosen by, in this order: whether any run is finished, the preset's
    settings, the paper's length, its precision, the distance from its length, the number of finished runs, the number
    of runs. So a run that was only begun, or a longer one, does not displace a row.
    """
    every: dict[Key, dict[str, list[Stored]]] = {}
    for stored in runs:
        settings = stored.settings
        key = (settings["preset"], settings["model"], settings["optimizer"], settings["variant"])
        same = str(sorted((name, str(value)) for name, value in settings.items() if name != "seed"))
        every.setdefault(key, {}).setdefault(f"{same} {origin(stored)}", []).append(stored)
    return {key: max(of_settings.values(), key=rank) for key, of_settings in every.items()}


def rank(found: Sequence[Stored]) -> tuple[int, ...]:
    """The sort key of the groups that could be a row; the greatest is taken: see ``groups``."""
    settings = found[0].settings
    paper = PAPER[settings["model"], settings["optimizer"]].epochs
    finished = sum(stored.ended == FINISHED for stored in found)
    return (
        finished > 0,
        as_preset(settings),
        settings["epochs"] == paper,
        precision_of(settings) == PAPERS_PRECISION,
        -abs(settings["epochs"] - paper),
        finished,
        len(found),
    )


def as_preset(settings: dict[str, Any]) -> bool:
    """Whether a stored run's settings are those that ``protocol`` gives its row now."""
    named = {name: settings[name] for name in ("epochs", "variant", "autocast", "tf32", "evaluate_every")}
    row = (settings["preset"], settings["model"], settings["optimizer"], settings["seed"])
    return protocol.run(*row, **named).settings() == settings


def row(key: Key, found: Sequence[Stored]) -> Row:
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
        moved=sum(bool(stored.gone_on) for stored in found),
        gradients=gradients_an_epoch(found),
        as_preset=as_preset(settings),
        device=_devices(found),
        precision=precision_of(settings),
        seconds=statistics.mean(stored.records[-1]["seconds"] for stored in finished) if finished else 0.0,
    )


def gradients_an_epoch(found: Iterable[Stored]) -> int | None:
    """None before the first evaluation."""
    last = [stored.records[-1] for stored in found if stored.records]
    return round(last[0]["gradients"] / last[0]["effective_epoch"]) if last else None


def rows(runs: Iterable[Stored], preset: str) -> list[Row]:
    """Every row that has runs, in the paper's order, then the ablations."""
    found = [row(key, group) for key, group in groups(runs).items() if key[0] == preset]
    order = {pair: number for number, pair in enumerate(PAPER)}
    return sorted(found, key=lambda each: (each.variant, order[each.model, each.optimizer]))


def markdown(found: Sequence[Row], models: Sequence[str] = tuple(NAMES)) -> str:
    """The table, a line for each row of the paper; one without runs says so."""
    by_row = {(each.model, each.optimizer): each for each in found if not each.variant}
    lines = [
        "| model | optimizer | paper | this program | seeds | what differs from the paper's runs | device "
        "| s per run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, optimizer), paper in PAPER.items():
        if model not in models:
            continue
        each = by_row.get((model, optimizer))
        start = f"| {NAMES[model]} | {TITLES[optimizer]} | {_paper(model, optimizer)} |"
        if each is None:
            lines.append(f"{start} not run | 0 | 0 of {SEEDS} seeds, 0 of {paper.epochs} effective epochs | | |")
        else:
            lines.append(
                f"{start} {each.value} | {each.seeds} | {each.differs} | {each.device}, {each.precision} | "
                f"{_seconds(each.seconds)} |"
            )
    return "\n".join(lines) + "\n"


def table(found: Sequence[Row], models: Sequence[str]) -> Table:
    """For a terminal."""
    result = Table(
        title="Validation error (%) @ effective epochs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("model", "optimizer", "paper", "here", "seeds", "unlike the paper's runs", "produced with"):
        result.add_column(heading)
    by_row = {(each.model, each.optimizer): each for each in found if not each.variant}
    for model in models:
        for optimizer in OPTIMIZERS:
            each = by_row.get((model, optimizer))
            ours = _ours(each) if each else ["not run", "0", "", ""]
            result.add_row(NAMES[model], TITLES[optimizer], _paper(model, optimizer), *ours)
    for each in found:
        if each.variant:
            result.add_row(NAMES[each.model], f"{TITLES[each.optimizer]} {each.variant}", "", *_ours(each))
    return result


def as_json(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row with the paper's figure; None where a value is missing."""
    return [
        {**asdict(each), "paper": asdict(PAPER[each.model, each.optimizer]) if not each.variant else None}
        for each in found
    ]


def _ours(each: Row) -> list[str]:
    return [each.value, str(each.seeds), ", ".join(each.caveats), f"{each.device}, {each.precision}"]


def _paper(model: str, optimizer: str) -> str:
    paper = PAPER[model, optimizer]
    return f"{paper.error:.2f} ± {paper.deviation:.2f} @ {paper.epochs}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds else ""
