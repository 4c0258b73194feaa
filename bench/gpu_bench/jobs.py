"""Processes that run beside this one, each with its output in a file and a limit on its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Job:
    """A process group of its own, started at once.

    Args:
        command: the program and its arguments.
        log: file for what it prints.
        environment: variables on top of this process's.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        self._begin = time.monotonic()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
            )

    def wait(self, until: float) -> int | None:
        """The exit status; None if it was still running at ``until``, of ``time.monotonic()``, and was stopped."""
        try:
            return self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            return None

    def stop(self) -> None:
        """End it, and what it has started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def printed(self) -> str:
        return self.log.read_text(errors="replace")
