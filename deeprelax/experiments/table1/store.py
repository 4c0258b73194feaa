"""A run's files: a JSON-lines file that grows with every evaluation, and a checkpoint.

The first line of the file is the header: the run's settings, the machine, how it computes, the data's checksum. A line
for each evaluation follows, and a last one says how the run ended, with a checksum of its last state. The checkpoint
holds the same lines, so that after an interruption file and state agree: lines written after the checkpoint are dropped
and written again. It is removed when the run has ended. A line records where a run was resumed on a machine that may
give other bits.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deeprelax import environment
from deeprelax.experiments import lines as stored_lines
from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.lines import NUMBER, check_kinds
from deeprelax.experiments.runner import Runner, numerics, why_not_captured
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import checkpoints, protocol
from deeprelax.experiments.table1.checkpoints import StoreError
from deeprelax.files import alone, append_text, write_text

FINISHED, DIVERGED, PAUSED = "finished", "diverged", "paused"
CHUNK = 10  # gradients between two looks at the clock
SETTINGS = {name: type(value) for name, value in protocol.run("authors", "lenet", "sgd", 0).settings().items()}
KNOWN = {"preset": protocol.PRESETS, "model": protocol.MODELS, "optimizer": protocol.OPTIMIZERS}
MACHINE = {"cpu": str, "gpu": str | None, "threads": int, "instruction_set": str, "versions": dict}
RECORD = {
    **{name: NUMBER for name in ("effective_epoch", "gradients", "validation_error", "lr", "seconds")},
    **{name: NUMBER | None for name in ("training_loss", "gamma")},
}


@dataclass(frozen=True)
class Stored:
    """One run's file.

    Attributes:
        header: "run" (the settings), "machine", "how", "data".
        records: one for each evaluation: effective_epoch, gradients, validation_error (a fraction), training_loss
            (nats), lr, gamma, seconds.
        ended: "finished", "diverged", or None if it is not at its end.
        state: the checksum of the last state of an ended run; equal for runs of equal bits.
        gone_on: "gone_on_at" (gradients), "machine" and "how", for each time that another machine resumed it.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]]
    ended: str | None
    state: str | None = None
    gone_on: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def places(self) -> list[dict[str, Any]]:
        """Every "machine" and "how" that it was produced with."""
        return [self.header, *self.gone_on]

    @property
    def settings(self) -> dict[str, Any]:
        """What the run does, as it was stored."""
        settings: dict[str, Any] = self.header["run"]
        return settings


def path_of(run: Run, out: Path) -> Path:
    """The file of a run's lines."""
    return out / "runs" / f"{run.name}.jsonl"


def checkpoint_of(run: Run, out: Path) -> Path:
    """The file of a run's checkpoint."""
    return out / "checkpoints" / f"{run.name}.pt"


def read(path: Path) -> Stored:
    """A run's file. A last line that was cut off in the middle is left out.

    Raises:
        StoreError: it is not such a file.
    """
    try:
        lines = stored_lines.read(path, _check_line)
        if not lines or "run" not in lines[0]:
            raise ValueError(f"{path} does not begin with the settings of a run")
        header, records = lines[0], [line for line in lines[1:] if "validation_error" in line]
        ended, state = lines[-1].get("ended"), lines[-1].get("state")
        if ended and not records:
            raise ValueError(f"{path} is damaged: the run ended without an evaluation")
    except ValueError as error:
        raise StoreError(f"{error}; remove the file to begin that run again") from error
    return Stored(header, records, ended, state, [line for line in lines[1:] if "gone_on_at" in line])


def _check_line(line: dict[str, Any]) -> None:
    """ValueError unless it is one of a run's."""
    if "run" in line:
        check_kinds(line, {"run": dict, "data": str})
        check_kinds(line["run"], SETTINGS)
        for name, known in KNOWN.items():
            if line["run"][name] not in known:
                raise ValueError(f"{name} is {line['run'][name]!r}")
    if "run" in line or "gone_on_at" in line:
        check_kinds(line, {"machine": dict})
        check_kinds(line["machine"], MACHINE)
    elif "ended" in line:
        check_kinds(line, {"ended": str})
    else:
        check_kinds(line, RECORD)


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
    _check_digest(digest, stored, path)


def check_data(run: Run, digest: str, out: Path, alike: Sequence[str]) -> None:
    """StoreError unless every run in ``out`` with these settings of ``run``'s used these data: they are shown in one
    table."""
    settings = run.settings()
    for path in sorted((out / "runs").glob("*.jsonl")):
        stored = read(path)
        if all(stored.settings[name] == settings[name] for name in alike):
            _check_digest(digest, stored, path)


def _check_digest(digest: str, stored: Stored, path: Path) -> None:
    there = stored.header["data"]
    if there != digest:
        raise StoreError(
            f"{path} is of other data: checksum {there} there, {digest} now; give the data of that run (--data and "
            "--images), or another --out"
        )


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
    until: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 60.0,
    on_progress: Callable[[int, int, float | None], object] = lambda done, total, error: None,
    warn: Callable[[str], None] = warnings.warn,
) -> str:
    """Run it from its last checkpoint to its end, to the deadline, or to ``until``, or until ``stop`` returns True.

    The bits of sums depend on the number of CPU threads: a run that is resumed keeps the number it began with.

    Args:
        data: on the device to train on.
        deadline: on ``time.monotonic``'s clock; a run that meets it is saved and can be resumed.
        until: effective epochs after which the run is saved as at the deadline; None: no such end.
        stop: asked after every gradient; the run is then saved as at the deadline.
        checkpoint_seconds: between two checkpoints. The last one is removed when the run has ended.
        on_progress: called with the gradients taken, their number at the end or ``until``, and the last validation
            error.
        warn: called when another machine resumes the run, and when a GPU's steps cannot be captured.

    Returns:
        "finished", "diverged" or "paused".

    Raises:
        StoreError: a file of its name is of another run, or its checkpoint is from a CPU and this is a GPU, or the
            other way round.
        OSError: another process works on this run.
        ValueError: a setting is out of range.
    """
    path, saved = path_of(run, out), checkpoint_of(run, out)
    for folder in (path.parent, saved.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(path, saved.with_suffix(".lock")):
        if path.exists():
            stored = read(path)
            check_same(run, digest, stored, path)
            if stored.ended:
                saved.unlink(missing_ok=True)  # of a process that was killed between the two
                return stored.ended
        device = data.train_inputs.device
        content = None
        if saved.exists():
            content = checkpoints.read(saved)
            check_same(run, digest, Stored(content["lines"][0], [], None), saved)
            _check_device(content["lines"], device, saved)
        with environment.threads(content["lines"][0]["machine"]["threads"] if content else None), numerics(run, device):
            runner = Runner(run, data)
            if why := why_not_captured(run, device):
                warn(f"{run.name}: {why}")
            about = {"machine": environment.describe(device), "how": runner.how}
            lines: list[dict[str, Any]] = [{"run": run.settings(), **about, "data": digest}]
            before = 0.0
            if content:
                runner.load_state(content["state"])
                lines, before = content["lines"], content["seconds"]
                _note_machine(run, lines, about, runner.done, warn)
            write_lines(path, lines)
            start = last_saved = time.monotonic()
            reach = runner.total if until is None else min(runner.total, until * runner.per_epoch)
            while runner.done < reach and not _has_diverged(lines):
                span = run.evaluate_every * runner.per_epoch
                for _ in range(min(CHUNK, span - runner.done % span, reach - runner.done)):
                    runner.advance(1)
                    if stop():
                        break
                if runner.done % span == 0 or runner.done == runner.total:
                    lines.append(_evaluated(runner, before - start))
                    _append(path, lines[-1])
                now = time.monotonic()
                errors = [line["validation_error"] for line in lines if "validation_error" in line]
                on_progress(runner.done, reach, errors[-1] if errors else None)
                at_end = _has_diverged(lines) or runner.done == reach
                paused = (now >= deadline or stop()) and not at_end
                if at_end or paused or now - last_saved >= checkpoint_seconds:
                    checkpoints.write(saved, {"lines": lines, "state": runner.state(), "seconds": before + now - start})
                    last_saved = now
                if paused:
                    return PAUSED
            if runner.done < runner.total and not _has_diverged(lines):  # it is at ``until`` or beyond
                return PAUSED
            end = DIVERGED if _has_diverged(lines) else FINISHED
            _append(path, {"ended": end, "state": checkpoints.digest(runner.state())})
        saved.unlink(missing_ok=True)
        return end


def _evaluated(runner: Runner, seconds: float) -> dict[str, Any]:
    """A line; ``seconds`` and the clock give the run's time."""
    error, loss = runner.evaluate()
    return {
        "effective_epoch": runner.done / runner.per_epoch,
        "gradients": runner.done,
        "validation_error": error,
        "training_loss": loss if loss < float("inf") else None,
        "lr": runner.rate,
        "gamma": runner.gamma,
        "seconds": round(seconds + time.monotonic(), 2),
    }


def _has_diverged(lines: Sequence[dict[str, Any]]) -> bool:
    """By the last evaluation, so that a run that was stopped after it does not train on."""
    losses = [line["training_loss"] for line in lines if "validation_error" in line]
    return losses[-1:] == [None]


def _check_device(lines: Sequence[dict[str, Any]], device: torch.device, saved: Path) -> None:
    """StoreError where a CPU's run would resume on a GPU, or the other way round: dropout's generators differ."""
    there = next(line for line in reversed(lines) if "machine" in line)["machine"]["gpu"]
    if bool(there) != (device.type == "cuda"):
        raise StoreError(
            f"{saved} is of a run on {there or 'a CPU'}, whose random numbers for dropout cannot be resumed on "
            f"{device}: give --device {'cuda' if there else 'cpu'}, or remove it to begin that run again"
        )


def _note_machine(
    run: Run, lines: list[dict[str, Any]], about: dict[str, Any], done: int, warn: Callable[[str], None]
) -> None:
    """A line and a warning where the run was last on a machine that may give other bits."""
    last = next(line for line in reversed(lines) if "machine" in line)
    if changed := environment.differences(last, about):
        warn(f"{run.name} resumes elsewhere, and the bits of the rest may differ: {'; '.join(changed)}")
        lines.append({"gone_on_at": done, **about})


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Replace the file by these lines, at once."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _append(path: Path, line: dict[str, Any]) -> None:
    append_text(path, json.dumps(line) + "\n")
