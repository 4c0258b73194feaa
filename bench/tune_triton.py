"""Sweeps the work of one program of the Triton kernels: elements, consecutive elements of a thread, warps.

For each kind of kernel in kernels/triton/sizes.py an inner call runs with every candidate, alternating with the others
and with a copy. As each kind ends, the line for that file is printed, and the figures are written: first those of fp32,
then of bf16, then of fp64.

    python bench/tune_triton.py       # on a GPU: two minutes or so, most of them the compiler's
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from gpu_bench.calls import COPY_BYTES
from gpu_bench.machine import about
from gpu_bench.record import TRACEBACK, write
from gpu_bench.timing import Contestant, HostTimer, Sample, Timer, cuda_timer, figures, measure, ratios
from gpu_bench.triton_ahead import Ahead
from gpu_bench.triton_candidates import OPTIMIZERS, Work, candidates, kinds

from deeprelax.kernels.triton.sizes import SIZES, Kind, Sizes

CALLS = 3  # between two events
NOISE = 1.005  # what the fastest has to gain for the present sizes to be changed


def together(run: Callable[[], object]) -> Contestant:
    def enqueue() -> None:
        for _ in range(CALLS):
            run()

    return Contestant(enqueue, CALLS)


def contestants(
    work: Work, chosen: list[Sizes], errors: dict[Sizes, str], synchronize: Callable[[], None]
) -> dict[str, Contestant]:
    """The candidates that run; of the others the error's end goes into ``errors``."""
    found = {}
    for sizes in chosen:
        run = functools.partial(work.run, work.backend(sizes))
        try:
            run()
            synchronize()
        except Exception:
            errors[sizes] = traceback.format_exc()[-TRACEBACK:]
        else:
            found[str(sizes)] = together(run)
    return found


def sweep(
    kind: Kind, chosen: list[Sizes], elements: int, device: torch.device, timer: Timer, rounds: int
) -> dict[str, Any]:
    """Rows of the candidates from the fastest on, errors of those that fail, and the line that the best would have."""
    work, errors = Work(kind, elements, device), dict[Sizes, str]()
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    running = contestants(work, chosen, errors, synchronize)
    failed = [{**about_sizes(kind, sizes), "error": error} for sizes, error in errors.items()]
    if not running:
        return {**named(kind), "rows": [], "errors": failed, "line": None}
    copies = {"copy": together(lambda: target.copy_(source))}
    samples = measure(copies | running, timer, rounds)
    copied = COPY_BYTES * elements
    rows = [
        {**about_sizes(kind, sizes), **figures(samples, str(sizes), work.bytes, copied)}
        for sizes in chosen
        if str(sizes) in running
    ]
    rows.sort(key=lambda row: row["us"]["median"])
    best = choose(kind, [sizes for sizes in chosen if str(sizes) in running], samples)
    return {**named(kind), "rows": rows, "errors": failed, "line": line(kind, best)}


def named(kind: Kind) -> dict[str, Any]:
    return {"rule": kind[0], "bytes": kind[1], "noise": kind[2]}


def about_sizes(kind: Kind, sizes: Sizes) -> dict[str, Any]:
    return {
        "block": sizes.block,
        "per_thread": sizes.per_thread,
        "warps": sizes.warps,
        "present": sizes == SIZES[kind],
    }


def choose(kind: Kind, chosen: list[Sizes], samples: dict[str, list[Sample]]) -> Sizes:
    """The fastest; the present sizes, where it gains no more than noise on them."""
    best = min(chosen, key=lambda sizes: statistics.median(s.seconds for s in samples[str(sizes)]))
    present = SIZES[kind]
    if present in chosen and statistics.median(ratios(samples, str(present), str(best))) < NOISE:
        return present
    return best


def line(kind: Kind, sizes: Sizes) -> str:
    """Of kernels/triton/sizes.py."""
    return f'    ("{kind[0]}", {kind[1]}, {kind[2]}): Sizes({sizes.block}, {sizes.per_thread}, {sizes.warps}),'


def said(found: dict[str, Any]) -> str:
    """The line, with what the fastest and the present sizes reach."""
    failed = f"{len(found['errors'])} failed" + (f": {found['errors'][0]['error'][-300:]}" if found["errors"] else "")
    if not found["line"]:
        return f"({found['rule']}, {found['bytes']}, {found['noise']}): nothing was measured, {failed}"
    reached = [f"fastest {found['rows'][0]['of_copy']['median']:.3f} of a copy"]
    reached += [f"present {row['of_copy']['median']:.3f}" for row in found["rows"] if row["present"]]
    return f"{found['line']}  # {', '.join(reached)}, {failed}"


@click.command(help=__doc__)
@click.option("--rule", "rules", type=click.Choice(list(OPTIMIZERS)), multiple=True, help="Default: all.")
@click.option(
    "--dtype", "dtypes", type=click.Choice(["float32", "bfloat16", "float64"]), multiple=True, help="Default: all."
)
@click.option("--elements", type=click.IntRange(1), default=1 << 27, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option(
    "--processes", type=click.IntRange(1), default=min(8, os.cpu_count() or 1), show_default=True, help="That compile."
)
@click.option(
    "--device", default="cuda", show_default=True, help="'cpu' needs TRITON_INTERPRET=1 and measures nothing."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/triton_sizes.json"), show_default=True)
def main(
    rules: tuple[str, ...],
    dtypes: tuple[str, ...],
    elements: int,
    rounds: int,
    processes: int,
    device: str,
    out: Path,
) -> None:
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("there is no GPU to measure on (torch.cuda.is_available() is False)")
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = {kind: list(candidates(kind)) for kind in kinds(rules, dtypes)}
    results: dict[str, Any] = {"about": about(None, where), "elements": elements, "complete": False, "kinds": []}
    timer: Timer = HostTimer()
    with contextlib.ExitStack() as stack:
        ahead: Ahead | None = None
        if where.type == "cuda":
            timer, ahead = cuda_timer(), Ahead(chosen, processes)
            stack.callback(ahead.stop)
        for kind, sizes in chosen.items():
            if ahead is not None:
                ahead.wait(kind)
            try:
                found = sweep(kind, sizes, elements, where, timer, rounds)
            except Exception:  # what has failed too late to know whose fault it is: memory, or a launch
                error = {"error": traceback.format_exc()[-TRACEBACK:]}
                found = {**named(kind), "rows": [], "errors": [error], "line": None}
            results["kinds"].append(found)
            results["complete"] = len(results["kinds"]) == len(chosen)
            write(out, json.dumps(results, indent=1) + "\n")
            click.echo(said(found))


if __name__ == "__main__":
    main()
