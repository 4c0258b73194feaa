"""``deeprelax compare``: optimizers side by side on a small set of real tasks."""

from __future__ import annotations

import os
from pathlib import Path

import click

from deeprelax import files
from deeprelax.cli.common import PARALLEL, check_writable, data_option, extras_needed, out_option
from deeprelax.terminal import uninterrupted

TASKS = ("digits-mlp", "digits-cnn", "mnist-cnn", "cifar-resnet", "text-transformer")


@click.command()
@click.option(
    "--preset", type=click.Choice(["small", "long", "gpu", "test"]), default="small", show_default=True,
    help="How long runs are. small: the docs' comparison, less than an hour on two cores. gpu and long: longer. test: "
    "seconds.",
)  # fmt: skip
@click.option("--task", "names", multiple=True, type=click.Choice(TASKS), help="Default: all.")
@click.option(
    "--optimizer", "optimizers", multiple=True,
    help="A row of the table: HJ, AdamW, … An unknown name lists them. Default: all.",
)  # fmt: skip
@click.option("--seeds", type=PARALLEL, default=3, show_default=True)
@click.option("--processes", type=PARALLEL, default=min(8, os.cpu_count() or 1), show_default=True)
@data_option("Folder of MNIST and CIFAR-10.")
@out_option("Runs, table and picture; existing runs are not run again.", default=Path("out/compare"))
@extras_needed()
def compare(
    preset: str,
    names: tuple[str, ...],
    optimizers: tuple[str, ...],
    seeds: int,
    processes: int,
    folder: Path | None,
    out: Path,
) -> None:
    """Train small networks with torch's optimizers and these, at equal numbers of gradients.

    Every optimizer gets the same search: three rates and two values of one more hyper-parameter, with one seed; the
    best is repeated with the other seeds. "HJ()" and the like are the classes' defaults, at constant rates.
    OUT/runs.jsonl has a line for each run, with a checksum of its data; an interrupted comparison resumes with the
    first missing run, on the same data only. OUT/table.md and OUT/curves.png show all runs so far.
    """
    from deeprelax.experiments.compare import report, runner
    from deeprelax.experiments.compare.contestants import EVERY
    from deeprelax.experiments.data.datasets import DataError

    chosen = optimizers or tuple(EVERY)
    if unknown := [name for name in chosen if name not in EVERY]:
        raise click.BadParameter(f"{unknown[0]!r}; known are {', '.join(map(repr, EVERY))}", param_hint="--optimizer")
    for name in ("runs.jsonl", "table.md", "curves.png"):
        check_writable("--out", out / name)
    path = out / "runs.jsonl"
    try:
        click.get_current_context().with_resource(files.alone(path, path.with_suffix(".lock")))
        results = runner.Results(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    runs = runner.search(preset, names or TASKS, chosen)
    try:
        for stage in ("search", "seeds"):
            if stage == "seeds":
                ours = [r for r in results.all if r["run"]["preset"] == preset]
                runs = [run for run in runner.repeats(ours, seeds) if run.optimizer in chosen]
                runs = [run for run in runs if run.task in (names or TASKS)]
            left = len(results.missing(runs))
            for result in runner.perform(runs, results, folder, processes):
                left -= 1
                run = result["run"]
                click.echo(
                    f"{run['task']}, {run['optimizer']}, rate {run['rate']:g}, {run['other']:g}, seed {run['seed']}: "
                    f"{result['curve'][-1]:.4g} in {result['seconds']:.0f} s; {left} left of the {stage}"
                )
        shown = [r for r in results.all if r["run"]["preset"] == preset]
        try:
            with uninterrupted():
                files.write_text(out / "table.md", report.table(shown))
                report.draw(shown, out / "curves.png")
        finally:
            click.echo(report.table(shown))
    except (KeyboardInterrupt, DataError, OSError, RuntimeError) as error:  # memory, say, or a process was killed
        kept = f"{len(results.all)} runs are in {results.path}"
        resumes = "" if isinstance(error, DataError) else "; the same command resumes"
        raise click.ClickException(f"{str(error) or 'interrupted'}; {kept}{resumes}") from error
