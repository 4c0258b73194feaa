"""What a run leaves in its folder: a JSON-lines file that grows with every evaluation, and a checkpoint.

The first line of the file is the header: the run's settings, the machine, the data's checksum. A line for each
evaluation follows, and a last one says how the run ended. The checkpoint holds the same lines, so that after an
interruption file and state agree: lines written after the checkpoint are dropped and come again.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deeprelax.experiments import machine
from deeprelax.experiments.data import Data
from deeprelax.experiments.protocol import Run
from deeprelax.experiments.runner import Runner, numerics

FINISHED, DIVERGED, PAUSED = "finished", "diverged", "paused"
CHUNK = 10  # gradients between two looks at the clock


class StoreError(Exception):
    """A stored run cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Stored:
    """One run's file.

    Attributes:
        header: "run" (the settings), "machine", "data".
        records: one for each evaluation: effective_epoch, gradients, validation_error (a fraction), training_loss
            (nats), lr, gamma, seconds.
        ended: "finished", "diverged", or None if it is not at its end.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]]
    ended: str | None

    @property
    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.header["run"]
        return settings


def path_of(run: Run, out: Path) -> Path:
    return out / "runs" / f"{run.name}.jsonl"


def checkpoint_of(run: Run, out: Path) -> Path:
    return out / "checkpoints" / f"{run.name}.pt"


def read(path: Path) -> Stored:
    """A run's file. A last line that was cut off in the middle is left out.

    Raises:
        StoreError: it is not such a file.
    """
    lines: list[dict[str, Any]] = []
    texts = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts) - 1 or number == 0:
                raise StoreError(f"{path}, line {number + 1} is damaged: {error}; remove the file") from error
    if not lines or "run" not in lines[0]:
        raise StoreError(f"{path} does not begin with the settings of a run; remove it")
    ended = lines[-1].get("ended")
    return Stored(lines[0], [line for line in lines[1:] if "validation_error" in line], ended)


def read_all(out: Path) -> list[Stored]:
    """Every run in ``out``, by name."""
    return [read(path) for path in sorted((out / "runs").glob("*.jsonl"))]


def check_same(run: Run, digest: str, stored: Stored, path: Path) -> None:
    """StoreError unless the stored run is of these settings and data."""
    settings = run.settings()
    for name, value in settings.items():
        there = stored.settings.get(name)
        if there != value:
            raise StoreError(f"{path} is of other settings: {name} is {there} there, {value} now; give another --out")
    if stored.header["data"] != digest:
        raise StoreError(f"{path} is of other data: checksum {stored.header['data']} there, {digest} now")


def ended(run: Run, digest: str, out: Path) -> bool:
    """Whether the run is there and at its end.

    Raises:
        StoreError: a file of its name is of another run.
    """
    path = path_of(run, out)
    if not path.exists():
        return False
    stored = read(path)
    check_same(run, digest, stored, path)
    return stored.ended is not None


def execute(
    run: Run,
    data: Data,
    digest: str,
    out: Path,
    *,
    deadline: float = float("inf"),
    checkpoint_seconds: float = 60.0,
    on_progress: Callable[[int, int, Sequence[dict[str, Any]]], None] = lambda done, total, records: None,
) -> str:
    """Run it from where it stands to its end, or to the deadline.

    The bits of sums depend on the number of CPU threads: a run that is gone on with keeps the number it began with.

    Args:
        data: on the device to train on.
        deadline: on ``time.monotonic``'s clock; a run that meets it is saved and can be gone on with.
        checkpoint_seconds: between two checkpoints; there is always one at the end.
        on_progress: called with the gradients taken and their total, and the evaluations so far.

    Returns:
        "finished", "diverged" or "paused".

    Raises:
        StoreError: a file of its name is of another run.
        ValueError: a setting is out of range.
    """
    path, saved = path_of(run, out), checkpoint_of(run, out)
    for folder in (path.parent, saved.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        check_same(run, digest, read(path), path)
    device = data.train_inputs.device
    content = None
    if saved.exists():
        content = _read_checkpoint(saved)
        check_same(run, digest, Stored(content["lines"][0], [], None), saved)
    with machine.threads(content["lines"][0]["machine"]["threads"] if content else None), numerics(run, device):
        runner = Runner(run, data)
        lines: list[dict[str, Any]] = [{"run": run.settings(), "machine": machine.describe(device), "data": digest}]
        before = 0.0
        if content:
            runner.load_state(content["state"])
            lines, before = content["lines"], content["seconds"]
        write_lines(path, lines)
        start = last_saved = time.monotonic()
        while runner.done < runner.total:
            span = run.evaluate_every * runner.per_epoch
            runner.advance(min(CHUNK, span - runner.done % span, runner.total - runner.done))
            now = time.monotonic()
            diverged = False
            if runner.done % span == 0 or runner.done == runner.total:
                error, loss = runner.evaluate()
                now = time.monotonic()
                diverged = not loss < float("inf")
                lines.append(
                    {
                        "effective_epoch": runner.done / runner.per_epoch,
                        "gradients": runner.done,
                        "validation_error": error,
                        "training_loss": None if diverged else loss,
                        "lr": runner.rate,
                        "gamma": runner.gamma,
                        "seconds": round(before + now - start, 2),
                    }
                )
                _append(path, lines[-1])
            on_progress(runner.done, runner.total, lines[1:])
            at_end = diverged or runner.done == runner.total
            paused = now >= deadline and not at_end
            if at_end or paused or now - last_saved >= checkpoint_seconds:
                content = {"lines": lines, "state": runner.state(), "seconds": before + now - start}
                _write_atomically(saved, functools.partial(torch.save, content))
                last_saved = now
            if paused:
                return PAUSED
            if diverged:
                break
    end = DIVERGED if lines[-1]["training_loss"] is None else FINISHED
    _append(path, {"ended": end})
    return end


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise StoreError(f"{path} is damaged: {error}; remove it to begin that run again") from error
    return content


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Replace the file by these lines, at once."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Replace the file by this text, at once."""
    _write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """An interruption leaves the old file or the new one, never a part."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
