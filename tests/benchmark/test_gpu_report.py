"""``make gpu`` says what it lacks, runs every script, and its report says what was reached and what was not proved."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import preflight
import pytest
import readme
import report
import torch

from deeprelax.kernels import RULES

ROOT = Path(__file__).parents[2]
JUNIT = '<testsuite><testcase classname="a" name="good"/><testcase classname="a" name="b">{}</testcase></testsuite>'
SANITIZER = "compute-sanitizer, memcheck-cuda"


@pytest.mark.parametrize(
    ("outcome", "stopped", "status", "said"),
    [
        ("", "", 0, "| pytest | 2 | 0 | 0 |"),
        ('<skipped message="one GPU"/>', "", 0, "| pytest | 1 | 0 | 1 |"),
        ('<skipped message="GPU memory: 3"/>', "", 3, "not proven: pytest, 1 tests: GPU memory: 3"),
        *((f'<{outcome} message="x"/>', "", 1, "a::b failed") for outcome in ("failure", "error")),
        *(("", f"steps.py: exit status {n}", 1 if n == 1 else 3, "steps.py: exit") for n in (1, 124, 127, 137)),
        *(("", f"{SANITIZER}: exit status {n}", 1 if n == 86 else 3, SANITIZER) for n in (86, 1, 137)),
        (None, "", 3, "not proven: memcheck-cuda: no test passed"),
    ],
)
def test_the_report_says_what_was_not_proved(
    outcome: str | None, stopped: str, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``outcome``: of a test; None: the sanitizer did not run."""
    for name in report.CHECKS if outcome is not None else report.CHECKS[:1]:
        (tmp_path / f"{name}.xml").write_text(JUNIT.format(outcome or ""))
    (tmp_path / "stopped.txt").write_text(stopped)
    about = {"script": "about", "gpu": "a GPU", "why_not": {"cuda": ""}}
    (tmp_path / "rows.jsonl").write_text(f'{json.dumps(about)}\n{{"script": "cut o')
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    assert report.main() == status
    assert said in (tmp_path / "gpu.md").read_text()


def test_targets_are_judged_by_whole_cycles_and_by_the_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hj: dict[str, Any] = {"script": "bandwidth", "backend": "cuda", "rule": "HJ", "dtype": "fp32", "bytes": 20}
    found: report.Results = report.load(tmp_path) + [
        {**hj, "kind": kind, "elements": 128, "bandwidth_ratio": {"median": of}}
        for kind, of in (("inner", 1.0), ("first", 0.5), ("last", 0.5))
    ]
    found.append({**found[-1], "rule": "Heat"})  # one kind of three
    found += [{**hj, "rule": rule, "elements": n, "gb_per_s": n / 9} for n in (128, 64) for rule in ("HJ", "copy")]
    for (backend, new), slowest in {("cuda", False): 0.8, ("cuda", True): 1.1, ("triton", True): 1.9}.items():
        timed = {"script": "host", "backend": backend, "new_gradients": new}
        by_sgd = {("HJ", False): 0.7, ("Heat", False): slowest, ("torch.optim", False): 9, ("HJ", True): 5}
        found += [{**timed, "name": n, "capturable": c, "by_sgd": by} for (n, c), by in by_sgd.items()]
    runs = ("resnet50", common.RULES, 0.1), ("resnet50", common.RULES, 0.5), ("decoder-1.3b", common.RULES[1:], 0.5)
    for workload, rules, factor in runs:  # the first was run again
        whole = {"script": "steps", "backend": "cuda", "workload": f"{workload}, many tensors"}
        of = {"torch.optim": 0.1, **{rule.name: k * factor for k, rule in enumerate(rules, 1)}}
        found += [{**whole, "name": name, "bandwidth_ratio": {"median": ratio}} for name, ratio in of.items()]
    stalls = {"stall wait": 1.0, "stall long_scoreboard": 9.0}
    ncu = {**hj, "script": "ncu", "dram_percent": 71.3, "issue_percent": 20.0, **stalls}
    found += [{**ncu, "backend": "triton", "dram_percent": 1.0}, {**ncu, "dtype": "bf16", "dram_percent": 2.0}, ncu]
    shown = report.markdown(found)
    assert "- **no GPU test passed**" in shown
    of_copy = "bandwidth relative to a copy | ≥"
    reason = "dram_percent 71.3, issue_percent 20, stall long_scoreboard 9"
    assert f"| HJ, fp32 [cuda]: {of_copy} 0.95 | 0.96 to 1.00 | 0.714 (missed) | {reason} |" in shown
    assert f"| Heat, fp32 [cuda]: {of_copy} 0.93 | 0.94 to 0.99 | not measured |  |" in shown
    assert f"| Heat, bf16 [triton]: {of_copy} 0.88 |  | not measured |  |" in shown
    step = "time of step() per byte relative to AdamW, slowest of 5 | ≤ 1 | "
    assert f"| resnet50 [cuda]: {step} | 2.000 (missed) |" in shown
    assert f"| decoder-1.3b [cuda]: {step} | not measured |" in shown
    on_host = re.findall(r"300 tensors(.*): relative to SGD, slowest \| (.*) \|  \| (.*) \|  \|", shown)
    assert on_host == [
        (" [cuda]", "≤ 1", "0.800"),
        (", new gradients [cuda]", "≤ 1", "1.100 (missed)"),
        (" [triton]", "≤ 2", "not measured"),
        (", new gradients [triton]", "≤ 2", "1.900"),
    ]
    met = report.targets([report.Target("a", "≥", 0.9, 0.9, limits="x"), report.Target("b", "≤", 0.9, 0.9)])
    assert met[2:4] == ["| a | ≥ 0.9 |  | 0.900 |  |", "| b | ≤ 0.9 |  | 0.900 |  |"]
    drawn: Any = []
    monkeypatch.setattr(readme.Figure, "savefig", lambda figure, path, **_: drawn.append((path, *figure.axes)))
    readme.draw(found, tmp_path / "b.png")
    ((path, axes),) = drawn
    lines = {f"{rule} [cuda]": [[64, 64 / 9], [128, 128 / 9]] for rule in ("HJ", "copy")}
    assert (path, {line.get_label(): line.get_xydata().tolist() for line in axes.lines}) == (tmp_path / "b.png", lines)


def test_make_gpu_says_what_it_lacks_before_it_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NEEDS", {"setuptools": 1000, "pytest": 8, "no-such-package": 2})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        preflight.main()
    said = str(end.value)
    assert "needs setuptools 1000 or newer, and setuptools is" in said
    assert "needs no-such-package 2 or newer, and no no-such-package" in said
    assert "pip download --no-deps -d wheels 'no-such-package>=2'" in said
    assert "torch.cuda.is_available() is False" in said
    assert "pytest" not in said


def test_a_script_that_dies_loses_only_its_own_rows(tmp_path: Path) -> None:
    """``make gpu`` with a Python that notes what it is to run, and fails where it is to measure: one at a time, also if
    make is asked for several jobs; and with a sanitizer that sees nothing. Where make cannot run, what an earlier run
    left stays."""
    python, notes, out, sanitizer = (tmp_path / name for name in ("python", "notes", "out", "compute-sanitizer"))
    sanitizer.write_text("#!/bin/sh\necho ========= Error: Device not supported\n")
    sanitizer.chmod(0o755)
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {notes}\n'
        'case "$*" in *preflight*) echo 90;; *report*|*pip*) ;; *) sleep 0.2; exit 1; esac\n'
    )
    python.chmod(0o755)
    (out / "gpu").mkdir(parents=True)
    for name in ("rows.jsonl", "pytest.xml", "stopped.txt"):
        (out / "gpu" / name).write_text("earlier\n")
    command = ["make", "--jobs=4", "gpu", f"PYTHON={python}", f"OUT={out}", "SCRIPTS=tests bandwidth host"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run([*command, "PYTHON=false"], cwd=ROOT, capture_output=True).returncode
    assert (out / "gpu" / "rows.jsonl").read_text() == "earlier\n"
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    lines = [line.replace("bench/gpu/", "") for line in notes.read_text().splitlines()]
    measuring = "bandwidth.py --backend {}", "steps.py --backend {} --host"
    scripts = [script.format(backend) for script in measuring for backend in common.BACKENDS]
    assert [line for line in lines if line[0] != "-" and "junit" not in line] == ["preflight.py", *scripts, "report.py"]
    assert sum("pytest.xml tests/gpu -n 8" in line for line in lines) == 1
    assert {path.suffix for path in (out / "gpu").iterdir()} == {".txt"}
    stopped = (out / "gpu" / "stopped.txt").read_text().splitlines()
    assert stopped[-4:] == [f"{script}: exit status 1" for script in scripts]
    sanitized = sorted(f"compute-sanitizer, {name}" for name in report.CHECKS[1:])
    assert sorted(line.split(":")[0] for line in stopped[:-4]) == [*sanitized, "tests/gpu"]
    assert all(report.failed(line) != line.startswith("compute-sanitizer") for line in stopped)


def test_the_sanitizer_sees_every_rule_in_whole_blocks_and_under_a_scaler() -> None:
    made = subprocess.run(["make", "-n", "gpu-tests"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert made.count(f"--error-exitcode {report.FOUND} ") == made.count("MEMORY_CACHING=1 timeout") == 3
    for name, dtypes in (("memcheck-cuda", 4), ("racecheck-triton", 2)):
        arguments = made.partition(f"{name}.xml ")[2].partition(" > ")[0]
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *shlex.split(arguments)]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for test in ("every_call", "many_chunks"):
            assert len(set(re.findall(rf"{test}.*(torch\.\w+-\w+)_calls", listed))) == dtypes * len(RULES)
        assert all(f"[{optimizer}-{name.split('-')[1]}-True]" in listed for optimizer in ("HJ", "EntropyAdamW"))
