"""``torchrun … deeprelax train`` with several workers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from deeprelax.cli.main import main

ROOT = Path(__file__).parents[2]


def test_two_nodes_train_and_the_table_has_the_centre_and_each_worker(tmp_path: Path) -> None:
    """Of one worker and of two, which meet at a rendezvous."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"localhost:{port}"]
    options = ["--optimizer", "elastic-sgd", "--optimizer", "parle", "--epochs", "3", "--seeds", "1"]
    command = ["-m", "deeprelax", "train", *options, "--out", str(tmp_path)]
    nodes = [
        subprocess.Popen(
            [*launcher, "--nproc-per-node", str(workers), *command],
            **{"cwd": ROOT, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        )
        for workers in (1, 2)
    ]
    said = [node.communicate(timeout=200) for node in nodes]
    assert (tmp_path / "digits.json").exists(), said
    runs = json.loads((tmp_path / "digits.json").read_text())["runs"]
    assert len(runs) == 2
    for run in runs:
        assert len(run["worker_error"]) == 3, said
        assert run["validation_error"][-1] < 0.2
    assert "".join(out for out, _ in said).count("Elastic-SGD seed 0") == 1


def test_an_optimizer_of_several_workers_says_that_it_has_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["train", "--optimizer", "parle", "--epochs", "2", "--seeds", "1", "--out", str(tmp_path)]
    )
    assert "parle: one worker; torchrun --nproc-per-node 3" in done.output
    assert done.exit_code == 0


def test_an_optimizer_of_one_process_is_refused_among_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(main, ["train", "--optimizer", "hj", "--out", str(tmp_path)])
    assert "hj trains in one process" in done.output
    assert done.exit_code != 0
