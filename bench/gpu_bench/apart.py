"""Measuring in processes of their own, one per part and backend: an illegal address, which leaves a process without its
GPU, costs what that process had still to measure, and nothing else."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_bench.jobs import Job
from gpu_bench.record import TRACEBACK, Budget, Record, write

POLL = 2.0  # seconds between two looks at what has been measured
GRACE = 5.0  # seconds between the time that a process is told of and the end of it
PRINTED = "the end of what it printed:\n"


class Rows(Record):
    """The record of such a process: what its part has found, in one file.

    Args:
        file: JSON, of one part's entry in a record.
        part: its name.
        still_works: raises where the device is lost.
    """

    def __init__(self, file: Path, part: str, still_works: Callable[[], None]) -> None:
        super().__init__(file.parent, {})
        self._file, self._part = file, part
        self.still_works = still_works

    def save(self) -> None:
        write(self._file, json.dumps(self.data["parts"].get(self._part, {})))


@dataclass(frozen=True)
class Task:
    """What one process measures.

    Attributes:
        part: whose results these are.
        of: the backend, or what else is measured.
        needs: seconds that must be left for it to begin.
        limit: seconds after which it is stopped: a kernel that hangs must not take the others' time.
    """

    part: str
    of: str
    needs: float
    limit: float

    @property
    def name(self) -> str:
        return f"{self.part}/{self.of}"


def run(task: Task, command: list[str], folder: Path, record: Record, budget: Budget) -> None:
    """Run it, and take over what it has measured as it goes.

    Args:
        task: what is run.
        command: which ``--measure``, ``--out`` and ``--budget-seconds`` are added to.
        folder: for what it writes.
        record: that of the whole run.
        budget: what is left to all.
    """
    entry = record.data["parts"].setdefault(task.part, {})
    left = budget.left()
    if left < task.needs:
        record.results(task.part).setdefault("left_out", []).append(f"{task.of}: {left:.0f} s were left")
        return
    seconds = min(task.limit, left)
    file = folder / f"{task.name.replace('/', '-')}.json"
    told = ["--measure", task.name, "--out", str(file), "--budget-seconds", f"{max(1.0, seconds - GRACE):.1f}"]
    before, seen = copy.deepcopy(entry), ""
    until = time.monotonic() + seconds
    job = Job([*command, *told], file.with_suffix(".txt"))
    try:
        ended = False
        while not ended and time.monotonic() < until:
            ended = job.ended(min(POLL, until - time.monotonic()))
            found = file.read_text() if file.exists() else ""
            if found and found != seen:
                seen = found
                entry.update(joined(before, json.loads(found)))
                record.save()
        status = job.wait(until)
    finally:
        job.stop()
    if status != 0:
        how = f"stopped after {seconds:.0f} s" if status is None else f"ended with status {status}"
        said = PRINTED + job.printed()[-TRACEBACK:]
        entry.setdefault("errors", []).append({"what": f"{task.of}: its process {how}", "traceback": said})
        entry.setdefault("broke_off", []).append(f"{task.of} ({how})")
        record.save()


def joined(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Lists go on, mappings are joined; of other values the newer one stands."""
    found = dict(before)
    for key, value in new.items():
        old = before.get(key)
        if isinstance(old, list) and isinstance(value, list):
            value = [*old, *value]
        elif isinstance(old, dict) and isinstance(value, dict):
            value = joined(old, value)
        found[key] = value
    return found
