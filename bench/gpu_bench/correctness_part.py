"""Part ``correctness``: tests/gpu in a few processes at a time, and compute-sanitizer on a small run."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gpu_bench import sanitizer
from gpu_bench.jobs import ROOT, Job
from gpu_bench.record import Budget, Record, write

LIMIT, LEAST = 200.0, 20.0  # seconds, of all together
LEAVE = 30.0  # seconds of the budget, for the parts that follow
POLL = 3.0  # seconds between two looks at what was printed: so much is lost where all is killed
# One process for those tests of which two at a time would not fit into a GPU's memory: tests/conftest.py.
SHARDS = (*(f"{k}/6" for k in range(6)), "large")
OUTCOME = re.compile(r"^(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
SKIP = re.compile(r"^SKIPPED \[(\d+)\] .+?: (.*)$", re.MULTILINE)  # of pytest's summary
# The reasons of tests/gpu/on_gpu.py: what is of no consequence here, and what leaves something unproven.
ALLOWED, NOT_PROVEN = "one GPU", "GPU memory"
RUNNING = "running"
# What `deeprelax reproduce` sets before it resumes with the same bits.
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "2"}


def run(record: Record, budget: Budget, tests: Path = ROOT / "tests" / "gpu", shards: tuple[str, ...] = SHARDS) -> None:
    """Write pytest.txt and sanitizer.txt, and the outcomes into the record: while all runs, and at its end."""
    until = time.monotonic() + max(LEAST, min(LIMIT, budget.left() - LEAVE))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        jobs = {name: start_shard(tests, name, Path(folder) / f"pytest{k}.txt") for k, name in enumerate(shards)}
        sanitizers = sanitizer.start(Path(folder))
        every = [*jobs.values(), *filter(None, sanitizers.values())]
        try:
            while any(not job.ended() for job in every) and time.monotonic() < until:
                publish(record, jobs, sanitizers, stopped=False)
                wait(every, min(until, time.monotonic() + POLL))
        finally:
            stopped = time.monotonic() >= until
            publish(record, jobs, sanitizers, stopped)
            for job in every:
                job.stop()


def wait(jobs: list[Job], until: float) -> None:
    """Until that time, or until all have ended."""
    for job in jobs:
        job.ended(until - time.monotonic())


def start_shard(tests: Path, shard: str, log: Path) -> Job:
    options = ["-v", "-ra", "--durations=5", "-p", "no:cacheprovider", "-o", "console_output_style=classic"]
    return Job([sys.executable, "-m", "pytest", *options, str(tests)], log, {"DEEPRELAX_SHARD": shard, **ENVIRONMENT})


def publish(record: Record, jobs: dict[str, Job], sanitizers: dict[str, Job | None], stopped: bool) -> None:
    """Files and record as of now; ``stopped``: what still runs is at its limit."""
    results = record.results("correctness")
    texts = [f"=== shard {name} ===\n{job.printed()}" for name, job in jobs.items()]
    write(record.folder / "pytest.txt", "\n".join(texts))
    statuses = [job.wait(0.0) if job.ended() else None if stopped else RUNNING for job in jobs.values()]
    results["tests"] = outcomes(texts, statuses)
    found = {}
    for tool, job in sanitizers.items():
        if job is None:
            found[tool] = sanitizer.NOT_INSTALLED
        elif job.ended():
            found[tool] = sanitizer.verdict(job.wait(0.0) or 0, job.printed())
        else:
            found[tool] = sanitizer.STOPPED if stopped else sanitizer.RUNNING
    results["sanitizer"] = found
    texts = [f"=== {tool} ===\n{job.printed() if job else ''}" for tool, job in sanitizers.items()]
    write(record.folder / "sanitizer.txt", "\n".join(texts) + "\n")
    record.save()


def outcomes(texts: list[str], statuses: list[int | str | None]) -> dict[str, Any]:
    """What the shards printed, and whether all is well: they ended by themselves, nothing failed, something passed,
    and each test that was skipped says why, with a reason that is allowed."""
    found = [match for text in texts for match in OUTCOME.findall(text)]
    counts = Counter(outcome.lower() for _, outcome in found)
    skips: Counter[str] = Counter()
    for text in texts:
        for count, reason in SKIP.findall(text):
            skips[reason] += int(count)
    ended = RUNNING not in statuses and None not in statuses
    if ended and (silent := counts["skipped"] - skips.total()) > 0:
        skips["no reason was found"] += silent
    lacking = {reason: n for reason, n in skips.items() if reason.startswith(NOT_PROVEN)}
    not_allowed = {reason: n for reason, n in skips.items() if reason != ALLOWED and reason not in lacking}
    return {
        "outcomes": dict(counts),
        "failures": [test for test, outcome in found if outcome in ("FAILED", "ERROR")],
        "skips": dict(skips),
        "not_proven": lacking,
        "not_allowed": not_allowed,
        "statuses": statuses,
        # 5: a shard without tests.
        "passed": all(status in (0, 5) for status in statuses) and counts["passed"] > 0 and not not_allowed,
    }
