"""The search for what the paper leaves open: η, γ₀ and the schedule, with the same budget for every optimizer.

A trial is a run of a few effective epochs on a part of the training set. Another part of it decides, so that the test
set, on which Table 1 is read, takes no part in the choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from deeprelax.experiments import files, protocol, store
from deeprelax.experiments.data import Data
from deeprelax.experiments.protocol import Run
from deeprelax.experiments.store import Stored

HELD_OUT_SEED = 0
# What a trial does to the recipe: factors of η and of γ₀, and whether the rate falls earlier. SGD has no γ, and its
# share goes to more rates and to both schedules.
TRIALS: tuple[tuple[float, float, bool], ...] = (
    (1.0, 1.0, False), (0.3, 1.0, False), (3.0, 1.0, False), (1.0, 0.1, False), (1.0, 10.0, False), (1.0, 1.0, True),
)  # fmt: skip
SGD_TRIALS: tuple[tuple[float, float, bool], ...] = (
    (1.0, 1.0, False), (0.3, 1.0, False), (3.0, 1.0, False), (0.1, 1.0, False), (1.0, 1.0, True), (0.3, 1.0, True),
)  # fmt: skip
EARLY = 0.7  # of the fraction of the run at which the recipe's rate falls


def plan(preset: str, models: Iterable[str], optimizers: Iterable[str], epochs: int) -> list[Run]:
    """The trials: the first of every optimizer, then the second, and so on; all of ``epochs`` effective epochs."""
    optimizers = list(optimizers)
    return [
        _trial(preset, model, optimizer, epochs, number)
        for model in models
        for number in range(len(TRIALS))
        for optimizer in optimizers
    ]


def _trial(preset: str, model: str, optimizer: str, epochs: int, number: int) -> Run:
    rate, smoothing, early = (SGD_TRIALS if optimizer == "sgd" else TRIALS)[number]
    base = protocol.run(preset, model, optimizer, 0)
    options = {"lr": base.options["lr"] * rate}
    if "gamma" in base.options:
        options["gamma"] = base.options["gamma"] * smoothing
    drops = tuple((at * (EARLY if early else 1.0), factor) for at, factor in base.drops)
    return protocol.run(
        preset, model, optimizer, 0, epochs=epochs, variant=f"trial{number}", options=options, drops=drops,
        evaluate_every=epochs,
    )  # fmt: skip


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


def _score(stored: Stored) -> tuple[float, float]:
    """Lower is better: error, then training loss; a trial that diverged comes last."""
    last = stored.records[-1]
    if stored.ended != store.FINISHED:
        return float("inf"), float("inf")
    return last["validation_error"], last["training_loss"]


def write(out: Path, preset: str, models: Sequence[str], optimizers: Sequence[str]) -> Path:
    """Collect the stored trials into OUT/search-PRESET.json, the best one of each row named; the file's path."""
    ended = [s for s in store.read_all(out / "search") if s.ended is not None and s.settings["preset"] == preset]
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
    best = min(trials, key=_score).settings
    return {
        "data": trials[0].header["data"],
        "machine": trials[0].header["machine"],
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
        rows, of = content["rows"], content["preset"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of `deeprelax reproduce search`: {error}") from error
    if of != preset:
        raise ValueError(f"{path} is of the {of} preset, and --preset is {preset}")
    return {
        model: {
            optimizer: {
                "options": row["best"]["options"],
                "drops": tuple((at, factor) for at, factor in row["best"]["drops"]),
            }
            for optimizer, row in of_model.items()
        }
        for model, of_model in rows.items()
    }


def summary(path: Path) -> list[str]:
    """A line for each row of a search's file."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        f"{model:7} {optimizer:12} best of {len(row['trials'])}: "
        + ", ".join(f"{name}={value:g}" for name, value in row["best"]["options"].items())
        for model, of_model in rows.items()
        for optimizer, row in of_model.items()
    ]
