"""``make gpu`` says what it lacks, runs every script, and its report says what was reached and what was not proved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import preflight
import pytest
import report
import torch

ROOT = Path(__file__).parents[2]

JUNIT = '<testsuite><testcase classname="a" name="good"/><testcase classname="a" name="b">{}</testcase></testsuite>'

STATUSES = [(1, 1), (124, 3), (137, 3)]  # of a script that did not come to its end, and of the report


@pytest.fixture
def passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run in which everything passed, which is what is reported."""
    (tmp_path / "pytest.xml").write_text(JUNIT.format(""))
    for name in report.SANITIZED:
        (tmp_path / f"{name}.txt").write_text("exit status 0\n")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize(
    ("outcome", "stopped", "status", "said"),
    [
        ("", "", 0, "2 passed"),
        ('<skipped message="one GPU"/>', "", 0, "1 passed, 1 skipped"),
        ('<skipped message="GPU memory: 3"/>', "", 3, "not proven: 1 GPU"),
        ('<failure message="x"/>', "", 1, "a::b failed"),
        ('<skipped message="because"/>', "", 1, "nothing allows: because"),
        *(("", f"host.py: exit status {n}", status, f"host.py: exit status {n}") for n, status in STATUSES),
    ],
)
def test_the_report_says_what_was_not_proved(
    outcome: str, stopped: str, status: int, said: str, passed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (passed / "pytest.xml").write_text(JUNIT.format(outcome))
    (passed / "stopped.txt").write_text(stopped)
    about = {"script": "about", "gpu": "a GPU", "why_not": {"cuda": ""}}
    inner = {"script": "bandwidth", "rule": "HJ", "backend": "cuda", "dtype": "fp32", "elements": 64, "gb_per_s": 1.0}
    (passed / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (about, inner)))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # which a GPU's machine may lack
    assert report.main() == status
    assert said in (passed / "gpu.md").read_text()


def test_targets_are_judged_by_whole_cycles_and_by_the_slowest(tmp_path: Path) -> None:
    hj: dict[str, Any] = {"script": "bandwidth", "backend": "cuda", "rule": "HJ", "dtype": "fp32", "bytes": 20}
    found: report.Results = [
        {**hj, "kind": kind, "elements": 128, "bandwidth_ratio": {"median": of}}
        for kind, of in (("inner", 1.0), ("first", 0.5), ("last", 0.5))
    ]
    found += [{**hj, "rule": rule, "elements": n, "gb_per_s": n / 9} for n in (64, 128) for rule in ("HJ", "copy")]
    timed = {"script": "host", "backend": "cuda", "capturable": False, "new_gradients": True}
    found += [{**timed, "name": name, "by_sgd": by} for name, by in (("HJ", 0.9), ("Heat", 1.1), ("torch.optim", 9))]
    judged = {t["promise"]: t for t in report.judge(found)}
    assert judged["HJ, fp32 [cuda]: bandwidth relative to a copy"]["measured"] == pytest.approx(5 / 7)
    slowest = judged["host time of step(), 300 tensors, new gradients [cuda]: relative to SGD, slowest"]
    assert (slowest["measured"], slowest["met"]) == (1.1, False)
    assert judged["Heat, bf16 [triton]: bandwidth relative to a copy"]["measured"] is None
    report.draw(found, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000
    assert "0.96 to 1.00 | 0.714 (missed)" in report.markdown(found)


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
    make is asked for several jobs."""
    python, notes, out = (tmp_path / name for name in ("python", "notes", "out"))
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {notes}\n'
        'case "$*" in *preflight*) echo 90;; *report*|*pip*) ;; *) sleep 0.2; exit 1; esac\n'
    )
    python.chmod(0o755)
    command = ["make", "--jobs=4", "gpu", f"PYTHON={python}", f"OUT={out}", "SCRIPTS=tests bandwidth host"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = [line.replace("bench/gpu/", "").split() for line in notes.read_text().splitlines()]
    lines = [words for words in lines if words[0] != "sanitize.py"]  # at any time, where compute-sanitizer is
    assert [" ".join(words[: 2 if words[0] == "-m" else 3]) for words in lines] == [
        "preflight.py", "-m pip", "-m pytest", "bandwidth.py --backend cuda", "bandwidth.py --backend triton",
        "host.py --backend cuda", "host.py --backend triton", "report.py",
    ]  # fmt: skip
    assert (out / "gpu" / "stopped.txt").read_text().splitlines() == [
        f"{script}.py --backend {backend}: exit status 1"
        for script in ("bandwidth", "host")
        for backend in ("cuda", "triton")
    ]
    for name in report.SANITIZED:
        *_, status = (out / "gpu" / f"{name}.txt").read_text().splitlines()
        assert re.fullmatch(r"exit status [1-9]\d*", status)


def test_where_make_gpu_cannot_run_earlier_results_stay(tmp_path: Path) -> None:
    rows = tmp_path / "gpu" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("{}\n")
    done = subprocess.run(["make", "gpu", "PYTHON=false", f"OUT={tmp_path}"], cwd=ROOT, capture_output=True)
    assert done.returncode
    assert rows.read_text() == "{}\n"


def test_what_the_sanitizer_printed_is_judged() -> None:
    passed, failed = "========= ERROR SUMMARY: 0 errors\n", "========= ERROR SUMMARY: 3 errors\n"
    assert report.sanitized(passed + "exit status 0\n") == ("passed", "ERROR SUMMARY: 0 errors; exit status 0")
    assert report.sanitized(failed + "exit status 86\n") == ("failed", "ERROR SUMMARY: 3 errors; exit status 86")
    assert report.sanitized("a Traceback\nNameError\nexit status 1\n")[0] == "failed"
    ends = ("exit status 124", "not found\nexit status 127", "Device not supported\nexit status 1", passed, "")
    assert all(report.sanitized(printed)[0] == "not proven" for printed in ends)
