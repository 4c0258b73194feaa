"""``deeprelax train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import torch

from deeprelax import environment, kernels
from deeprelax.cli.common import (
    COUNT,
    NUMBER,
    PARALLEL,
    backend_option,
    check_writable,
    data_option,
    device_option,
    extras_needed,
    make_console,
    out_option,
    refuse_without_gpu,
    threads_option,
)
from deeprelax.experiments import recipes
from deeprelax.experiments.models import MODELS
from deeprelax.experiments.recipes import PLANS, takes
from deeprelax.experiments.runs import BATCH_SIZE, EVERY, OPTIMIZERS, WORKERS
from deeprelax.experiments.training import DivergedError, Result, check
from deeprelax.terminal import uninterrupted


def _per_dataset(attribute: str) -> str:
    return "[default: " + ", ".join(f"{getattr(plan, attribute)} for {name}" for name, plan in PLANS.items()) + "]"


def _recipes() -> str:
    """The settings of every recipe, for the help."""
    lines = ["\b", "Default settings (sources: deeprelax/experiments/recipes.py):"]
    for dataset, plan in PLANS.items():
        for optimizer, options in plan.options.items():
            shown = "  ".join(f"{name}={value}" for name, value in options.items())
            lines.append(f"  {dataset:7} {optimizer:12} {shown}")
    return "\n".join(lines)


@click.command(epilog=_recipes())
@click.option(
    "--optimizer", "optimizers", multiple=True, type=click.Choice(list(EVERY)),
    help="May be given several times; elastic-sgd and parle are for torchrun.  [default: the other four]",
)  # fmt: skip
@click.option(
    "--dataset", type=click.Choice(list(PLANS)), default="digits", show_default=True,
    help="digits: 1,797 images of 8x8 that come with scikit-learn. mnist: 70,000 of 28x28, downloaded if need be.",
)  # fmt: skip
@data_option("MNIST's folder, laid out as torchvision's: DIR/MNIST/raw/*-ubyte, or .gz.")
@click.option("--model", type=click.Choice(list(MODELS)), help=f"The network.  {_per_dataset('model')}")
@click.option("--seeds", type=PARALLEL, help=f"Runs per optimizer, seeds 0, 1, …  {_per_dataset('seeds')}")
@click.option(
    "--epochs", type=COUNT,
    help="Effective epochs: gradients taken over batches per epoch, equal for all optimizers, so that all have the "
    f"same time to learn.  {_per_dataset('epochs')}",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(2), default=BATCH_SIZE, show_default=True, help="Images per gradient."
)
@click.option("--lr", type=NUMBER, help="η, the step size of the (outer) update; it falls during the run.")
@click.option("--gamma", type=NUMBER, help="γ, how much is smoothed; not for sgd. Shrinks by --scoping at each update.")
@click.option("--inner-steps", type=COUNT, help="L, gradients per outer update; not for sgd (Remark 15 of the paper).")
@click.option("--inner-lr", type=NUMBER, help="η′, the step size of the inner loop; entropy-sgd only.")
@click.option("--temperature", type=NUMBER, help="β⁻¹, the strength of the noise; entropy-sgd only.")
@click.option("--scoping", type=NUMBER, help="The fraction by which γ shrinks at each outer update; not for sgd.")
@click.option("--momentum", type=NUMBER, help="Momentum of the (outer) update.")
@click.option("--weight-decay", type=NUMBER, help="Weight decay, added to every gradient.")
@out_option("Where the table, the picture and the JSON file go.", default=Path("out"))
@threads_option("1 for digits, torch's choice otherwise")
@device_option
@backend_option
def train(
    optimizers: tuple[str, ...],
    dataset: str,
    folder: Path | None,
    model: str | None,
    seeds: int | None,
    epochs: int | None,
    batch_size: int,
    out: Path,
    threads: int | None,
    device: str,
    backend: str,
    **tuned: Any,
) -> None:
    """Train one network with each optimizer and compare them.

    Prints a table of validation error and training loss, and writes a picture of their curves and a JSON file with
    every number. Errors are those of x, the weights that eval() puts into the model, with batch norm's statistics
    gathered again at x.

    \b
    Examples:
      deeprelax train                                       all four on digits, a minute or two
      deeprelax train --optimizer hj --gamma 0.3 --seeds 1  one optimizer, another γ
      deeprelax train --dataset mnist --optimizer entropy-sgd --optimizer sgd --epochs 5
      deeprelax train --dataset mnist --device cuda --epochs 80 --seeds 6    as the paper
      torchrun --nproc-per-node 3 -m deeprelax train --optimizer elastic-sgd --optimizer parle    three workers
    """
    chosen = tuple(dict.fromkeys(optimizers)) or tuple(OPTIMIZERS)
    options = {name: value for name, value in tuned.items() if value is not None}
    for name in options:
        if not any(takes(optimizer, name) for optimizer in chosen):
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for {', '.join(chosen)}")
    if folder is not None and dataset == "digits":
        raise click.UsageError("--data has no meaning for digits, which come with scikit-learn")
    refuse_without_gpu(device)
    rank = join_workers(chosen, device)
    with extras_needed():
        from deeprelax.experiments import progress, report
        from deeprelax.experiments.data.datasets import DataError, load

        environment.reproducible_cublas(torch.device(device))
        for path in report.paths(out, dataset).values():
            check_writable("--out", path)
        try:
            data = load(dataset, folder).to(torch.device(device))
        except DataError as error:
            raise click.ClickException(str(error)) from error
        plan = PLANS[dataset]
        common: dict[str, Any] = {"model": model, "epochs": epochs, "batch_size": batch_size, "options": options}
        count = range(seeds or plan.seeds)
        runs = [recipes.run(dataset, name, seed, **common) for name in chosen for seed in count]
        console = make_console(quiet=rank > 0)
        if not torch.distributed.is_initialized() and (alone := [name for name in chosen if name in WORKERS]):
            console.print(f"{' and '.join(alone)}: one worker; torchrun --nproc-per-node 3 -m deeprelax … starts three")
        try:  # `check` asks for none where only SGD runs
            used = kernels.get(backend, torch.device(device)).name
        except (ValueError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
        with environment.threads(threads or plan.threads):
            about = {**environment.describe(torch.device(device)), "backend": used}
            for run in runs[:: len(count)]:
                try:
                    check(run, data, backend)
                except (ValueError, RuntimeError) as error:
                    raise click.ClickException(f"{run.optimizer}: {error}") from error
            results: dict[str, list[Result]] = {}
            unfinished = ""
            try:
                progress.run_all(runs, data, backend, console, results)
            except (KeyboardInterrupt, DivergedError, RuntimeError) as error:  # memory, say, or another worker is gone
                unfinished = str(error) or "interrupted"
        # Under another name: an earlier, complete result stays.
        name = f"{dataset}-unfinished" if unfinished else dataset
        if results and rank == 0:
            try:
                with uninterrupted():
                    report.write(report.Experiment(dataset, results, about), out, name, console)
            except OSError as error:
                raise click.ClickException("; ".join(filter(None, (unfinished, str(error))))) from error
        if unfinished:
            kept = _kept(results, len(runs), out / name) if rank == 0 else "rank 0 keeps the runs that had ended"
            raise click.ClickException(f"{unfinished}; {kept}")


def join_workers(chosen: tuple[str, ...], device: str) -> int:
    """Under torchrun with several processes: join its group; this process's rank.

    Raises:
        UsageError: there are several processes, and an optimizer that trains in one; or torchrun's variables are not
            what it sets.
    """
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if alone := [name for name in chosen if name not in WORKERS]:
            raise click.UsageError(
                f"{', '.join(alone)} trains in one process; only {' and '.join(WORKERS)} use several"
            )
        if device == "cuda":
            torch.cuda.set_device(local)
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:  # a variable is missing or not a number, or there is no answer
        raise click.UsageError(f"WORLD_SIZE is set for several processes, which torchrun starts: {error}") from error
    return torch.distributed.get_rank()


def _kept(results: dict[str, list[Result]], runs: int, stem: Path) -> str:
    """What an unfinished comparison leaves, and how to resume it."""
    finished = sum(map(len, results.values()))
    kept = f"{finished} of {runs} runs had ended and are kept in {stem}.json" if finished else "no run had ended"
    return (
        f"{kept}. `train` does not resume a run: --optimizer and --seeds choose what to run again "
        "(`deeprelax reproduce` has checkpoints)"
    )
