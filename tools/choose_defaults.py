"""Sweeps on digits that chose the optimizers' default ``lr``, ``gamma`` and ``temperature``, and the recipes.

- ``defaults``: 20 effective epochs at a constant learning rate, everything else at the class's defaults;
- ``plain``: the same on a network without batch norm, on which a learning rate is more easily too large;
- ``recipes``: SGD's learning rate and momentum, and momentum for the others: 40 effective epochs with the schedule of
  ``deeprelax train``.

    python tools/choose_defaults.py            # about 10 minutes on one core; writes bench/results/choose_defaults.json

The seeds differ from those of ``deeprelax train``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from deeprelax.environment import describe
from deeprelax.experiments.data.datasets import Data, load
from deeprelax.experiments.runs import Run
from deeprelax.experiments.training import DivergedError, train

ROOT = Path(__file__).parent.parent
PARTS = ("defaults", "plain", "recipes")
SEEDS = (100, 101)
NESTEROV = {"momentum": 0.9, "nesterov": True}


def grid(**values: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen))


def defaults() -> Iterator[tuple[str, dict[str, Any]]]:
    """(optimizer, options)"""
    for options in grid(lr=(0.1, 0.3, 1.0, 3.0), gamma=(0.01, 0.1, 1.0)):
        yield "hj", {"inner_steps": 5, **options}
    for ratio, gamma in itertools.product((0.3, 1.0), (0.1, 0.3, 1.0, 10.0)):
        yield "entropy-sgd", {"inner_steps": 20, "gamma": gamma, "lr": ratio * gamma}
    for temperature in (0.0, 1e-6, 1e-4, 1e-2):
        yield "entropy-sgd", {"inner_steps": 20, "gamma": 1.0, "lr": 1.0, "temperature": temperature}
    for options in grid(lr=(0.1, 0.3, 0.5, 1.0, 3.0), gamma=(1e-5, 1e-4, 1e-3)):
        yield "heat", {"inner_steps": 5, **options}


def recipes() -> Iterator[tuple[str, dict[str, Any]]]:
    """(optimizer, options): most for SGD, for which no defaults were swept."""
    for lr, momentum in itertools.product((0.03, 0.1, 0.3, 1.0), ({}, NESTEROV)):
        yield "sgd", {"lr": lr, **momentum}
    for optimizer, gamma in (("heat", 1e-4), ("hj", 1.0)):
        for options in ({"lr": 1.0}, {"lr": 2.0}, {"lr": 0.1, **NESTEROV}, {"lr": 0.3, **NESTEROV}):
            yield optimizer, {"inner_steps": 5, "gamma": gamma, **options}
    inner_nesterov = {"inner_momentum": 0.9, "nesterov": True}
    for gamma, inner_lr, momentum in itertools.product((1.0, 10.0), (0.1, 0.3), ({}, inner_nesterov)):
        yield "entropy-sgd", {"inner_steps": 20, "gamma": gamma, "lr": gamma, "inner_lr": inner_lr, **momentum}


def measure(data: Data, run: Run) -> dict[str, Any]:
    """Mean and deviation over the seeds; a run that diverges counts as a failure of the setting."""
    about = {"optimizer": run.optimizer, "options": run.options}
    errors, losses = [], []
    for seed in SEEDS:
        try:
            result, _ = train(dataclasses.replace(run, seed=seed), data)
        except DivergedError as error:
            return {**about, "failed": str(error)}
        errors.append(result.validation_error[-1])
        losses.append(result.training_loss[-1])
    return {
        **about,
        "validation_error": statistics.mean(errors),
        "deviation": statistics.stdev(errors),
        "training_loss": statistics.mean(losses),
    }


@click.command(help=__doc__)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "bench/results/choose_defaults.json")
def main(parts: tuple[str, ...], out: Path) -> None:
    torch.set_num_threads(1)
    data = load("digits")
    results = json.loads(out.read_text()) if out.exists() else {}
    results |= {"machine": describe(), "seeds": SEEDS}
    plans = {
        "defaults": (defaults, "digits-cnn", 20, ()),
        "plain": (defaults, "digits-mlp", 20, ()),
        "recipes": (recipes, "digits-cnn", 40, ((24 / 40, 0.2), (34 / 40, 0.04))),
    }
    for part in parts:
        grid_of_part, model, epochs, drops = plans[part]
        results[part] = []
        for optimizer, options in grid_of_part():
            row = measure(data, Run("", model, optimizer, SEEDS[0], epochs, options, drops))
            results[part].append(row)
            outcome = row.get("failed") or f"{row['validation_error']:.2%} error, loss {row['training_loss']:.4f}"
            click.echo(f"{part} {optimizer} {options}: {outcome}")
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
