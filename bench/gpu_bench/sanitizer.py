"""compute-sanitizer's memcheck and racecheck on ``bench/sanitize.py``, and what they come to."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from gpu_bench.jobs import ROOT, Job
from gpu_bench.verdict import FAILED, NOT_FINISHED

TOOLS = ("memcheck", "racecheck")
FOUND_ERRORS = 86  # its exit status, as it is told
NOT_INSTALLED = {"said": "looked for compute-sanitizer on the PATH and in CUDA_HOME", "verdict": "not installed"}
RUNNING = {"said": "was still running when this was written", "verdict": NOT_FINISHED}
STOPPED = {"said": "stopped at its limit of time", "verdict": NOT_FINISHED}


def program() -> str | None:
    """compute-sanitizer on the PATH or in CUDA's folder."""
    if found := shutil.which("compute-sanitizer"):
        return found
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places = [home / sub / "compute-sanitizer" for home in homes for sub in ("bin", "compute-sanitizer")]
    return next((str(place) for place in places if place.is_file()), None)


def start(folder: Path) -> dict[str, Job | None]:
    """A job for each tool; None where it is not installed."""
    found = program()
    if found is None:
        return dict.fromkeys(TOOLS)
    # Every tensor in memory of its own: torch's pool would hide what reaches past the end of one.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    arguments = [f"--error-exitcode={FOUND_ERRORS}", sys.executable, str(ROOT / "bench" / "sanitize.py")]
    return {tool: Job([found, "--tool", tool, *arguments], folder / f"{tool}.txt", environment) for tool in TOOLS}


def verdict(status: int, printed: str) -> dict[str, str]:
    """Of a run that came to its end by itself."""
    last = [line for line in printed.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    if not last and "Device not supported" in printed:  # under gVisor, say: the program then fails, and nothing is seen
        return {"said": "compute-sanitizer says: Device not supported", "verdict": "not supported here"}
    said = last[-1].strip("= ") if last else f"exit status {status}"
    return {"said": said, "verdict": "passed" if status == 0 else FAILED}
