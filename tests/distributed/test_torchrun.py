"""``torchrun … deeprelax train`` with several workers."""

from __future__ import annotations

import json
import socket
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


def test_two_nodes_meet_at_a_rendezvous(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    options = ["--optimizer", "elastic-sgd", "--epochs", "2", "--seeds", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", *meet, "-m", "deeprelax", "train", *options]
    nodes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    said = [node.communicate(timeout=200)[1].decode() for node in nodes]
    assert (tmp_path / "digits.json").exists(), said
    (run,) = json.loads((tmp_path / "digits.json").read_text())["runs"]
    assert len(run["worker_error"]) == 2
