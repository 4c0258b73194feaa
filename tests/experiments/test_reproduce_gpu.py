"""The command for a session on a GPU takes the most informative runs first and keeps those that have ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import reproduce_gpu
import torch
from test_cli import write_mnist

from deeprelax.experiments.table1 import store
from deeprelax.experiments.table1.reproduction import rendered


def test_one_seed_of_the_authors_eight_rows_comes_first() -> None:
    runs = reproduce_gpu.plan(reproduce_gpu.arguments(["--data", "DIR"]))
    assert len({run.name for run in runs}) == len(runs) == 6 * (8 + 6 + 8)
    kinds = [(run.seed, run.preset, bool(run.variant)) for run in runs[:22]]
    assert kinds == [(0, "authors", False)] * 8 + [(0, "authors", True)] * 6 + [(0, "paper", False)] * 8
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert not any(run.tf32 or run.autocast for run in runs)


@pytest.mark.usefixtures("one_thread")
def test_finished_runs_are_kept_for_the_page(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=300, test=40)
    asked = ["--data", tmp_path, "--out", tmp_path / "out", "--results", tmp_path / "results", "--models", "lenet",
             "--seeds", 1, "--epochs", 1]  # fmt: skip
    assert reproduce_gpu.main([*map(str, asked), "--budget-minutes", "0"], device="cpu") == 0
    folder = tmp_path / "results" / "cpu" / "reproduction"
    assert not list((folder / "runs").iterdir())
    assert reproduce_gpu.main([*map(str, asked)], device="cpu") == 0
    kept = store.read_all(folder)
    assert len(kept) == 4 + 3 + 4
    assert {path.name for path in folder.iterdir()} == {
        "runs", *(f"figure2-{preset}.{kind}" for preset in ("authors", "paper") for kind in ("png", "svg"))
    }  # fmt: skip
    assert "## Table 1, authors preset, cpu" in rendered(tmp_path / "results")


def test_a_wrong_argument_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path), "--results", str(tmp_path / "results")]
    assert reproduce_gpu.main(asked, device="cpu") == 2
    assert capsys.readouterr().err.startswith(f"no folder {tmp_path / 'nowhere'}")
    with pytest.raises(SystemExit):
        reproduce_gpu.arguments(["--data", "DIR", "--models", "resnet"])
    assert "'resnet'" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert reproduce_gpu.main(["--data", "DIR"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
