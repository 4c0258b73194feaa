"""The search for the values that the paper leaves open: η, γ₀ and the schedule, with equal budgets for all optimizers.

A trial is a run of a few effective epochs on a part of the training set. Another part of it decides, so that the test
set, on which Table 1 is evaluated, does not influence the choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import store
from deeprelax.experiments.table1.checkpoints import StoreError
from deeprelax.experiments.table1.protocol import MODELS, OPTIMIZERS
from deeprelax.experiments.table1.search_trials import FURTHER, TRIALS, score
from deeprelax.experiments.table1.store import Stored
from deeprelax.files import write_json


def held_out(load: Callable[[Run], tuple[Data, str]], images: int | None) -> Callable[[Run], tuple[Data, str]]:
    """``load`` with the training set alone: ``images`` of it to train on, a sixth as many others in the place of the
    validation images. None takes all of it.

    Raises (when called):
        ValueError: the training set has too few images.
    """
    kept: dict[str, tuple[Data, str]] = {}

    def load_parts(run: Run) -> tuple[Data, str]:
        if run.model not in kept:
            data, digest = load(run)
            count = len(data.train_targets)
            train = images if images is not None else count * 6 // 7
            held = max(1, train // 6)
            if train + held > count:
                raise ValueError(
                    f"--images {train}: with the {held} held out that is more than {data.name}'s {count} images"
                )
            parts = Data(data.name, *data.part(0, train), *data.part(train, train + held))
            kept.clear()
            kept[run.model] = (parts, f"{digest} {train} for training, {held} held out")
        return kept[run.model]

    return load_parts


def write(out: Path, preset: str, epochs: int) -> Path:
    """Collect every stored trial of that preset and length into OUT/search-PRESET.json, the best one of each row named;
    the file's path.

    Raises:
        StoreError: trials of a model are of different data.
    """
    found: dict[str, dict[str, list[Stored]]] = {}
    for stored in store.read_all(out / "search"):
        settings = stored.settings
        if stored.ended is not None and (settings["preset"], settings["epochs"]) == (preset, epochs):
            found.setdefault(settings["model"], {}).setdefault(settings["optimizer"], []).append(stored)
    for model, rows in found.items():
        data = sorted({stored.header["data"] for trials in rows.values() for stored in trials})
        if len(data) > 1:
            raise StoreError(f"{out / 'search'}: the trials of {model} are of different data, {'; '.join(data)}")
    collected = {
        model: {optimizer: _collected(found[model][optimizer]) for optimizer in OPTIMIZERS if optimizer in found[model]}
        for model in MODELS
        if model in found
    }
    path = out / f"search-{preset}.json"
    write_json(path, {"preset": preset, "rows": collected})
    return path


def _collected(trials: Sequence[Stored]) -> dict[str, Any]:
    best = min(trials, key=score).settings
    places = [{name: place.get(name, {}) for name in ("machine", "how")} for s in trials for place in s.places]
    return {
        "data": trials[0].header["data"],
        "places": [place for number, place in enumerate(places) if place not in places[:number]],
        "whole": len(trials) == len(TRIALS) + FURTHER,
        "best": {"options": _open(best), "drops": best["drops"]},
        "trials": [
            {
                "options": _open(s.settings),
                "drops": s.settings["drops"],
                "epochs": s.settings["epochs"],
                "gradients": s.records[-1]["gradients"],
                "held_out_error": s.records[-1]["validation_error"],
                "training_loss": s.records[-1]["training_loss"],
                "ended": s.ended,
            }
            for s in trials
        ],
    }


def _open(settings: dict[str, Any]) -> dict[str, Any]:
    """The options that a trial varies."""
    return {name: settings["options"][name] for name in ("lr", "gamma") if name in settings["options"]}


def best_of(
    path: Path, preset: str, models: Sequence[str], optimizers: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each of the models and optimizers, "options" and "drops" for ``protocol.run`` from a search's file.

    Raises:
        ValueError: the file is not a search's, or of another preset, or a row has not had all its trials.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        of = content["preset"]
        rows = {
            (model, optimizer): (row["whole"], _chosen(row["best"]))
            for model, of_model in content["rows"].items()
            for optimizer, row in of_model.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of `deeprelax reproduce search`: {error}") from error
    if of != preset:
        raise ValueError(f"{path} is of the {of} preset, and --preset is {preset}")
    lacking = [f"{m} {o}" for m in models for o in optimizers if (m, o) not in rows or not rows[m, o][0]]
    if lacking:
        raise ValueError(
            f"{path} has not all trials of {', '.join(lacking)}: `deeprelax reproduce search` resumes them, and "
            "--models and --optimizers take those that are there"
        )
    return {model: {optimizer: rows[model, optimizer][1] for optimizer in optimizers} for model in models}


def _chosen(best: dict[str, Any]) -> dict[str, Any]:
    return {
        "options": {name: float(value) for name, value in best["options"].items()},
        "drops": tuple((float(fraction), float(factor)) for fraction, factor in best["drops"]),
    }


def summary(path: Path) -> list[str]:
    """A line for each row of a search's file."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        f"{model:7} {optimizer:12} best of {len(row['trials'])}{'' if row['whole'] else ', not all'}: "
        + ", ".join(f"{name}={value:g}" for name, value in row["best"]["options"].items())
        for model, of_model in rows.items()
        for optimizer, row in of_model.items()
    ]
