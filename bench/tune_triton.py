"""Sweeps the work of one program of the Triton kernels: elements, consecutive elements of a thread, warps.

For each kind of kernel in ``kernels/triton_sizes.py`` an inner call runs on tensors of its own, with every candidate in
turn; the table at the end is what that file should say on this GPU.

    python bench/tune_triton.py       # on a GPU; most of the time is the compiler's
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from deeprelax.experiments.machine import describe
from deeprelax.kernels import Call, EntropySGDCall, HeatCall, HJCall, Outer, Stream, Table
from deeprelax.kernels.triton_backend import Triton
from deeprelax.kernels.triton_sizes import SIZES, Kind, Sizes

DTYPES = {8: torch.float64, 4: torch.float32, 2: torch.bfloat16}
WARPS = (2, 4, 8)
ACCESSES = (1, 2, 4)  # of a thread to one operand

OUTER = Outer(step=0.1, scale=0.2, lr=0.3, momentum=0.0, nesterov=False)


def candidates(kind: Kind) -> Iterator[Sizes]:
    """What is tried for that kind; without noise, ``per_thread`` is of no consequence."""
    _, bytes_each, noise = kind
    widest = max(4, 16 // bytes_each)
    for per_thread in sorted({4, widest}) if noise else (widest,):
        for warps in WARPS:
            for accesses in ACCESSES:
                yield Sizes(32 * warps * widest * accesses, per_thread, warps)


def inner_call(kind: Kind) -> Call:
    """The call that most of a run consists of, without the options that few use."""
    rule, _, noise = kind
    if rule == "hj":
        return HJCall(False, False, False, 0.1, 0.75, 0.25, 0.0, False, False, OUTER)
    if rule == "heat":
        return HeatCall(False, False, False, 0.1, 0.0, False, OUTER, Stream(1, 2))
    return EntropySGDCall(
        first=False,
        last=False,
        inner_lr=0.1,
        inv_gamma=2.0,
        pull=0.2,
        denominator=1.2,
        alpha=0.75,
        one_minus_alpha=0.25,
        noise_scale=0.01 * noise,
        weight_decay=0.0,
        maximize=False,
        implicit=False,
        inner_momentum=0.0,
        inner_nesterov=False,
        fresh_velocity=False,
        stochastic_rounding=False,
        outer=OUTER,
        stream=Stream(1, 2),
    )


def milliseconds(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median time of one call on the device, after two that compile and warm up."""
    run()
    run()
    times = []
    for _ in range(repeats):
        if device.type == "cpu":
            begin = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begin))
            continue
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(started.elapsed_time(ended))
    return statistics.median(times)


def measure(kind: Kind, chosen: list[Sizes], elements: int, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """One row for each candidate, on one weight with ``elements`` elements."""
    rule, bytes_each, noise = kind
    call, dtype = inner_call(kind), DTYPES[bytes_each]
    weight, grad = (torch.randn(elements, device=device).to(dtype) for _ in range(2))
    table = Table([weight], [0])
    buffers = {name: table.new_buffer() for name in call.buffers if "momentum" not in name}
    if dtype == table.compute_dtype:
        buffers.pop("y", None)
    rows = []
    for sizes in chosen:
        backend = Triton({**SIZES, kind: sizes})
        run = functools.partial(backend.run, call, table, [grad], array("q", [grad.data_ptr()]), buffers)
        rows.append(
            {
                "rule": rule,
                "bytes": bytes_each,
                "noise": noise,
                "block": sizes.block,
                "per_thread": sizes.per_thread,
                "warps": sizes.warps,
                "present": sizes == SIZES[kind],
                "ms": milliseconds(run, device, repeats),
            }
        )
    return rows


@click.command(help=__doc__)
@click.option("--rule", "rules", type=click.Choice(["entropy_sgd", "hj", "heat"]), multiple=True, help="Default: all.")
@click.option("--elements", type=click.IntRange(1), default=1 << 26, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--device", default="cuda", show_default=True, help="'cpu' needs TRITON_INTERPRET=1 and measures nothing."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/triton_sizes.json"), show_default=True)
def main(rules: tuple[str, ...], elements: int, repeats: int, device: str, out: Path) -> None:
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("there is no GPU to measure on (torch.cuda.is_available() is False)")
    gpu = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    results: dict[str, Any] = {"machine": describe(), "gpu": gpu, "elements": elements, "rows": []}
    best = []
    for kind in SIZES:
        if rules and kind[0] not in rules:
            continue
        rows = measure(kind, list(candidates(kind)), elements, where, repeats)
        results["rows"] += rows
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
        rows.sort(key=lambda row: row["ms"])
        best.append((kind, rows[0]))
        for row in rows:
            size = f"block {row['block']}, per thread {row['per_thread']}, warps {row['warps']}"
            click.echo(f"{kind}: {row['ms']:.4f} ms with {size}{', as now' if row['present'] else ''}")
    for (rule, bytes_each, noise), row in best:
        click.echo(
            f'    ("{rule}", {bytes_each}, {noise}): Sizes({row["block"]}, {row["per_thread"]}, {row["warps"]}),'
        )


if __name__ == "__main__":
    main()
