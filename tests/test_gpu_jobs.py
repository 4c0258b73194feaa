"""What ``bench/gpu.py`` has started ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from gpu_bench.jobs import Job  # noqa: E402

PARENT = """
import signal, sys, time
from pathlib import Path
from gpu_bench.jobs import Job
from gpu_bench.lifetime import unwind_on_signals

folder = Path(sys.argv[1])
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup, and so left alone
unwind_on_signals()
job = Job(["sh", "-c", "echo $$; exec sleep 600"], folder / "job.txt")
try:
    (folder / "begun").touch()
    time.sleep(600)
finally:
    job.stop()
    (folder / "unwound").touch()
"""


STARTS = """
import os, signal, sys
from pathlib import Path
from gpu_bench.jobs import Job
from gpu_bench.lifetime import unwind_on_signals

unwind_on_signals()
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
Job(["sleep", "600"], Path(sys.argv[1]) / "job.txt")
"""


def test_a_signal_while_a_job_is_started_is_not_lost(tmp_path: Path) -> None:
    """Python swallows what is raised in its hooks of a fork."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    done = subprocess.run([sys.executable, "-c", STARTS, str(tmp_path)], env=environment, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM


def gone(pid: int) -> bool:
    """Whether it has ended; nobody may have asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def soon(condition: object, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda s: s.name)
def test_a_job_ends_with_the_process_that_started_it(how: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench")}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=environment)
    printed = tmp_path / "job.txt"
    assert soon(lambda: (tmp_path / "begun").exists() and printed.read_text().endswith("\n"))
    job = int(printed.read_text())
    assert not gone(job)
    parent.send_signal(how)
    assert parent.wait(20) == (-how if how == signal.SIGKILL else 128 + how)
    assert soon(lambda: gone(job))
    assert (tmp_path / "unwound").exists() == (how != signal.SIGKILL)  # by the handler, not by the kernel


def test_a_job_is_waited_for_without_being_stopped(tmp_path: Path) -> None:
    job = Job(["sleep", "0.5"], tmp_path / "log")
    assert not job.ended()
    assert not job.ended(0.05)
    assert job.ended(20)
    assert job.wait(0.0) == 0
