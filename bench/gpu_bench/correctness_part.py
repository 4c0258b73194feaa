"""Part ``correctness``: tests/gpu in a few processes at a time, and compute-sanitizer on a small run."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_bench.jobs import ROOT, Job
from gpu_bench.record import Budget, Record

LIMIT, LEAST = 200.0, 20.0  # seconds, of all together
LEAVE = 30.0  # seconds of the budget, for the parts that follow
SHARDS = 6
OUTCOME = re.compile(r"^(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
SKIPPED = re.compile(r"^\S+\.py::(\w+)\S*.*? SKIPPED \((.*)\)\s*$", re.MULTILINE)
WIDE = {"COLUMNS": "400"}  # pytest cuts a reason off where the line ends
TOOLS = ("memcheck", "racecheck")
FOUND_ERRORS = 86  # compute-sanitizer's exit status, as it is told


def run(record: Record, budget: Budget, tests: Path = ROOT / "tests" / "gpu", shards: int = SHARDS) -> None:
    """Write pytest.txt and sanitizer.txt, and the outcomes into the record."""
    results = record.results("correctness")
    until = time.monotonic() + max(LEAST, min(LIMIT, budget.left() - LEAVE))
    with tempfile.TemporaryDirectory() as folder:
        jobs = [start_shard(tests, k, shards, Path(folder)) for k in range(shards)]
        sanitizers = start_sanitizers(Path(folder))
        try:
            statuses = [job.wait(until) for job in jobs]
            texts = [f"=== shard {k} of {shards} ===\n{job.printed()}" for k, job in enumerate(jobs)]
            (record.folder / "pytest.txt").write_text("\n".join(texts))
            results["tests"] = outcomes(texts, statuses)
            record.save()
            results["sanitizer"] = {tool: verdict(job, until) for tool, job in sanitizers.items()}
            texts = [f"=== {tool} ===\n{job.printed() if job else ''}" for tool, job in sanitizers.items()]
            (record.folder / "sanitizer.txt").write_text("\n".join(texts) + "\n")
        finally:
            for job in [*jobs, *filter(None, sanitizers.values())]:
                job.stop()


def start_shard(tests: Path, shard: int, of: int, folder: Path) -> Job:
    options = ["-v", "-ra", "--durations=5", "-p", "no:cacheprovider", "-o", "console_output_style=classic"]
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    return Job(
        command, folder / f"pytest{shard}.txt", {**WIDE, "DEEPRELAX_SHARD": f"{shard}/{of}", "OMP_NUM_THREADS": "2"}
    )


def outcomes(texts: list[str], statuses: list[int | None]) -> dict[str, Any]:
    """What the shards printed, and whether all is well: they ended by themselves, nothing failed, something passed."""
    found = [match for text in texts for match in OUTCOME.findall(text)]
    counts = Counter(outcome.lower() for _, outcome in found)
    skipped: dict[str, list[str]] = {}
    for test, reason in sorted({match for text in texts for match in SKIPPED.findall(text)}):
        skipped.setdefault(reason, []).append(test)
    return {
        "outcomes": dict(counts),
        "failures": [test for test, outcome in found if outcome in ("FAILED", "ERROR")],
        "skipped": skipped,  # by reason
        "statuses": statuses,
        # 5: a shard without tests.
        "passed": all(status in (0, 5) for status in statuses) and counts["passed"] > 0,
    }


def sanitizer() -> str | None:
    """compute-sanitizer on the PATH or in CUDA's folder."""
    if found := shutil.which("compute-sanitizer"):
        return found
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places = [home / sub / "compute-sanitizer" for home in homes for sub in ("bin", "compute-sanitizer")]
    return next((str(place) for place in places if place.is_file()), None)


def start_sanitizers(folder: Path) -> dict[str, Job | None]:
    program = sanitizer()
    if program is None:
        return dict.fromkeys(TOOLS)
    # Every tensor in memory of its own: torch's pool would hide what reaches past the end of one.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    script = str(ROOT / "bench" / "sanitize.py")
    found: dict[str, Job | None] = {}
    for tool in TOOLS:
        command = [program, "--tool", tool, f"--error-exitcode={FOUND_ERRORS}", sys.executable, script]
        found[tool] = Job(command, folder / f"{tool}.txt", environment)
    return found


def verdict(job: Job | None, until: float) -> dict[str, Any]:
    if job is None:
        return {"said": "looked for compute-sanitizer on the PATH and in CUDA_HOME", "verdict": "not installed"}
    status = job.wait(until)
    last = [line for line in job.printed().splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    said = last[-1].strip("= ") if last else f"exit status {status}"
    if status is None:
        return {"said": "stopped at its limit of time", "verdict": "not finished"}
    return {"said": said, "verdict": "passed" if status == 0 else "**failed**"}


def failed(record: Record) -> bool:
    """Whether the part ran and something is wrong, or did not run to its end."""
    entry = record.data["parts"].get("correctness")
    if entry is None:
        return False
    results = entry.get("results", {})
    wrong = any(found["verdict"] == "**failed**" for found in results.get("sanitizer", {}).values())
    return entry["status"] != "done" or wrong or not results["tests"]["passed"]
