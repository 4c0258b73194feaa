"""``torchrun … deeprelax train`` with several workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import run
from workers import launched

import deeprelax


def test_three_workers_train_and_the_table_has_the_centre_and_each_worker(tmp_path: Path) -> None:
    options = ["--optimizer", "elastic-sgd", "--optimizer", "parle", "--epochs", 3, "--seeds", 1, "--out", tmp_path]
    program = Path(deeprelax.__file__).with_name("__main__.py")
    said = launched(3, program, "train", *options, folder=tmp_path)
    runs = json.loads((tmp_path / "digits.json").read_text())["runs"]
    assert len(runs) == 2
    for each in runs:
        assert len(each["worker_error"]) == 3
        assert each["validation_error"][-1] < 0.2
    assert ["Elastic-SGD seed 0" in text for text in said] == [True, False, False]


def test_an_optimizer_of_several_workers_says_that_it_has_one(tmp_path: Path) -> None:
    output = run("train", "--optimizer", "parle", "--epochs", 2, "--seeds", 1, "--out", tmp_path).output
    assert "parle: one worker; torchrun --nproc-per-node 3" in output


def test_an_optimizer_of_one_process_is_refused_among_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "hj trains in one process" in run("train", "--optimizer", "hj", "--out", tmp_path, code=2).output
