"""The ablation of section 8 from stored runs: Entropy-SGD with scoping and thermal noise on and off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deeprelax.experiments.table1.protocol import ABLATED, ABLATION, MODELS
from deeprelax.experiments.table1.report import NAMES, Row, origin, rank, row
from deeprelax.experiments.table1.store import FINISHED, Stored

# Of each variant, whether scoping and noise are on.
VARIANTS = {
    "": ("on", "on"),
    "no-scoping": ("off", "on"),
    "no-noise": ("on", "off"),
    "no-scoping-no-noise": ("off", "off"),
}
ASIDE = ("seed", "variant", "evaluate_every", "options")
SWITCHED = {name for off in ABLATION.values() for name in off}


def alike(runs: Iterable[Stored], preset: str, model: str) -> dict[str, list[Stored]]:
    """By variant, runs that differ only in what was switched off and in the seed: same length, precision, device and
    data. Of several such sets, the one with the most finished variants; in a tie it is chosen as a row of the table is.
    Empty if no variant was run."""
    every: dict[str, dict[str, list[Stored]]] = {}
    for stored in runs:
        settings = stored.settings
        if (settings["preset"], settings["model"], settings["optimizer"]) == (preset, model, ABLATED):
            options = {name: value for name, value in settings["options"].items() if name not in SWITCHED}
            same = {name: value for name, value in settings.items() if name not in ASIDE}
            common = f"{sorted(same.items())} {sorted(options.items())} {origin(stored)}"
            if settings["variant"] in VARIANTS:
                every.setdefault(common, {}).setdefault(settings["variant"], []).append(stored)
    ablated = [found for found in every.values() if any(found)]
    return max(ablated, key=_rank, default={})


def _rank(found: dict[str, list[Stored]]) -> tuple[int, ...]:
    finished = sum(any(stored.ended == FINISHED for stored in of_variant) for of_variant in found.values())
    return (finished, *rank([stored for of_variant in found.values() for stored in of_variant]))


def rows(found: dict[str, list[Stored]], preset: str, model: str) -> dict[str, Row]:
    """A row for each variant that ``alike`` found."""
    return {variant: row((preset, model, ABLATED, variant), of_variant) for variant, of_variant in found.items()}


def is_whole(runs: Sequence[Stored], preset: str, model: str) -> bool:
    """Whether every variant was run with the paper's seeds, length and precision."""
    found = rows(alike(runs, preset, model), preset, model)
    return set(found) == set(VARIANTS) and not any(each.caveats for each in found.values())


def markdown(runs: Sequence[Stored], preset: str) -> str:
    """The table, how much its differences say, and how much scoping changed γ; empty if no variant was run."""
    lines, below = [], []
    for model in MODELS:
        compared = alike(runs, preset, model)
        found = rows(compared, preset, model)
        if not found:
            continue
        for variant, (scoping, noise) in VARIANTS.items():
            each = found.get(variant)
            value = "not run | 0 | |"
            if each:
                value = f"{each.value} | {each.seeds} | {each.differs} | {each.device}, {each.precision}"
            lines.append(f"| {NAMES[model]} | {scoping} | {noise} | {value} |")
        below.append(f"{NAMES[model]}: {of_seeds(found.values())} {_scoped(compared)}".rstrip())
    if not lines:
        return ""
    heading = [
        "| model | scoping | thermal noise | validation error (%) @ effective epochs | seeds | what differs from the "
        "paper's runs | device |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*heading, *lines, "", *below]) + "\n"


def of_seeds(found: Iterable[Row]) -> str:
    """What the differences between rows can say, by the number of their seeds."""
    seeds = min(each.seeds for each in found)
    if seeds == 0:
        return "a row without a finished run is compared with nothing."
    if seeds == 1:
        return "one seed: no difference here shows an effect, because nothing says what another seed would give."
    return f"{seeds} seeds: ± is one standard deviation over them, and differences within two may be chance."


def _scoped(found: dict[str, list[Stored]]) -> str:
    finished = [stored for stored in found.get("", []) if stored.ended == FINISHED]
    if not finished:
        return ""
    settings, last = finished[0].settings, finished[0].records[-1]
    updates = last["gradients"] // settings["options"]["inner_steps"]
    left = last["gamma"] / settings["options"]["gamma"]
    return f"In {settings['epochs']} effective epochs scoping makes {updates} steps and leaves γ at {left:.2f} γ₀."
