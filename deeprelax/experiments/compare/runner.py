"""Runs: one JSON line each, so that an interrupted comparison resumes with the next run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from deeprelax.experiments import lines
from deeprelax.experiments.compare import tasks
from deeprelax.experiments.compare.contestants import EVERY, parameters
from deeprelax.experiments.data.datasets import DataError
from deeprelax.experiments.evaluation import at_x
from deeprelax.files import append_text, write_text

POINTS = 8  # of a curve


@dataclass(frozen=True)
class Run:
    """What a run does."""

    preset: str
    task: str
    optimizer: str
    rate: float
    other: float
    seed: int


RUN = {
    **{name: str for name in ("preset", "task", "optimizer")},
    "rate": lines.NUMBER,
    "other": lines.NUMBER,
    "seed": int,
}


def search(preset: str, names: Sequence[str], optimizers: Sequence[str]) -> list[Run]:
    """Every task and optimizer with every pair of its grid, and seed 0."""
    return [
        Run(preset, task, optimizer, rate, other, 0)
        for task in names
        for optimizer in optimizers
        for rate, other in EVERY[optimizer].grid()
    ]


def best(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Run]:
    """By task and optimizer the run of seed 0 that ends lowest."""
    found: dict[tuple[str, str], tuple[float, Run]] = {}
    for result in results:
        run = Run(**result["run"])
        key, end = (run.task, run.optimizer), result["curve"][-1]
        if run.seed == 0 and (key not in found or end < found[key][0]):
            found[key] = end, run
    return {key: run for key, (_, run) in found.items()}


def repeats(results: Sequence[dict[str, Any]], seeds: int) -> list[Run]:
    """The best of each search with the other seeds."""
    return [replace(run, seed=seed) for run in best(results).values() for seed in range(1, seeds)]


def decay(optimizers: Sequence[Optimizer], fraction: float) -> None:
    """Set the rates to that fraction of their initial values."""
    for opt in optimizers:
        for group in opt.param_groups:
            for name in ("lr", "inner_lr"):
                if name in group:
                    first = group.setdefault(f"initial_{name}", group[name])
                    group[name] = first * fraction


def execute(run: Run, folder: Path | None) -> dict[str, Any]:
    """Run it: its curve of ``POINTS`` equidistant values, and its seconds. A run that diverges ends with the worst
    possible figure."""
    torch.set_num_threads(1)
    task, contestant, start = tasks.make(run.task, run.preset, folder), EVERY[run.optimizer], time.perf_counter()
    torch.manual_seed(run.seed)
    model: nn.Module = task.model()
    optimizers = contestant.make(parameters(model), run.rate, run.other)
    batches = task.batches(torch.Generator().manual_seed(run.seed))
    curve: list[float] = []
    for k in range(task.gradients):
        if contestant.decays:
            decay(optimizers, 1 - k / task.gradients)
        model.train()
        for opt in optimizers:
            opt.zero_grad()
        loss = task.loss(model, next(batches))
        loss.backward()  # type: ignore[no-untyped-call]
        for opt in optimizers:
            opt.step()
        if (k + 1) * POINTS // task.gradients > len(curve):
            with at_x(*optimizers):
                task.prepare(model)
                value = task.measure(model.eval())
            curve.append(value if math.isfinite(value) else worst(task.figure))
            if not math.isfinite(float(loss.detach())):
                break
    curve += [worst(task.figure)] * (POINTS - len(curve))
    return {"run": asdict(run), "curve": curve, "seconds": round(time.perf_counter() - start, 2)}


def worst(figure: str) -> float:
    """The value that replaces a figure that is not finite."""
    return 1.0 if figure == "error" else 99.0


class Results:
    """The lines of a file, one a run.

    Args:
        path: the file; created if it does not exist.

    Attributes:
        data: by task the checksum of the data that runs take now.

    Raises:
        ValueError: a line is damaged; the message names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.all: list[dict[str, Any]] = []
        if path.exists():
            try:
                self.all = lines.read(path, _check)
            except ValueError as error:
                raise ValueError(f"{error}; remove that line") from error
            whole = "".join(map(_line, self.all))
            if path.read_text() != whole:  # an interruption cut off the last line
                write_text(path, whole)

    def missing(self, runs: Sequence[Run]) -> list[Run]:
        """Those without a result."""
        done = {Run(**result["run"]) for result in self.all}
        return [run for run in runs if run not in done]

    def take(self, task: str, data: str) -> None:
        """Let runs of a task take the data of that checksum.

        Raises:
            DataError: a stored run of the task took other data. (Lines from before checksums were kept have none.)
        """
        for result in self.all:
            there = result.get("data", data)
            if result["run"]["task"] == task and there != data:
                raise DataError(
                    f"{self.path} has runs of {task} on other data, checksum {there} there, {data} now: "
                    f"{tasks.source(task)}, or give another --out"
                )
        self.data[task] = data

    def add(self, result: dict[str, Any]) -> None:
        """Append one, on the disk before this returns."""
        append_text(self.path, _line(result))
        self.all.append(result)


def _line(result: dict[str, Any]) -> str:
    return json.dumps(result) + "\n"


def _check(result: dict[str, Any]) -> None:
    """ValueError or TypeError unless it is a line of ``Results``."""
    lines.check_kinds(result, {"run": dict, "curve": list, "seconds": lines.NUMBER})
    lines.check_kinds(result["run"], RUN)
    Run(**result["run"])  # no further names
    if not isinstance(result.get("data", ""), str):
        raise ValueError(f"data is {result['data']!r}")
    if len(result["curve"]) != POINTS or not all(isinstance(value, lines.NUMBER) for value in result["curve"]):
        raise ValueError(f"curve is {result['curve']!r}")


def perform(runs: Sequence[Run], results: Results, folder: Path | None, processes: int) -> Iterator[dict[str, Any]]:
    """Those of the runs that have no result yet, each in a process of a pool; yields results as they come. If this
    ends early, or its process is killed, so do they.

    Raises:
        DataError: as ``Results.take``; of tasks without a missing run only where ``folder`` names the data, since
            finished runs are shown without them.
    """
    for task in dict.fromkeys(run.task for run in (results.missing(runs) if folder is None else runs)):
        if task not in results.data:
            results.take(task, tasks.digest(task, folder))
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with ProcessPoolExecutor(processes, context, _end_with_parent, (theirs,)) as pool, ours:
        with _sigint_blocked():  # the processes inherit it: a Ctrl-C is for the parent
            waiting = [pool.submit(execute, run, folder) for run in results.missing(runs)]
        for future in as_completed(waiting):
            result = future.result()
            results.add({**result, "data": results.data[result["run"]["task"]]})
            yield results.all[-1]


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(pipe: Connection) -> None:
    """In a process of the pool: end when the parent's end of the pipe is closed."""

    def wait() -> None:
        pipe.poll(None)  # nothing is ever sent: it returns at the end
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
