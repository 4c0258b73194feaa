"""``torchrun … deeprelax train`` with several workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def torchrun(*arguments: str, workers: int = 2) -> Any:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command = [*launcher, "-m", "deeprelax", "train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_workers_train_and_the_table_has_the_centre_and_each_of_them(tmp_path: Path) -> None:
    options = ["--optimizer", "elastic-sgd", "--optimizer", "parle", "--epochs", "3", "--seeds", "1"]
    done = torchrun(*options, "--out", str(tmp_path))
    found = json.loads((tmp_path / "digits.json").read_text())
    for run in found["runs"]:
        assert len(run["worker_error"]) == 2, done.stderr[-2000:]
        assert run["validation_error"][-1] < 0.2
    assert done.stdout.count("Elastic-SGD seed 0") == 1


def test_an_optimizer_of_one_process_is_refused_under_torchrun(tmp_path: Path) -> None:
    done = torchrun("--optimizer", "hj", "--out", str(tmp_path))
    assert "hj trains in one process" in done.stderr
    assert done.returncode != 0
