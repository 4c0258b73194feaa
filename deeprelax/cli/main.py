"""The command line: ``deeprelax train``, ``doctor``, ``bench``, ``profile``, ``reproduce``, ``figure1``.

Only torch and click are imported here; what the experiments need beyond them is imported when a command wants it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

import deeprelax
from deeprelax import files, kernels
from deeprelax.experiments import machine
from deeprelax.experiments.models import MODELS
from deeprelax.experiments.recipes import PLANS, settings, takes
from deeprelax.experiments.reproduce_cli import reproduce
from deeprelax.experiments.training import OPTIMIZERS, DivergedError, Result, check
from deeprelax.terminal import InterruptedRun, guarded_output

EXTRAS = {"numpy", "scipy", "sklearn", "matplotlib", "rich", "filelock", "torchvision"}


@contextlib.contextmanager
def _extras_needed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        raise click.ClickException(
            f"this command needs the package {error.name.partition('.')[0]!r}, which is not installed; "
            "pip install '.[experiments]' in the source folder"
        ) from error


def _check_writable(option: str, path: Path, *, make_folder: bool = True) -> None:
    """Before the run, not after it."""
    try:
        files.check_writable(path, make_folder=make_folder)
    except OSError as error:
        raise click.ClickException(f"{option}: {path} cannot be written ({error.strerror or error})") from error


def _per_dataset(attribute: str) -> str:
    return "[default: " + ", ".join(f"{getattr(plan, attribute)} for {name}" for name, plan in PLANS.items()) + "]"


def _recipes() -> str:
    """The settings of every recipe, for the help."""
    lines = ["\b", "Settings unless told otherwise (their sources: deeprelax/experiments/recipes.py):"]
    for dataset, plan in PLANS.items():
        for optimizer, options in plan.options.items():
            shown = "  ".join(f"{name}={value}" for name, value in options.items())
            lines.append(f"  {dataset:7} {optimizer:12} {shown}")
    return "\n".join(lines)


class Commands(click.Group):
    """Commands whose results do not depend on whether what they print can be written."""

    def main(self, *arguments: Any, **keywords: Any) -> Any:
        with guarded_output() as failure:
            try:
                return super().main(*arguments, **keywords)
            except SystemExit as end:
                if end.code or (error := failure()) is None:
                    raise
                if error.errno != errno.EPIPE:  # who closes a pipe has read enough
                    click.echo(f"standard output: {error.strerror}; files are not affected", err=True)
                raise SystemExit(1) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(deeprelax.__version__, prog_name="deeprelax")
def main() -> None:
    """Entropy-SGD, HJ and Heat: the optimizers of "Deep Relaxation" (ICML 2017), fused, for PyTorch.

    \b
    deeprelax train      compare them with SGD on a real data set: a minute or two, no download
    deeprelax doctor     what works on this machine, and what to do about the rest
    deeprelax bench      how fast a step() is, beside torch's own optimizers
    deeprelax profile    where a step's time goes, for a model and an optimizer of yours
    deeprelax reproduce  the paper's Table 1 and Figure 2
    deeprelax figure1    the paper's Figure 1: a loss and its smoothings
    """


@main.command(epilog=_recipes())
@click.option(
    "--optimizer", "optimizers", multiple=True, type=click.Choice(list(OPTIMIZERS)),
    help="May be given several times.  [default: all of them]",
)  # fmt: skip
@click.option(
    "--dataset", type=click.Choice(list(PLANS)), default="digits", show_default=True,
    help="digits: 1,797 images of 8x8 that come with scikit-learn. mnist: 70,000 of 28x28, downloaded if need be.",
)  # fmt: skip
@click.option(
    "--data", "folder", type=click.Path(path_type=Path), metavar="DIR",
    help="MNIST's folder, laid out as torchvision's: DIR/MNIST/raw/*-ubyte, or .gz.  [default: .data]",
)  # fmt: skip
@click.option("--model", type=click.Choice(list(MODELS)), help=f"The network.  {_per_dataset('model')}")
@click.option("--seeds", type=click.IntRange(1), help=f"Runs per optimizer, seeds 0, 1, …  {_per_dataset('seeds')}")
@click.option(
    "--epochs", type=click.IntRange(1),
    help="Effective epochs: gradients taken over batches per epoch, equal for all optimizers, so that all have the "
    f"same time to learn.  {_per_dataset('epochs')}",
)  # fmt: skip
@click.option("--batch-size", type=click.IntRange(2), help=f"Images per gradient.  {_per_dataset('batch_size')}")
@click.option("--lr", type=float, help="η, the step size of the (outer) update; falls in the course of the run.")
@click.option("--gamma", type=float, help="γ, how much is smoothed; not for sgd. Shrinks by --scoping at each update.")
@click.option("--inner-steps", type=int, help="L, gradients per outer update; not for sgd (Remark 15 of the paper).")
@click.option("--inner-lr", type=float, help="η′, the step size of the inner loop; entropy-sgd only.")
@click.option("--temperature", type=float, help="β⁻¹, the strength of the noise; entropy-sgd only.")
@click.option("--scoping", type=float, help="The fraction by which γ shrinks at each outer update; not for sgd.")
@click.option("--momentum", type=float, help="Of the (outer) update.")
@click.option("--weight-decay", type=float, help="Times the weights, added to every gradient.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out"), show_default=True, metavar="DIR",
    help="Where the table, the picture and the JSON file go.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: 1 for digits, else torch's choice]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--backend", type=click.Choice(["auto", *kernels.NAMES]), default="auto", show_default=True,
    help="What computes the updates; all give the same bits. See deeprelax doctor.",
)  # fmt: skip
def train(
    optimizers: tuple[str, ...],
    dataset: str,
    folder: Path | None,
    model: str | None,
    seeds: int | None,
    epochs: int | None,
    batch_size: int | None,
    out: Path,
    threads: int | None,
    device: str,
    backend: str,
    **tuned: Any,
) -> None:
    """Train one network with each optimizer and compare them.

    Prints a table of validation error and training loss, and writes a picture of their curves and a JSON file with
    every number. Errors are those of x, the weights that an optimizer would hand over, with batch norm's statistics
    gathered anew at x.

    \b
    Examples:
      deeprelax train                                       all four on digits, a minute or two
      deeprelax train --optimizer hj --gamma 0.3 --seeds 1  one optimizer, another γ
      deeprelax train --dataset mnist --optimizer entropy-sgd --optimizer sgd --epochs 5
      deeprelax train --dataset mnist --device cuda --epochs 80 --seeds 6    as the paper
    """
    chosen = tuple(dict.fromkeys(optimizers)) or tuple(OPTIMIZERS)
    options = {name: value for name, value in tuned.items() if value is not None}
    for name in options:
        if not any(takes(optimizer, name) for optimizer in chosen):
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for {', '.join(chosen)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch finds no GPU here; deeprelax doctor says more")
    with _extras_needed():
        from rich.console import Console

        from deeprelax.experiments import live, report
        from deeprelax.experiments.data import DataError, load

        machine.reproducible_cublas(torch.device(device))
        for path in report.paths(out, dataset).values():
            _check_writable("--out", path)
        try:
            data = load(dataset, folder).to(torch.device(device))
        except DataError as error:
            raise click.ClickException(str(error)) from error
        plan = PLANS[dataset]
        each = {
            name: settings(dataset, name, model=model, epochs=epochs, batch_size=batch_size, options=options)
            for name in chosen
        }
        console = Console()
        with machine.threads(threads or plan.threads):
            for name, one in each.items():
                try:
                    check(one, data, backend)
                except (ValueError, RuntimeError) as error:
                    raise click.ClickException(f"{name}: {error}") from error
            about = machine.describe(torch.device(device))
            about["backend"] = kernels.get(backend, torch.device(device)).name
            results: dict[str, list[Result]] = {}
            unfinished: type[click.ClickException] | None = None
            try:
                live.run_all(each, data, range(seeds or plan.seeds), backend, console, results)
            except DivergedError as error:
                unfinished, why = click.ClickException, str(error)
            except KeyboardInterrupt:
                unfinished, why = InterruptedRun, "interrupted"
        # Under a name of its own: an earlier, complete result stays.
        name = f"{dataset}-unfinished" if unfinished else dataset
        if results:
            try:
                report.write(report.Experiment(dataset, each, results, about), out, name, console)
            except OSError as error:
                raise click.ClickException(str(error)) from error
        if unfinished:
            raise unfinished(f"{why}; {_kept(results, len(each) * (seeds or plan.seeds), out / name)}")


def _kept(results: dict[str, list[Result]], runs: int, stem: Path) -> str:
    """What is left of an unfinished comparison, and how to go on."""
    finished = sum(map(len, results.values()))
    kept = f"{finished} of {runs} runs had ended and are kept in {stem}.json" if finished else "no run had ended"
    return (
        f"{kept}. `train` does not resume a run: --optimizer and --seeds choose what to run again "
        "(`deeprelax reproduce` has checkpoints)"
    )


@main.command()
def doctor() -> None:
    """What there is on this machine: versions, instruction sets, backends, and what to do about missing ones."""
    about = machine.describe()
    lines = [("python", about["python"])]
    lines += [(name, machine.version(name) or "not installed") for name in machine.PACKAGES]
    lines += [("system", about["system"]), ("cpu", about["cpu"])]
    used, known = machine.instruction_sets()
    lines.append(("instruction set", f"{used} (this CPU runs {', '.join(known)})" if used else "none: no cpu backend"))
    lines.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} (torch.set_num_threads)"))
    lines.append(("cuda kernels", machine.cuda_kernels() or "not built"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    nodes = bool(gpus) or any(Path("/dev").glob("nvidia[0-9]*"))
    lines.append(("gpu", ", ".join(gpus) or ("none that torch can use" if nodes else "no GPU found")))
    for name, value in lines:
        click.echo(f"{name:16} {value}")
    click.echo()
    for name in kernels.NAMES:
        reason = kernels.why_not(name)
        if reason and name in ("cuda", "triton") and not nodes:
            # Of what the kernel modules say, only what holds without a GPU as well: that they were not built.
            built = machine.cuda_kernels() if name == "cuda" else machine.version("triton")
            reason = "no GPU found" if built else f"no GPU found; {reason}"
        mark = click.style("works", fg="green") if not reason else click.style("not here", fg="yellow")
        click.echo(f"backend {name:8} {mark}" + (f": {reason}" if reason else ""))
    wish = os.environ.get("DEEPRELAX_BACKEND")
    for device in ["cpu", "cuda"] if gpus else ["cpu"]:
        try:
            click.echo(f'backend="auto" takes {kernels.get("auto", torch.device(device)).name} for {device} tensors')
        except (RuntimeError, ValueError) as error:
            click.echo(f"DEEPRELAX_BACKEND={wish}: {error}")


@main.command()
@click.option(
    "--preset", type=click.Choice(["quick", "full"]), default="quick", show_default=True,
    help="quick: a minute or two. full: the sizes and the number of repetitions of the README's figures.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Store the numbers there.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]")
def bench(preset: str, out: Path | None, threads: int | None) -> None:
    """How fast a step() is: nanoseconds per parameter, GB/s, and ratios to torch's own optimizers."""
    with _extras_needed():
        from deeprelax import benchmark

        path = None if out is None else out / "cpu.json"
        if path is not None:
            _check_writable("--out", path)
        try:
            benchmark.main(preset, path, threads)
        except OSError as error:
            raise click.ClickException(str(error)) from error


@main.command()
@click.option(
    "--model", metavar="NAME",
    help="resnet50, decoder-1.3b (292 tensors, as GPT-3 XL has them), or a name of torchvision's.  [default: resnet50]",
)  # fmt: skip
@click.option("--shapes", metavar="LIST", help="Shapes of the parameters instead: 4096x4096,4096")
@click.option(
    "--optimizer", type=click.Choice([name for name in OPTIMIZERS if name != "sgd"]), default="entropy-sgd",
    show_default=True,
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]), default="float32", show_default=True
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--backend", type=click.Choice(["auto", *kernels.NAMES]), default="auto", show_default=True)
@click.option("--noise/--no-noise", default=None, help="Entropy-SGD's; Heat always has it.  [default: with noise]")
@click.option("--inner-steps", type=click.IntRange(1), help="L, which weighs the kinds of call.  [default: its own]")
@click.option("--momentum", type=float, help="Of the outer update: moves one more buffer.")
@click.option("--inner-momentum", type=float, help="Of the inner update; entropy-sgd only.")
@click.option("--weight-decay", type=float)
@click.option("--steps", type=click.IntRange(1), help="Times each kind of call is timed.  [default: 24; small: 200]")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Also run torch's optimizers.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="For profile.json.")
@click.option(
    "--trace", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write a Chrome trace of torch's profiler, for chrome://tracing or Perfetto.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Draw a picture (.png, .svg or .pdf).",
)  # fmt: skip
def profile(
    model: str | None,
    shapes: str | None,
    optimizer: str,
    dtype: str,
    device: str,
    backend: str,
    noise: bool | None,
    inner_steps: int | None,
    steps: int | None,
    peers: bool,
    threads: int | None,
    out: Path | None,
    trace: Path | None,
    plot: Path | None,
    **tuned: float | None,
) -> None:
    """Where a step's time goes: kernels, bytes moved, bandwidth beside a copy's, launches, host.

    The first, an inner and the last call of a cycle are timed apart, with torch's optimizers between them.

    \b
    Examples:
      deeprelax profile --optimizer hj
      deeprelax profile --shapes 4096x4096,4096 --no-noise --plot profile.png
      deeprelax profile --model decoder-1.3b --dtype bfloat16 --device cuda --trace trace.json
    """
    if model is not None and shapes is not None:
        raise click.UsageError("--model and --shapes exclude each other")
    options = {name: value for name, value in tuned.items() if value is not None}
    for name in [*options, *(["noise"] if noise is not None else [])]:
        if not takes(optimizer, "inner_lr" if name == "noise" else name):
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for {optimizer}")
    if noise is False:
        options["temperature"] = 0.0
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch finds no GPU here; deeprelax doctor says more")
    with _extras_needed(), machine.threads(threads):
        from rich.console import Console

        from deeprelax import profile_report, profiling, workloads

        if plot is not None and plot.suffix.lower() not in profile_report.PICTURES:
            raise click.UsageError(f"--plot {plot}: its name must end in {', '.join(profile_report.PICTURES)}")
        numbers = None if out is None else out / "profile.json"
        for option, path in (("--out", numbers), ("--plot", plot), ("--trace", trace)):
            if path is not None:  # DIR is made; a folder in the name of a FILE is more likely a typing error
                _check_writable(option, path, make_folder=option == "--out")
        try:
            workload = workloads.typed(shapes) if shapes is not None else workloads.named(model or "resnet50")
            plan = profiling.Plan(
                workload=workload,
                optimizer=OPTIMIZERS[optimizer].__name__,
                options=options,
                inner_steps=inner_steps,
                dtype=getattr(torch, dtype),
                device=torch.device(device),
                backend=backend,
                rounds=steps or (24 if workload.elements > 10**6 else 200),
            )
            result = profiling.profile(plan, peers, trace)
        except (ValueError, RuntimeError, OSError) as error:
            raise click.ClickException(str(error)) from error
        console = Console()
        if not console.is_terminal:
            console.width = 120
        try:
            if numbers is not None:
                files.write_json(numbers, result)
            if plot is not None:
                profile_report.draw(result, plot)
        except OSError as error:  # a full disk, say
            raise click.ClickException(str(error)) from error
        finally:
            profile_report.show(result, console)
        for path in (numbers, plot, trace):
            if path is not None:
                click.echo(f"written: {path}")


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, metavar="DIR")
@click.option("--function", "name", default="rugged", show_default=True, help="rugged, double-well or tilted-well.")
@click.option("--time", type=float, default=0.6, show_default=True, help="T, how long the loss is smoothed.")
@click.option("--beta", type=float, default=2.0, show_default=True, help="β; the viscous equation's viscosity is 1/β.")
@click.option("--temperature", type=float, default=0.1, show_default=True, help="Of the noise in the three descents.")
@click.option("--animate", is_flag=True, help="Also a GIF of the smoothing growing with t.")
def figure1(out: Path, name: str, time: float, beta: float, temperature: float, animate: bool) -> None:
    """The paper's Figure 1 as PNG, SVG and JSON: a loss, both smoothings, and the densities after descent on each."""
    with _extras_needed():
        from deeprelax.pde import figure1 as laboratory
    try:
        laboratory.write(out, name, time, beta, temperature, animate, click.echo)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


main.add_command(reproduce)
