"""Processes that run beside this one, each with its output in a file and a limit on its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from gpu_bench.lifetime import bound_to_parent, no_signals

ROOT = Path(__file__).parents[2]


class Job:
    """A process group of its own, started at once; it does not outlive this process.

    Args:
        command: the program and its arguments.
        log: file for what it prints.
        environment: variables on top of this process's.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("w") as output, no_signals():
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                # Its log is all that is left of a process that dies: what it printed, and where Python was.
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **(environment or {})},
                start_new_session=True,
                preexec_fn=bound_to_parent(),
            )

    def wait(self, until: float) -> int | None:
        """The exit status; None if it was still running at ``until``, of ``time.monotonic()``, and was stopped."""
        try:
            return self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            return None

    def ended(self, within: float = 0.0) -> bool:
        """Whether it has ended, or does so within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, within))
        return self._process.returncode is not None

    def stop(self) -> None:
        """End it, and what it has started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def printed(self) -> str:
        return self.log.read_text(errors="replace")
