"""``deeprelax reproduce``: table1, figure2 and search. Imports only click and torch until a command runs."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from deeprelax import environment, kernels
from deeprelax.cli.common import (
    COUNT,
    NUMBER,
    PARALLEL,
    check_writable,
    data_option,
    extras_needed,
    make_console,
    out_option,
    threads_option,
)
from deeprelax.experiments.table1 import protocol

if TYPE_CHECKING:  # a console is rich's, which only the extra brings
    from rich.console import Console


OUT = Path("out/reproduction")


class Names(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """Names separated by commas."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """In the order of ``known``."""
        if isinstance(value, tuple):
            return value
        given = [name.strip() for name in str(value).split(",") if name.strip()]
        for name in given:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        if not given:
            self.fail(f"no name; known are {', '.join(self.known)}", param, ctx)
        return tuple(name for name in self.known if name in given)


preset_option = click.option(
    "--preset", type=click.Choice(protocol.PRESETS), default="authors", show_default=True,
    help="authors: their program's networks, momenta, whitening, and batches with replacement. paper: its sections 6 "
    "and 7 to the letter, without replacement, pylearn2's whitening.",
)  # fmt: skip


def _shared(command: Callable[..., Any], images: str) -> Callable[..., Any]:
    """Options shared by table1 and search; ``images`` completes the help of ``--images``."""
    for option in reversed(
        [
            data_option(
                "Folder of MNIST/raw, and cifar10.npz or cifar-10-batches-py; torchvision downloads what is missing."
            ),
            out_option("Runs, checkpoints and tables; existing runs are not run again.", default=OUT),
            click.option(
                "--models", type=Names(protocol.MODELS), default=",".join(protocol.MODELS), show_default=True
            ),
            click.option(
                "--optimizers", type=Names(protocol.OPTIMIZERS), default=",".join(protocol.OPTIMIZERS),
                show_default=True,
            ),
            preset_option,
            click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1."),
            threads_option(remark="; a resumed run keeps its own"),
            click.option(
                "--budget-minutes", type=NUMBER,
                help="Stop after this time; the next call resumes where this one stopped.  [default: none]",
            ),
            click.option("--images", type=COUNT, metavar="N", help=f"Train on N images of the training set{images}"),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


@contextlib.contextmanager
def _prepared(device: str, threads: int | None) -> Iterator[torch.device]:
    """The device, checked; missing packages and errors that a user can fix become messages."""
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise click.BadParameter(f"{device!r} is not a device: cpu, cuda or cuda:1", param_hint="--device") from error
    if where.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"{device!r} is neither a CPU nor an NVIDIA GPU", param_hint="--device")
    if where.type == "cuda":
        if (where.index or 0) >= torch.cuda.device_count():
            raise click.ClickException(f"--device {device}: torch finds no such GPU here; see deeprelax doctor")
        environment.reproducible_cublas(where)
    try:
        kernels.get("auto", where)
    except (RuntimeError, ValueError) as error:  # DEEPRELAX_BACKEND names one
        raise click.ClickException(f"DEEPRELAX_BACKEND: {error}") from error
    with extras_needed(), environment.threads(threads):
        yield where


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    from deeprelax.experiments.data.datasets import DataError
    from deeprelax.experiments.table1.checkpoints import StoreError

    try:
        yield
    except (DataError, StoreError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def _stopped_by_signals(out: Path) -> Iterator[Callable[[], bool]]:
    """Whether to save the run and stop. The second Ctrl-C does not wait, and leaves the last checkpoint."""
    interruptions = click.get_current_context().obj
    try:
        with interruptions.asking("saving the run and stopping; Ctrl-C once more stops at once") as stop:
            yield stop
    except KeyboardInterrupt:
        raise click.ClickException(
            f"interrupted: finished runs are in {out}, and of the one under way what its last checkpoint holds; the "
            "same command resumes there"
        ) from None


def _end(stopped: bool) -> None:
    """Exit with the code of an interruption if the command was stopped."""
    if stopped:
        click.get_current_context().exit(1)


@click.group()
def reproduce() -> None:
    """The paper's experiments: Table 1, Figure 2, and the search for what it leaves open.

    \b
    deeprelax reproduce table1 --data DIR --device cuda      the missing runs of the table, most informative first
    deeprelax reproduce figure2                              the figure from the existing runs
    deeprelax reproduce search --data DIR                    η and γ₀, with equal budgets for all optimizers
    """


@reproduce.command()
@functools.partial(_shared, images=".  [default: all]")
@click.option("--seeds", type=PARALLEL, default=protocol.SEEDS, show_default=True, help="Runs of each row.")
@click.option(
    "--epochs", type=COUNT,
    help="Effective epochs of every run: gradients over batches per epoch.  [default: the paper's, row by row]",
)  # fmt: skip
@click.option(
    "--until", type=COUNT, metavar="EPOCH",
    help="Save every run at this effective epoch, its schedule unchanged; without it the next call resumes.",
)  # fmt: skip
@click.option("--evaluate-every", type=COUNT, help="Effective epochs.  [default: at about 40 points of a run]")
@click.option("--autocast", type=click.Choice(["bf16"]), help="Mixed precision.  [default: float32]")
@click.option("--tf32/--no-tf32", default=False, show_default=True, help="Allow TF32 on the GPU.")
@click.option("--ablation", is_flag=True, help="Also Entropy-SGD without scoping, without noise, and without both.")
@click.option(
    "--found", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Take η, γ₀ and the schedule from this file of `reproduce search`.  [default: protocol.py's]",
)  # fmt: skip
@click.option(
    "--checkpoint-seconds", type=NUMBER, default=60.0, show_default=True,
    help="Time between checkpoints; a killed run repeats what it did after its last one.",
)  # fmt: skip
def table1(
    folder: Path | None,
    out: Path,
    models: tuple[str, ...],
    optimizers: tuple[str, ...],
    preset: str,
    device: str,
    threads: int | None,
    budget_minutes: float | None,
    images: int | None,
    seeds: int,
    epochs: int | None,
    until: int | None,
    evaluate_every: int | None,
    autocast: str | None,
    tf32: bool,
    ablation: bool,
    found: Path | None,
    checkpoint_seconds: float,
) -> None:
    """Run the missing runs of Table 1, and print the table next to the paper's.

    Each run leaves a JSON-lines file and a checkpoint in OUT. Ctrl-C saves the run under way and stops. A run that was
    interrupted or killed is resumed from its checkpoint and ends with the same bits on the same machine. One seed of
    every row comes first, then more seeds.

    \b
    An effective epoch takes
      LeNet     40 s of one core of an AMD EPYC with the evaluation after it (docs/reproduction.md has the runs), on
                a GPU less than All-CNN (estimated: 468 replays of a graph of small kernels)
      All-CNN   0.4 to 0.8 s on an H200 with --tf32 or --autocast bf16, longer in float32 (estimated from 90 TFLOP an
                epoch and from public programs of that size; not measured), half an hour of one such core, and as
                much again for an evaluation, which takes two passes over the training set (docs/reproduction.md)
    The table's eight rows are 942 effective epochs per seed.

    \b
    Examples:
      deeprelax reproduce table1 --data DIR --device cuda                        the whole table, six seeds
      deeprelax reproduce table1 --data DIR --device cuda --budget-minutes 30    as much of it as half an hour allows
      deeprelax reproduce table1 --data DIR --models lenet --seeds 1 --epochs 3  a first look, on a CPU
      deeprelax reproduce table1 --data DIR --images 3200 --until 10 --seeds 1   whether a row begins well, on a CPU
    """
    if ablation and protocol.ABLATED not in optimizers:
        raise click.UsageError(f"--ablation needs {protocol.ABLATED}, which --optimizers leaves out")
    with _prepared(device, threads) as where:
        from deeprelax.experiments.table1 import experiment
        from deeprelax.experiments.table1 import search as searching

        console = make_console(width=140)
        with _errors(), _stopped_by_signals(out) as stop:
            check_writable("--out", out / f"table1-{preset}.md")
            chosen = searching.best_of(found, preset, models, optimizers) if found else None
            runs = experiment.plan(
                preset, models, optimizers, seeds, ablation=ablation, found=chosen, epochs=epochs,
                evaluate_every=evaluate_every, autocast=autocast or "", tf32=tf32,
            )  # fmt: skip
            load = experiment.Loader(folder, out / "cache", where, images)
            left = experiment.execute(
                runs, load, out, console, budget_minutes=budget_minutes, until=until,
                checkpoint_seconds=checkpoint_seconds, compare=None if folder is None else load.digest,
                stop=stop,
            )  # fmt: skip
            _report(out, preset, models, console)
    if left:
        again = ", ".join(run.name for run in left[:3]) + (", …" if len(left) > 3 else "")
        saved = f"interrupted; every run is saved in {out}: " if stop() else ""
        resumes = "the same command resumes them" if until is None else f"without --until {until} it resumes them"
        click.echo(f"{saved}{len(left)} of {len(runs)} runs are left ({again}); {resumes}")
    _end(bool(left) and stop())


def _report(out: Path, preset: str, models: Sequence[str], console: Console) -> None:
    """The table from what is stored, on the console and in OUT."""
    from deeprelax import files
    from deeprelax.experiments.table1 import ablation_report, store
    from deeprelax.experiments.table1 import report as table1_report

    runs = store.read_all(out)
    rows = table1_report.rows(runs, preset)
    console.print(table1_report.table(rows, models))
    parts = table1_report.markdown(rows), ablation_report.markdown(runs, preset)
    text = "\n".join(part for part in parts if part)
    files.write_text(out / f"table1-{preset}.md", text)
    files.write_json(out / f"table1-{preset}.json", table1_report.as_json(rows))
    click.echo(f"written: {out / f'table1-{preset}.md'}, {out / f'table1-{preset}.json'}")


@reproduce.command()
@out_option("Where the runs of `reproduce table1` are, and the figure goes.", default=OUT)
@preset_option
def figure2(out: Path, preset: str) -> None:
    """Draw Figure 2 from the existing runs of Table 1, as PNG and SVG.

    Three panels over effective epochs: validation error on MNIST, training loss and validation error on CIFAR-10;
    means, with a band of one standard deviation over the seeds.
    """
    with _prepared("cpu", None), _errors():
        from deeprelax.experiments.table1 import figure2 as figure
        from deeprelax.experiments.table1 import store

        runs = [stored for stored in store.read_all(out) if stored.settings["preset"] == preset and stored.records]
        if not runs:
            raise click.ClickException(
                f"{out / 'runs'} has no run of the {preset} preset that was evaluated: `deeprelax reproduce table1 "
                f"--preset {preset} --out {out}` makes them"
            )
        for path in figure.paths(preset, out):
            check_writable("--out", path)
        paths = figure.draw(runs, preset, out)
    click.echo("written: " + ", ".join(str(path) for path in paths))


@reproduce.command()
@functools.partial(_shared, images=", and judge by a sixth as many others.  [default: six sevenths of all]")
@click.option("--epochs", type=COUNT, default=3, show_default=True, help="Effective epochs of a trial.")
def search(
    folder: Path | None,
    out: Path,
    models: tuple[str, ...],
    optimizers: tuple[str, ...],
    preset: str,
    device: str,
    threads: int | None,
    budget_minutes: float | None,
    images: int | None,
    epochs: int,
) -> None:
    """Search for the values that the paper leaves open: η, γ₀ and the schedule.

    Every optimizer, SGD included, gets the same number of trials of the same length: six around the recipe, then two
    starting from the best, outward if it is at the edge of the values tried. Images held out of the training set
    decide; the test set is not used. Every trial's result is stored; `table1 --found OUT/search-PRESET.json` uses the
    best.
    """
    with _prepared(device, threads) as where, _errors(), _stopped_by_signals(out) as stop:
        from deeprelax.experiments.table1 import experiment, search_trials
        from deeprelax.experiments.table1 import search as searching

        console = make_console(width=140)
        check_writable("--out", out / f"search-{preset}.json")
        load = searching.held_out(experiment.Loader(folder, out / "cache", where), images)
        execute = functools.partial(
            experiment.execute, load=load, out=out / "search", console=console, compare=lambda run: load(run)[1],
            alike=("preset", "model", "epochs"), stop=stop,
        )  # fmt: skip
        until = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
        left = len(execute(search_trials.plan(preset, models, optimizers, epochs), budget_minutes=budget_minutes))
        for number in range(len(search_trials.TRIALS), len(search_trials.TRIALS) + search_trials.FURTHER):
            if left:  # they come from the results of all before
                left += len(models) * len(optimizers)
                continue
            trials = search_trials.further(preset, models, optimizers, epochs, number, out / "search")
            rest = None if until is None else (until - time.monotonic()) / 60
            left = len(execute(trials, budget_minutes=rest))
        path = searching.write(out, preset, epochs)
        for line in searching.summary(path):
            click.echo(line)
    click.echo(f"written: {path}" + (f"; {left} trials are left: the same command resumes them" if left else ""))
    _end(bool(left) and stop())
