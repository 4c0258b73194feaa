"""A whole ``make gpu``, emulated: its processes, what is left of it when one of them dies or it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from gpu_bench import apart  # noqa: E402
from gpu_bench.apart import Task, joined  # noqa: E402
from gpu_bench.calls import KINDS, RULES  # noqa: E402
from gpu_bench.record import Budget, Record  # noqa: E402

PROGRAM = [sys.executable, str(ROOT / "tests" / "emulated_gpu.py")]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(folder: Path, parts: str, **more: str) -> tuple[int, dict[str, Any]]:
    """Exit status and what gpu.json holds."""
    pytest.importorskip("deeprelax._cuda")
    command = [*PROGRAM, "--out", str(folder), "--parts", parts, "--commit", "abc"]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=300)
    assert (folder / "gpu.json").exists(), done.stderr
    return done.returncode, json.loads((folder / "gpu.json").read_text())


def test_a_whole_run_leaves_its_files_and_no_more_than_come_back(tmp_path: Path) -> None:
    status, found = run(tmp_path, "kernels,steps,sweep")
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md", "bandwidth.png"}
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("kernels", "steps", "sweep"), "done"
    )
    assert found["about"]["commit"] == "abc"
    assert found["about"]["versions"]["torch"] == torch.__version__
    assert {r["backend"] for r in found["parts"]["steps"]["results"]["rows"]} == {"cuda", "plain torch"}
    assert {r["variant"] for r in found["parts"]["sweep"]["results"]["rows"]} == {"as built"}
    assert "| HJ [cuda] | fp32, inner |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(("how", "ended"), [("abort", "ended with status -6"), ("lost", "ended with status 1")])
def test_a_process_that_dies_costs_only_what_it_had_still_to_measure(tmp_path: Path, how: str, ended: str) -> None:
    """It dies in the middle of bf16, by os.abort(), or because its device is lost and nothing works any more."""
    status, found = run(tmp_path, "kernels,host" if how == "abort" else "kernels", BREAK=f"kernels/cuda {how}")
    kernels = found["parts"]["kernels"]
    assert status == 1
    assert kernels["broke_off"] == [f"cuda ({ended})"]
    measured = {(r["rule"], r["configuration"], r["kind"]) for r in kernels["results"]["rows"]}
    before = [*(("fp32", kind) for kind in KINDS), ("bf16", "inner")]
    assert measured == {(rule.name, *which) for rule in RULES for which in before}
    assert kernels["status"] == "with errors"
    assert any("run" in error["traceback"] for error in kernels["errors"])  # where Python was
    assert len(kernels["errors"]) < 6  # what is lost is not tried again and again
    if how == "abort":
        host = found["parts"]["host"]
        assert (host["status"], len(host["results"]["rows"])) == ("done", 11)
    assert f"**kernels: cuda ({ended}) broke off**" in (tmp_path / "gpu.md").read_text()


def test_rows_of_several_processes_go_on_one_after_the_other() -> None:
    first = {"status": "interrupted", "results": {"rows": [1], "elements": 4, "profiles": {"a": [1]}}}
    second = {"errors": [2], "results": {"rows": [2], "elements": 5, "profiles": {"b": [2]}}}
    assert joined(first, second) == {
        "status": "interrupted",
        "errors": [2],
        "results": {"rows": [1, 2], "elements": 5, "profiles": {"a": [1], "b": [2]}},
    }
    assert first["results"] == {"rows": [1], "elements": 4, "profiles": {"a": [1]}}


WRITES = """
import json, sys, time
file = sys.argv[sys.argv.index("--out") + 1]
open(file, "w").write(json.dumps({"results": {"rows": ["second"]}}))
time.sleep(600)
"""


def test_a_process_that_hangs_is_stopped_and_what_it_measured_is_there_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "POLL", 0.1)
    record = Record(tmp_path / "out", {"gpu": "none"})
    record.results("host")["rows"] = ["first"]
    saved = []
    monkeypatch.setattr(record, "save", lambda: saved.append(list(record.results("host")["rows"])))
    apart.run(Task("host", "x", 1.0, 2.0), [sys.executable, "-c", WRITES], tmp_path, record, Budget(100))
    assert saved == [["first", "second"]] * 2  # when it was measured, and at the end
    assert record.data["parts"]["host"]["broke_off"] == ["x (stopped after 2 s)"]
    apart.run(Task("host", "y", 200.0, 2.0), [], tmp_path, record, Budget(100))
    assert record.results("host")["left_out"] == ["y: 100 s were left"]


def test_an_interrupted_run_leaves_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("deeprelax._cuda")
    command = [*PROGRAM, "--out", str(tmp_path), "--parts", "kernels,host"]
    started = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while "host" not in stored(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 128 + signal.SIGTERM
    found = stored(tmp_path)
    assert found["kernels"]["status"] == "done"
    assert found["host"]["status"] == "interrupted"
    assert len(found["kernels"]["results"]["rows"]) == len(RULES) * 9


def stored(folder: Path) -> dict[str, Any]:
    file = folder / "gpu.json"
    found: dict[str, Any] = json.loads(file.read_text())["parts"] if file.exists() else {}
    return found
