"""The parts of a run in their order: what each process measures, what must be ready before, how long it may take."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_bench import apart, correctness_part, host_part, kernels_part, steps_part, sweep_part, variants
from gpu_bench.apart import Task
from gpu_bench.context import Context
from gpu_bench.jobs import ROOT, Job
from gpu_bench.record import Budget, Part, Record

# By name the seconds that must be left for a part to begin.
NEEDS = {"correctness": 60.0, "kernels": 30.0, "steps": 30.0, "host": 10.0, "sweep": 30.0}
# By part the seconds after which one process is stopped: some twice what it is expected to take.
LIMITS = {"kernels": 80.0, "steps": 80.0, "host": 40.0, "sweep": 60.0}
PLAIN, COMPILED, BUILT = "plain torch", "torch.compile", "variants"
COMPILED_NEEDS, COMPILED_LIMIT = 130.0, 90.0  # it leaves the host's part its time
VARIANTS_NEED = 25.0  # seconds that the tuner of the same part leaves
AHEAD = 4  # processes that compile Triton's kernels while the tests run
PATIENCE = 60.0  # seconds that are waited for the compilers
VARIANTS = "variants.json"
TUNER = ROOT / "bench" / "tune_triton.py"
TUNED = "tuner.json"  # not triton_sizes.json, which says that a whole measurement is stored: this one may be cut short
PRINTED = 4000  # characters of the tuner's


def measure(task: str, context: Context, folder: Path) -> None:
    """What ``--measure`` does in a process of its own: ``context`` has the one backend that it is about."""
    part, _, of = task.partition("/")
    if part == "kernels":
        kernels_part.run(context)
    elif part == "host":
        host_part.run(context)
    elif part == "sweep":
        sweep_part.run(context, variants.stored(folder / VARIANTS))
    elif of == PLAIN:
        steps_part.run_plain(context, [name for name in steps_part.PLAIN if name != steps_part.COMPILED])
    elif of == COMPILED:
        steps_part.run_plain(context, [steps_part.COMPILED])
    else:
        steps_part.run(context)


@dataclass
class Run:
    """A run of the parts that are asked for.

    Attributes:
        command: starts this program.
        backends: names of those that work.
        record, budget: of the run.
        folder: for what need not be kept.
        stack: gives up what runs in the background when it is left.
        architecture: of the GPU, "90".
    """

    command: list[str]
    backends: list[str]
    record: Record
    budget: Budget
    folder: Path
    stack: contextlib.ExitStack
    architecture: str
    ahead: list[Job] = field(default_factory=list)
    builder: variants.Builder | None = None

    def prepare(self, asked: list[str]) -> dict[str, tuple[float, Part]]:
        """Begins what takes long to compile, and returns the parts."""
        if "kernels" in asked and "triton" in self.backends:
            for k in range(AHEAD):
                out = self.folder / f"ahead{k}"
                command = [*self.command, "--compile-ahead", f"{k}/{AHEAD}", "--out", str(out)]
                self.ahead.append(Job(command, out.with_suffix(".txt")))
                self.stack.callback(self.ahead[-1].stop)
        if "sweep" in asked and "cuda" in self.backends:
            self.builder = variants.Builder(self.folder, self.architecture)
            self.stack.callback(self.builder.stop)
        parts: dict[str, Callable[[], None]] = {
            "correctness": lambda: correctness_part.run(self.record, self.budget),
            "kernels": self.kernels,
            "steps": self.steps,
            "host": self.host,
            "sweep": self.sweep,
        }
        return {name: (NEEDS[name], parts[name]) for name in asked}

    def apart(self, part: str, of: str, needs: float = 15.0, limit: float | None = None) -> None:
        task = Task(part, of, needs, limit or LIMITS[part])
        apart.run(task, self.command, self.folder, self.record, self.budget)

    def compiled(self) -> None:
        """Wait for the variants: a compiler would take the host's time."""
        if self.builder is not None:
            self.builder.wait(PATIENCE)

    def kernels(self) -> None:
        until = time.monotonic() + PATIENCE
        statuses = [job.wait(until) for job in self.ahead]
        if any(status != 0 for status in statuses):
            said = [job.printed()[-500:] for job, status in zip(self.ahead, statuses) if status != 0]
            self.record.results("kernels")["compiled_ahead"] = {"statuses": statuses, "said": said}
        for backend in self.backends:
            self.apart("kernels", backend)

    def steps(self) -> None:
        for backend in self.backends:
            self.apart("steps", backend, needs=25.0)
        self.apart("steps", PLAIN, needs=20.0)
        self.apart("steps", COMPILED, COMPILED_NEEDS, COMPILED_LIMIT)

    def host(self) -> None:
        self.compiled()
        for backend in self.backends:
            self.apart("host", backend)

    def sweep(self) -> None:
        # The tuner first: meanwhile the variants are built, with low priority, where this part runs alone.
        if "triton" in self.backends:
            self.tune(TUNER, VARIANTS_NEED if self.builder is not None else 5.0)
        if self.builder is not None:
            self.compiled()
            variants.store(self.builder.built(), self.folder / VARIANTS)
            self.apart("sweep", BUILT)

    def tune(self, tuner: Path, leave: float) -> None:
        """Triton's tuner, and the end of what it prints until so many seconds are left; tuner.json has all of it."""
        results = self.record.results("sweep")
        seconds = self.budget.left() - leave
        if seconds < 20:
            results.setdefault("left_out", []).append(f"{tuner.name}: {max(0.0, seconds):.0f} s were left")
            return
        job = Job(
            [sys.executable, str(tuner), "--out", str(self.record.folder.resolve() / TUNED)], self.folder / "tuner.txt"
        )
        try:
            status = job.wait(time.monotonic() + seconds)
        finally:
            job.stop()
            results["triton"] = job.printed()[-PRINTED:]
        end = "stopped at its limit of time" if status is None else f"exit status {status}"
        results["triton"] += f"\n({end})"
