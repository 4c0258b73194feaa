"""``deeprelax reproduce search``: the same budget for every optimizer, no test set, no row lost, and no data mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_reproduce_cli import data, run

from deeprelax.experiments.table1 import experiment, search, search_trials, store
from deeprelax.experiments.table1.checkpoints import StoreError
from deeprelax.experiments.table1.protocol import OPTIMIZERS

__all__ = ["data"]  # a fixture
SEARCH = ("--models", "lenet", "--epochs", 1)


def test_search_gives_equal_budgets_and_never_sees_the_test_set(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", data, "--out", tmp_path, "--models", "lenet", "--epochs", 1, "--images", 128]
    run("search", *arguments)
    path = tmp_path / "search-authors.json"
    rows = json.loads(path.read_text())["rows"]["lenet"]
    assert set(rows) == set(OPTIMIZERS)
    budgets = {name: [trial["gradients"] for trial in row["trials"]] for name, row in rows.items()}
    assert len({tuple(each) for each in budgets.values()}) == 1
    assert len(budgets["sgd"]) == len(search_trials.TRIALS) + search_trials.FURTHER
    for row in rows.values():
        settings = {json.dumps([trial["options"], trial["drops"]]) for trial in row["trials"]}
        assert len(settings) == len(row["trials"])
        ended = [trial for trial in row["trials"] if trial["ended"] == "finished"]
        best = min(ended, key=lambda trial: (trial["held_out_error"], trial["training_loss"]))
        assert row["best"] == {"options": best["options"], "drops": best["drops"]}
    before = path.read_text()
    assert "finished" not in run("search", *arguments).output  # nothing is run twice
    assert path.read_text() == before
    chosen = search.best_of(path, "authors", ["lenet"], ["hj"])["lenet"]["hj"]
    (planned,) = experiment.plan("authors", ["lenet"], ["hj"], 1, found={"lenet": {"hj": chosen}})
    assert planned.options["gamma"] == chosen["options"]["gamma"]
    assert planned.drops == chosen["drops"]


@pytest.fixture(scope="module")
def sgd_searched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched")
    run("search", *SEARCH, "--data", data, "--out", out, "--images", 128, "--optimizers", "sgd")
    return out


def test_a_further_search_keeps_rows_and_takes_whole_ones_only(data: Path, sgd_searched: Path, tmp_path: Path) -> None:
    shutil.copytree(sgd_searched, tmp_path, dirs_exist_ok=True)
    base = ["--data", data, "--out", tmp_path]
    each = len(search_trials.TRIALS) + search_trials.FURTHER
    hj = [*SEARCH, *base, "--images", 128, "--optimizers", "hj", "--budget-minutes", 0]
    assert f"; {each} trials are left" in run("search", *hj).output
    path = tmp_path / "search-authors.json"
    rows = json.loads(path.read_text())["rows"]["lenet"]
    assert len(rows["sgd"]["trials"]) == each
    table = ["table1", *base, "--models", "lenet", "--seeds", 1, "--epochs", 1, "--found", path, "--optimizers"]
    assert "has not all trials of lenet hj" in run(*table, "sgd,hj", code=1).output
    next((tmp_path / "search" / "runs").glob("*trial7*")).unlink()
    search.write(tmp_path, "authors", 1)
    assert "has not all trials of lenet sgd" in run(*table, "sgd", code=1).output


def test_what_a_search_found_is_run_and_named_as_not_the_presets(
    data: Path, sgd_searched: Path, tmp_path: Path
) -> None:
    path = sgd_searched / "search-authors.json"
    content = json.loads(path.read_text())
    content["rows"]["lenet"]["sgd"]["best"] = {"options": {"lr": 0.0123}, "drops": [[0.5, 0.1]]}
    (tmp_path / "found.json").write_text(json.dumps(content))
    run("table1", "--data", data, "--out", tmp_path, "--models", "lenet", "--optimizers", "sgd", "--seeds", 1,
        "--epochs", 1, "--found", tmp_path / "found.json")  # fmt: skip
    (stored,) = store.read_all(tmp_path)
    assert (stored.settings["options"]["lr"], stored.settings["drops"]) == (0.0123, [[0.5, 0.1]])
    assert "settings other than the preset's" in (tmp_path / "table1-authors.md").read_text()


def test_trials_on_other_images_are_refused(data: Path, sgd_searched: Path, tmp_path: Path) -> None:
    shutil.copytree(sgd_searched, tmp_path, dirs_exist_ok=True)
    base = [*SEARCH, "--data", data, "--out", tmp_path, "--images", 256, "--optimizers"]
    assert "is of other data" in run("search", *base, "sgd", code=1).output
    trials = search_trials.plan("authors", ["lenet"], ["hj"], 1)
    assert "is of other data" in run("search", *base, "hj", code=1).output
    load = search.held_out(experiment.Loader(data, tmp_path, torch.device("cpu")), 256)
    experiment.execute(trials[:1], load, tmp_path / "apart", Console(quiet=True))
    shutil.copytree(tmp_path / "apart", tmp_path / "search", dirs_exist_ok=True)  # by hand
    with pytest.raises(StoreError, match="the trials of lenet are of different data"):
        search.write(tmp_path, "authors", 1)


def test_searches_of_another_length_or_preset_may_take_other_images(
    data: Path, sgd_searched: Path, tmp_path: Path
) -> None:
    shutil.copytree(sgd_searched, tmp_path, dirs_exist_ok=True)
    base = ["search", "--models", "lenet", "--data", data, "--out", tmp_path, "--images", 256, "--budget-minutes", 0]
    for other in (["--epochs", 2], ["--epochs", 1, "--preset", "paper"]):
        assert "trials are left" in run(*base, *other).output


def test_a_search_decides_by_images_of_the_training_set(data: Path, tmp_path: Path) -> None:
    loader = experiment.Loader(data, tmp_path, torch.device("cpu"))
    trial = search_trials.plan("authors", ["lenet"], ["sgd"], 1)[0]
    whole, _ = loader(trial)
    parts, _ = search.held_out(loader, 256)(trial)
    assert (len(parts.train_inputs), len(parts.validation_inputs)) == (256, 42)

    def images(inputs: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in inputs}

    train, held = images(parts.train_inputs), images(parts.validation_inputs)
    assert not train & held
    assert train | held <= images(whole.train_inputs)
    assert not held & images(whole.validation_inputs)
