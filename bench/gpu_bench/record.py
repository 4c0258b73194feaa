"""What a run has found so far, rewritten after every step of it: an interrupted run leaves all that it had."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_bench.picture import draw
from gpu_bench.targets import judge
from gpu_bench.text import markdown

# Of a traceback, whose end says what went wrong and where.
TRACEBACK = 1500


class Budget:
    """Seconds that are left.

    Args:
        seconds: in all, from now on.
        clock: tells the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        return self._end - self.clock()


class Record:
    """``gpu.json``, ``gpu.md`` and ``bandwidth.png`` in a folder.

    Args:
        folder: where they go; it is made.
        about: what is known before the first part: machine, versions, commit, date.

    Attributes:
        data: what gpu.json holds: ``about``, ``parts`` (status, seconds, errors, broke_off, results) and ``targets``.
        still_works: called after an exception; raises where going on makes no sense.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data: dict[str, Any] = {"about": about, "parts": {}, "targets": []}
        self.still_works: Callable[[], None] = lambda: None
        self._drawn: list[Any] = []

    def save(self) -> None:
        """Write everything anew. The measured values come first: what fails after them costs only itself."""
        self.data["targets"] = judge(self.data["parts"])
        write(self.folder / "gpu.json", json.dumps(self.data, indent=1) + "\n")
        sizes = self.data["parts"].get("kernels", {}).get("results", {}).get("sizes", [])
        try:
            write(self.folder / "gpu.md", markdown(self.data))
            if sizes != self._drawn:
                draw(sizes, self.data["about"], self.folder / "bandwidth.png")
                self._drawn = list(sizes)
        except Exception:
            print(f"gpu.md or bandwidth.png: {traceback.format_exc()[-TRACEBACK:]}", flush=True)

    def results(self, part: str) -> dict[str, Any]:
        """What a part has measured."""
        found: dict[str, Any] = self.data["parts"].setdefault(part, {}).setdefault("results", {})
        return found

    @contextlib.contextmanager
    def attempt(self, part: str, what: str) -> Iterator[None]:
        """An exception inside is noted with its traceback's end, and what comes after goes on."""
        try:
            yield
        except Exception:
            errors = self.data["parts"].setdefault(part, {}).setdefault("errors", [])
            errors.append({"what": what, "traceback": traceback.format_exc()[-TRACEBACK:]})
            print(f"{part}, {what}: {errors[-1]['traceback']}", flush=True)
            self.still_works()


def write(path: Path, text: str) -> None:
    """In one go: whoever reads meanwhile finds the old text or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


Part = Callable[[], None]


def run_parts(parts: dict[str, tuple[float, Part]], record: Record, budget: Budget) -> None:
    """Run the parts in their order.

    Args:
        parts: by name the seconds that must be left for it to begin, and what runs.
        record: saved before and after each, and when one is interrupted.
        budget: a part for which too little is left is left out, which the record says.
    """
    record.save()
    for name, (needs, part) in parts.items():
        left = budget.left()
        entry = record.data["parts"].setdefault(name, {})
        if left < needs:
            entry["status"] = f"left out: {left:.0f} s were left, and it needs {needs:.0f} s"
            record.save()
            continue
        print(f"{name}: {left:.0f} s left", flush=True)
        entry["status"] = "interrupted"
        record.save()
        begin = budget.clock()
        try:
            with record.attempt(name, "the whole part"):
                part()
        except BaseException:
            record.save()
            raise
        entry["seconds"] = budget.clock() - begin
        entry["status"] = "with errors" if entry.get("errors") else "done"
        record.save()
