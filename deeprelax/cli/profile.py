"""``deeprelax profile``."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from deeprelax import environment, files
from deeprelax.cli.common import (
    COUNT,
    NUMBER,
    backend_option,
    check_writable,
    device_option,
    extras_needed,
    make_console,
    out_option,
    refuse_without_gpu,
    threads_option,
)
from deeprelax.experiments.recipes import takes
from deeprelax.experiments.runs import OPTIMIZERS


@click.command()
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
@device_option
@backend_option
@click.option("--noise/--no-noise", default=None, help="For Entropy-SGD; Heat always has it.  [default: with noise]")
@click.option("--inner-steps", type=COUNT, help="L, which weights the kinds of call.  [default: the optimizer's]")
@click.option("--momentum", type=NUMBER, help="Momentum of the outer update: moves one more buffer.")
@click.option("--inner-momentum", type=NUMBER, help="Momentum of the inner update; entropy-sgd only.")
@click.option("--weight-decay", type=NUMBER)
@click.option("--steps", type=COUNT, help="How often each kind of call is timed.  [default: 24; small: 200]")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Also run torch's optimizers.")
@threads_option()
@out_option("For profile.json.")
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
    """Where a step's time goes: kernels, bytes moved, bandwidth next to a copy's, launches, host.

    The first, an inner and the last call of a cycle are timed separately, with torch's optimizers between them.

    \b
    Examples:
      deeprelax profile --optimizer hj
      deeprelax profile --shapes 4096x4096,4096 --no-noise --plot profile.png
      deeprelax profile --model decoder-1.3b --dtype bfloat16 --device cuda --trace trace.json
    """
    if model is not None and shapes is not None:
        raise click.UsageError("--model and --shapes are mutually exclusive")
    options = {name: value for name, value in tuned.items() if value is not None}
    for name in [*options, *(["noise"] if noise is not None else [])]:
        if not takes(optimizer, "inner_lr" if name == "noise" else name):
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning for {optimizer}")
    if noise is False:
        options["temperature"] = 0.0
    refuse_without_gpu(device)
    with extras_needed(), environment.threads(threads):
        from deeprelax.benchmark import profile_report, profiler
        from deeprelax.benchmark.shapes import named, typed

        if plot is not None and plot.suffix.lower() not in profile_report.PICTURES:
            raise click.UsageError(f"--plot {plot}: its name must end in {', '.join(profile_report.PICTURES)}")
        numbers = None if out is None else out / "profile.json"
        for option, path in (("--out", numbers), ("--plot", plot), ("--trace", trace)):
            if path is not None:  # DIR is made; a missing folder of a FILE is more likely a typing error
                check_writable(option, path, make_folder=option == "--out")
        try:
            workload = typed(shapes) if shapes is not None else named(model or "resnet50")
            plan = profiler.Plan(
                workload=workload,
                optimizer=OPTIMIZERS[optimizer].__name__,
                options=options,
                inner_steps=inner_steps,
                dtype=getattr(torch, dtype),
                device=torch.device(device),
                backend=backend,
                rounds=steps or (24 if workload.elements > 10**6 else 200),
            )
            result = profiler.profile(plan, peers)
        except (ValueError, RuntimeError, OSError) as error:
            raise click.ClickException(str(error)) from error
        console = make_console(width=120)
        written: list[Path] = []
        try:
            if numbers is not None:
                files.write_json(numbers, result)
                written.append(numbers)
            if plot is not None:
                profile_report.draw(result, plot)
                written.append(plot)
            if trace is not None:
                profiler.trace(plan, trace)
                written.append(trace)
        except (OSError, RuntimeError) as error:  # a full disk, say, or no memory for the traced optimizer
            raise click.ClickException(str(error)) from error
        finally:
            profile_report.show(result, console)
            for path in written:
                click.echo(f"written: {path}")
