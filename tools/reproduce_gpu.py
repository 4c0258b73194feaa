"""The paper's experiments on a machine with a GPU, the most informative runs first; results go into the repository.

    python tools/reproduce_gpu.py --data DIR --budget-minutes 25

Run ``make gpu SCRIPTS=tests`` before it, which builds the kernels in place and tests them. DIR has MNIST/raw and
cifar10.npz (or cifar-10-batches-py). One seed of each of the authors' eight rows comes first, then one of their
ablation and of the paper's preset, then the next seed. Finished runs are copied to bench/results/<gpu>/reproduction;
the same command resumes where the budget stopped it, as long as OUT exists.
Afterwards, here or elsewhere: python tools/reproduction.py
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from deeprelax import environment
from deeprelax.experiments.data.datasets import DataError
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import experiment, figure2, protocol, store
from deeprelax.experiments.table1 import report as table1_report
from deeprelax.experiments.table1.checkpoints import StoreError

ROOT = Path(__file__).parent.parent


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's experiments on a GPU.")
    parser.add_argument("--data", type=Path, required=True, help="has MNIST/raw and CIFAR-10")
    parser.add_argument("--budget-minutes", type=float, default=None)
    parser.add_argument("--out", type=Path, default=Path("out/reproduction-gpu"), help="runs and checkpoints")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="a folder for each machine")
    parser.add_argument("--models", nargs="+", choices=protocol.MODELS, default=list(protocol.MODELS))
    parser.add_argument("--seeds", type=int, default=protocol.SEEDS)
    parser.add_argument("--epochs", type=int, default=None, help="effective epochs; default: the paper's")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--tf32", action="store_true", help="not the paper's precision, and named in the table")
    precision.add_argument("--autocast", choices=["bf16"], default="", help="likewise")
    return parser.parse_args(given)


def plan(asked: argparse.Namespace) -> list[Run]:
    """Seed by seed: the authors' rows, their ablation, the paper's rows."""
    common = {"epochs": asked.epochs, "tf32": asked.tf32, "autocast": asked.autocast}
    runs = [
        run
        for preset in protocol.PRESETS
        for run in experiment.plan(
            preset, asked.models, protocol.OPTIMIZERS, asked.seeds, ablation=preset == "authors", **common
        )
    ]
    return sorted(runs, key=lambda run: (run.seed, protocol.PRESETS.index(run.preset)))


def keep(runs: Sequence[Run], out: Path, folder: Path) -> None:
    """Copy the files of the runs that have ended, and draw Figure 2 from them."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = store.path_of(run, out)
        if path.exists() and store.read(path).ended is not None:
            shutil.copyfile(path, folder / "runs" / path.name)
    kept = store.read_all(folder)
    for preset in {stored.settings["preset"] for stored in kept}:
        figure2.draw(kept, preset, folder)


def main(given: list[str] | None = None, device: str = "cuda") -> int:
    asked = arguments(given)
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        print("torch.cuda.is_available() is False: this needs a GPU, and a build of torch for CUDA", file=sys.stderr)
        return 2
    environment.reproducible_cublas(where)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else device
    folder = asked.results / "-".join(name.lower().split()) / "reproduction"
    console, runs = Console(), plan(asked)
    try:
        load = experiment.Loader(asked.data, asked.out / "cache", where)
        left = experiment.execute(runs, load, asked.out, console, budget_minutes=asked.budget_minutes)
    except (DataError, StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        keep(runs, asked.out, folder)
    for preset in protocol.PRESETS:
        console.print(table1_report.table(table1_report.rows(store.read_all(folder), preset), asked.models))
    print(f"{len(left)} of {len(runs)} runs are left; in {folder}: those that have ended. Then: tools/reproduction.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
