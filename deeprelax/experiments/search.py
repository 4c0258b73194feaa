"""The search for what the paper leaves open: η, γ₀ and the schedule, with the same budget for every optimizer.

A trial is a run of a few effective epochs on a part of the training set. Another part of it decides, so that the test
set, on which Table 1 is read, takes no part in the choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deeprelax.experiments import files, store
from deeprelax.experiments.data import Data
from deeprelax.experiments.protocol import Run
from deeprelax.experiments.search_trials import score
from deeprelax.experiments.store import Stored

HELD_OUT_SEED = 0


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
            count = len(data.train_inputs)
            train = images if images is not None else count * 6 // 7
            held = max(1, train // 6)
            if train + held > count:
                raise ValueError(
                    f"--images {train}: with the {held} held out that is more than {data.name}'s {count} images"
                )
            order = torch.randperm(count, generator=torch.Generator().manual_seed(HELD_OUT_SEED))
            order = order.to(data.train_inputs.device)
            first, second = order[:train], order[train : train + held]
            parts = Data(
                data.name,
                data.train_inputs[first],
                data.train_targets[first],
                data.train_inputs[second],
                data.train_targets[second],
            )
            kept.clear()
            kept[run.model] = (parts, f"{digest} {train} for training, {held} held out")
        return kept[run.model]

    return load_parts


def write(out: Path, preset: str, models: Sequence[str], optimizers: Sequence[str], epochs: int) -> Path:
    """Collect the stored trials of that length into OUT/search-PRESET.json, the best one of each row named; the file's
    path."""
    wanted = (preset, epochs)
    ended = [
        s for s in store.read_all(out / "search")
        if s.ended is not None and (s.settings["preset"], s.settings["epochs"]) == wanted
    ]  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        for optimizer in optimizers:
            trials = [s for s in ended if (s.settings["model"], s.settings["optimizer"]) == (model, optimizer)]
            if trials:
                found.setdefault(model, {})[optimizer] = _collected(trials)
    path = out / f"search-{preset}.json"
    files.write_text(path, json.dumps({"preset": preset, "rows": found}, indent=1) + "\n")
    return path


def _collected(trials: Sequence[Stored]) -> dict[str, Any]:
    best = min(trials, key=score).settings
    return {
        "data": trials[0].header["data"],
        "machine": trials[0].header["machine"],
        "how": trials[0].header.get("how", {}),
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
    """What a trial varies of the options."""
    return {name: settings["options"][name] for name in ("lr", "gamma") if name in settings["options"]}


def best_of(path: Path, preset: str) -> dict[str, dict[str, dict[str, Any]]]:
    """For each model and optimizer in a search's file, "options" and "drops" for ``protocol.run``.

    Raises:
        ValueError: the file is not a search's, or of another preset.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        of = content["preset"]
        found = {
            model: {
                optimizer: {
                    "options": {name: float(value) for name, value in row["best"]["options"].items()},
                    "drops": tuple((float(at), float(factor)) for at, factor in row["best"]["drops"]),
                }
                for optimizer, row in of_model.items()
            }
            for model, of_model in content["rows"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of `deeprelax reproduce search`: {error}") from error
    if of != preset:
        raise ValueError(f"{path} is of the {of} preset, and --preset is {preset}")
    return found


def summary(path: Path) -> list[str]:
    """A line for each row of a search's file."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        f"{model:7} {optimizer:12} best of {len(row['trials'])}: "
        + ", ".join(f"{name}={value:g}" for name, value in row["best"]["options"].items())
        for model, of_model in rows.items()
        for optimizer, row in of_model.items()
    ]
