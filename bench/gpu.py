"""What a machine with a GPU proves and measures: ``make gpu``.

    python bench/gpu.py --out folder [--parts correctness,kernels,steps,host,sweep] [--budget-seconds 390]

Writes gpu.json, gpu.md, bandwidth.png, pytest.txt, sanitizer.txt and triton_sizes.json, anew after every part. The
parts run in the order of their importance, and what the budget does not allow is left out and named. Exit status 1 if
correctness failed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_bench import correctness_part, host_part, kernels_part, steps_part, sweep_part
from gpu_bench.context import Context, on_gpu
from gpu_bench.jobs import Job
from gpu_bench.machine import about
from gpu_bench.record import Budget, Part, Record, run_parts
from gpu_bench.variants import Builder

from deeprelax import kernels
from deeprelax.kernels import Backend

# By name the seconds that must be left for a part to begin.
NEEDS = {"correctness": 60.0, "kernels": 30.0, "steps": 30.0, "host": 10.0, "sweep": 30.0}
VARIANTS_NEED = 25.0  # seconds, of the sweep
AHEAD = 4  # processes that compile Triton's kernels while the tests run


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
    parser.add_argument("--compile-ahead", default=None, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def backends() -> dict[str, Backend]:
    """Those that are measured and work here."""
    device = torch.device("cuda", torch.cuda.current_device())
    return {name: kernels.get(name, device) for name in ("cuda", "triton") if not kernels.why_not(name)}


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    if not torch.cuda.is_available():
        print("torch.cuda.is_available() is False: this needs a GPU, and a build of torch for CUDA", file=sys.stderr)
        return 2
    budget = Budget(asked.budget_seconds)
    record = Record(asked.out, about(asked.commit, torch.device("cuda", torch.cuda.current_device())))
    context = on_gpu(backends(), record, budget)
    if asked.compile_ahead:
        shard, _, of = asked.compile_ahead.partition("/")
        kernels_part.compile_ahead(context, int(shard), int(of))
        return 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        run_parts(prepare(asked, context, folder, stack), record, budget)
    print((asked.out / "gpu.md").read_text())
    return int(correctness_part.failed(record))


def prepare(
    asked: argparse.Namespace, context: Context, folder: Path, stack: contextlib.ExitStack
) -> dict[str, tuple[float, Part]]:
    """The parts that are asked for; what takes long to compile is begun, and given up when the stack is left."""
    ahead: list[Job] = []
    if "kernels" in asked.parts and "triton" in context.backends:
        for k in range(AHEAD):
            command = [sys.executable, __file__, "--compile-ahead", f"{k}/{AHEAD}", "--out", str(folder / f"ahead{k}")]
            ahead.append(Job(command, folder / f"ahead{k}.txt"))
            stack.callback(ahead[-1].stop)
    builder: Builder | None = None
    if "sweep" in asked.parts and "cuda" in context.backends:
        major, minor = torch.cuda.get_device_capability()
        builder = Builder(folder, f"{major}{minor}")
        stack.callback(builder.stop)

    def run_kernels() -> None:
        until = time.monotonic() + 60
        statuses = [job.wait(until) for job in ahead]
        if any(status != 0 for status in statuses):
            said = [job.printed()[-500:] for job, status in zip(ahead, statuses) if status != 0]
            context.record.results("kernels")["compiled_ahead"] = {"statuses": statuses, "said": said}
        kernels_part.run(context)

    def run_host() -> None:
        if builder is not None:
            builder.wait(60)  # the compiler would take the host's time
        host_part.run(context)

    def run_sweep() -> None:
        # The tuner first: meanwhile the variants are built, with low priority, where this part runs alone.
        sweep_part.tune_triton(context, VARIANTS_NEED if builder is not None else 0.0)
        if builder is None:
            raise RuntimeError(f"the cuda backend does not work here: {kernels.why_not('cuda')}")
        builder.wait(60)
        sweep_part.run(context, builder.built())

    parts: dict[str, Part] = {
        "correctness": lambda: correctness_part.run(context.record, context.budget),
        "kernels": run_kernels,
        "steps": lambda: steps_part.run(context),
        "host": run_host,
        "sweep": run_sweep,
    }
    return {name: (NEEDS[name], parts[name]) for name in asked.parts}


if __name__ == "__main__":
    sys.exit(main())
