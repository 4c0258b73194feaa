"""What a machine with a GPU proves and measures: ``make gpu``.

    python bench/gpu.py --out folder [--parts correctness,kernels,steps,host,sweep] [--budget-seconds 390]

Writes gpu.json, gpu.md, bandwidth.png, pytest.txt, sanitizer.txt and tuner.json, again every few seconds. The
parts run in the order of their importance, and what the budget does not allow is left out and named. Exit status 1 if a
backend did not run, a test failed or a process broke off, 3 if something was not proven, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import torch
from gpu_bench import kernels_part
from gpu_bench.apart import Rows
from gpu_bench.context import Context, on_gpu
from gpu_bench.lifetime import unwind_on_signals
from gpu_bench.machine import about
from gpu_bench.parts import NEEDS, Run, measure
from gpu_bench.record import Budget, Record, run_parts
from gpu_bench.verdict import BACKENDS, exit_status

from deeprelax import kernels
from deeprelax.kernels import Backend


def chosen(text: str) -> list[str]:
    """The named parts in the order of their importance."""
    names = text.split(",")
    if unknown := [name for name in names if name not in NEEDS]:
        raise argparse.ArgumentTypeError(f"no part is called {unknown[0]!r}; there are {', '.join(NEEDS)}")
    return [name for name in NEEDS if name in names]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Proves and measures the GPU kernels.")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for the results")
    parser.add_argument("--parts", type=chosen, default=list(NEEDS), help=",".join(NEEDS))
    parser.add_argument("--budget-seconds", type=float, default=390.0)
    parser.add_argument("--commit", default=None, help="what the files are, where they are in no repository")
    # What the processes are told that a run starts.
    parser.add_argument("--compile-ahead", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def backends() -> dict[str, Backend]:
    """Those that are measured and work here; the record says why the others do not."""
    device = torch.device("cuda", torch.cuda.current_device())
    return {name: kernels.get(name, device) for name in BACKENDS if not kernels.why_not(name)}


def main(given: list[str] | None = None, program: Path = Path(__file__)) -> int:
    """``program`` is what starts this again, in processes of their own."""
    asked = arguments(given)
    if not torch.cuda.is_available():
        print("torch.cuda.is_available() is False: this needs a GPU, and a build of torch for CUDA", file=sys.stderr)
        return 2
    unwind_on_signals()
    budget = Budget(asked.budget_seconds)
    if asked.compile_ahead:
        shard, _, of = asked.compile_ahead.partition("/")
        kernels_part.compile_ahead(on_gpu(backends(), Record(asked.out, {}), budget), int(shard), int(of))
        return 0
    if asked.measure:
        measure_apart(asked.measure, asked.out, budget)
        return 0
    record = Record(asked.out, about(asked.commit, torch.device("cuda", torch.cuda.current_device())))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        major, minor = torch.cuda.get_device_capability()
        command = [sys.executable, str(program.resolve())]
        run = Run(command, list(backends()), record, budget, folder, stack, f"{major}{minor}")
        run_parts(run.prepare(asked.parts), record, budget)
    print((asked.out / "gpu.md").read_text())
    return exit_status(record.data)


def measure_apart(task: str, file: Path, budget: Budget) -> None:
    """One process's share: a part of one backend, into one file."""
    part, _, of = task.partition("/")
    rows = Rows(file, part, torch.cuda.synchronize)
    found = backends()
    wanted = "cuda" if part == "sweep" else of
    context: Context = on_gpu({wanted: found[wanted]} if wanted in found else {}, rows, budget)
    try:
        with rows.attempt(part, of):
            measure(task, context, file.parent)
    finally:
        rows.save()


if __name__ == "__main__":
    sys.exit(main())
