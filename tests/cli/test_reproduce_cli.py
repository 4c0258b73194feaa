"""``deeprelax reproduce`` runs what is missing, within a budget, says what it lacks, and refuses bad input by name."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from test_cli import refused, write_mnist

from deeprelax import environment
from deeprelax.cli.main import main
from deeprelax.experiments import progress
from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.runner import Runner
from deeprelax.experiments.table1 import checkpoints, experiment, protocol, store
from deeprelax.experiments.table1.protocol import OPTIMIZERS, PAPER
from deeprelax.terminal import Pace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's files with three batches of images."""
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder, train=400, test=40)
    return folder


def run(command: str, *arguments: object, code: int = 0) -> Result:
    """The result of a command; a string of several options is split."""
    threads = [] if command == "figure2" else ["--threads", "1"]
    words = [word for a in arguments for word in (a.split() if isinstance(a, str) else [str(a)])]
    result = CliRunner().invoke(main, ["reproduce", command, *threads, *words])
    assert result.exit_code == code, result.output
    return result


def lines(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((out / "runs").glob("*"))}


def test_table1_runs_what_is_missing_and_nothing_twice(data: Path, tmp_path: Path) -> None:
    base = ["--data", data, "--out", tmp_path, "--models", "lenet", "--seeds", 1, "--epochs", 1]
    run("table1", *base, "--optimizers", "hj,sgd")
    first = lines(tmp_path)
    assert set(first) == {f"authors-lenet-{name}-1ep-seed0.jsonl" for name in ("hj", "sgd")}
    output = run("table1", *base, "--optimizers", "hj,heat").output
    second = lines(tmp_path)
    assert {name: second[name] for name in first} == first
    assert set(second) - set(first) == {"authors-lenet-heat-1ep-seed0.jsonl"}
    assert "hj-1ep" not in output
    table = (tmp_path / "table1-authors.md").read_text()
    assert "| LeNet | Heat | 0.59 ± 0.02 @ 75 |" in table
    assert "| LeNet | Entropy-SGD | 0.50 ± 0.01 @ 80 | not run |" in table
    assert "1 of 6 seeds, 1 of 70 effective epochs" in table
    rows = json.loads((tmp_path / "table1-authors.json").read_text())
    assert {(row["model"], row["optimizer"], row["seeds"]) for row in rows} == {
        ("lenet", o, 1) for o in ("hj", "sgd", "heat")
    }
    assert not list(tmp_path.rglob("*.tmp"))


def test_every_line_of_a_run_is_json_with_settings_machine_and_curve(data: Path, tmp_path: Path) -> None:
    run("table1", "--data", data, "--out", tmp_path, "--models lenet --optimizers entropy-sgd --seeds 1 --epochs 2")
    header, first, second, end = map(json.loads, next(iter(lines(tmp_path).values())).splitlines())
    assert header["run"]["options"]["inner_steps"] == 20
    assert header["machine"]["threads"] == 1
    assert len(header["data"]) == 16
    assert [first["gradients"], second["gradients"]] == [3, 6]
    assert 0 <= second["validation_error"] <= 1
    assert second["gamma"] == 1e4  # no cycle of 20 has ended
    assert end["ended"] == "finished"
    assert len(end["state"]) == 16
    assert str(data) not in next(iter(lines(tmp_path).values()))


def test_a_budget_stops_between_runs_and_the_next_call_resumes(data: Path, tmp_path: Path, monkeypatch) -> None:
    """The clock jumps by a minute at every run's end; two and a half minutes pay for three runs."""
    now = time.monotonic()
    clock = {"at": now}
    execute = store.execute

    def slow(*arguments, **keywords):
        how = execute(*arguments, **keywords)
        clock["at"] += 60
        return how

    monkeypatch.setattr(store, "execute", slow)
    monkeypatch.setattr(time, "monotonic", lambda: clock["at"])
    base = ["--data", data, "--out", tmp_path, "--models lenet --seeds 1 --epochs 1 --budget-minutes 2.5"]
    assert "1 of 4 runs are left (authors-lenet-heat-1ep-seed0)" in run("table1", *base).output
    assert len(lines(tmp_path)) == 3
    assert "are left" not in run("table1", *base).output
    assert len(lines(tmp_path)) == 4


def test_a_run_that_meets_the_deadline_is_saved_and_resumed(data: Path, tmp_path: Path) -> None:
    base = ["--data", data, "--models", "lenet", "--optimizers", "hj", "--seeds", 1, "--epochs", 2]
    run("table1", *base, "--out", tmp_path / "whole")
    loader = experiment.Loader(data, tmp_path / "cache", torch.device("cpu"))
    runs = experiment.plan("authors", ["lenet"], ["hj"], 1, epochs=2)
    images, digest = loader(runs[0])
    with environment.threads(1):  # as many as the whole run has
        assert store.execute(runs[0], images, digest, tmp_path / "parts", deadline=0.0) == store.PAUSED
    assert store.read(store.path_of(runs[0], tmp_path / "parts")).ended is None
    assert experiment.execute(runs, loader, tmp_path / "parts", Console(quiet=True)) == []
    whole, parts = (store.read(store.path_of(runs[0], tmp_path / part)) for part in ("whole", "parts"))
    assert whole.state is not None
    assert whole.state == parts.state


def test_runs_saved_at_an_epoch_resume_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    """Every row is begun, though the first is not at its end, and a second call neither trains nor evaluates."""
    base = ["--data", data, "--models", "lenet", "--optimizers", "hj,sgd", "--seeds", 1, "--epochs", 5]
    base += ["--evaluate-every", 2]
    run("table1", *base, "--out", tmp_path / "whole")
    parts = [*base, "--out", tmp_path / "parts"]
    output = run("table1", *parts, "--until", 2).output
    assert "2 of 2 runs are left (authors-lenet-sgd-5ep-seed0, authors-lenet-hj-5ep-seed0); without --until 2" in output
    first = lines(tmp_path / "parts")
    assert [len(text.splitlines()) for text in first.values()] == [2, 2]  # the header and one evaluation
    run("table1", *parts, "--until", 1)
    run("table1", *parts, "--until", 2)
    assert lines(tmp_path / "parts") == first
    run("table1", *parts)
    for path in (tmp_path / "whole" / "runs").iterdir():
        whole, resumed = (store.read(tmp_path / part / "runs" / path.name) for part in ("whole", "parts"))
        assert resumed.state == whole.state is not None
        assert [r["gradients"] for r in resumed.records] == [r["gradients"] for r in whole.records] == [6, 12, 15]


def test_a_table_of_some_images_trains_on_these_alone(data: Path, tmp_path: Path) -> None:
    base = ["--data", data, "--models lenet --optimizers sgd --seeds 1 --epochs 1 --out", tmp_path]
    run("table1", *base, "--images", 300)
    (text,) = lines(tmp_path).values()
    header, record, _ = map(json.loads, text.splitlines())
    assert record["gradients"] == 2
    assert header["data"].endswith(" 300 for training")
    assert "2 gradients an epoch instead of 468: not all images" in (tmp_path / "table1-authors.md").read_text()
    assert "--images" in run("table1", *base, code=1).output  # other data than the run's
    (of_all, _), (some, _) = (
        experiment.Loader(data, tmp_path, torch.device("cpu"), images)(protocol.run("authors", "lenet", "sgd", 0))
        for images in (None, 300)
    )
    every = {x.numpy().tobytes() for x in of_all.train_inputs}
    assert len({x.numpy().tobytes() for x in some.train_inputs} & every) == 300
    assert torch.equal(some.validation_inputs, of_all.validation_inputs)
    assert (
        "--images 401: mnist has only 400"
        in run("table1", *base[:-1], tmp_path / "many", "--images", 401, code=1).output
    )


def test_a_killed_process_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", data, "--models", "lenet", "--optimizers", "entropy-sgd", "--seeds", 1, "--epochs", 8,
                 "--evaluate-every", 1, "--checkpoint-seconds", 0]  # fmt: skip
    run("table1", *arguments, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "deeprelax", "reproduce", "table1", "--threads", "1", *map(str, arguments)]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "parts")], stdout=subprocess.DEVNULL)
    (file,) = (tmp_path / "whole" / "runs").iterdir()
    saved = tmp_path / "parts" / "checkpoints" / f"{file.stem}.pt"
    until = time.monotonic() + 60
    while not saved.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    before = checkpoints.read(saved)["state"]["done"]
    assert 0 < before < 24
    run("table1", *arguments, "--out", tmp_path / "parts")
    whole, parts = (store.read(tmp_path / part / "runs" / file.name) for part in ("whole", "parts"))
    assert whole.state is not None
    assert whole.state == parts.state


def test_the_most_informative_runs_come_first() -> None:
    runs = experiment.plan("authors", protocol.MODELS, OPTIMIZERS, 2, ablation=True)
    first, then, next_seed = runs[:8], runs[8:14], runs[14:]
    assert {(r.model, r.optimizer, r.variant) for r in first} == {(m, o, "") for m, o in PAPER}
    assert {(r.model, r.variant) for r in then} == {(m, v) for m in protocol.MODELS for v in protocol.ABLATION}
    assert {r.seed for r in first + then} == {0}
    assert {r.seed for r in next_seed} == {1}
    assert [r.epochs for r in first] == [PAPER[r.model, r.optimizer].epochs for r in first]
    assert len({r.name for r in runs}) == len(runs)


def test_the_ablation_switches_off_scoping_and_noise_and_nothing_else() -> None:
    base = protocol.run("authors", "lenet", "entropy-sgd", 0).options
    assert base["scoping"] == 1e-3
    assert base["temperature"] > 0
    off = {v: protocol.run("authors", "lenet", "entropy-sgd", 0, variant=v).options for v in protocol.ABLATION}
    for variant, options in off.items():
        changed = {name for name in base if options[name] != base[name]}
        assert changed == {
            n for n, word in (("scoping", "scoping"), ("temperature", "noise")) if f"no-{word}" in variant
        }
        assert all(options[name] == 0 for name in changed)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_saves_the_run_and_the_same_command_resumes_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: None, times: int
) -> None:
    """Once: the run is saved where it is. Twice: it ends at once, and its last checkpoint is left."""
    arguments = ["--data", data, "--models", "lenet", "--optimizers", "hj", "--seeds", 1, "--epochs", 2,
                 "--checkpoint-seconds", 0]  # fmt: skip
    run("table1", *arguments, "--out", tmp_path / "whole")
    advance = Runner.advance

    def interrupted(runner: Runner, gradients: int) -> None:
        advance(runner, gradients)
        for _ in range(times if runner.done == 4 else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "advance", interrupted)
        output = " ".join(run("table1", *arguments, "--out", tmp_path / "parts", code=130).output.split())
    assert "interrupted" in output
    assert "same command" in output
    (saved,) = (tmp_path / "parts" / "checkpoints").glob("*.pt")
    assert checkpoints.read(saved)["state"]["done"] == (4 if times == 1 else 3)
    run("table1", *arguments, "--out", tmp_path / "parts")
    (whole,), (parts,) = (store.read_all(tmp_path / name) for name in ("whole", "parts"))
    assert whole.state is not None
    assert whole.state == parts.state


def test_without_a_terminal_a_run_says_how_much_time_is_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0.0,))
    base = ["--data", data, "--models", "lenet", "--optimizers", "sgd", "--seeds", 1, "--epochs", 3]
    output = run("table1", *base, "--out", tmp_path).output
    assert re.search(r"sgd-3ep-seed0: 2.0/3 effective epochs, \d+.\d\d% error, \d+ s left", output)


def test_figure2_without_runs_is_an_error_and_makes_no_folder(tmp_path: Path) -> None:
    output = " ".join(run("figure2", "--out", tmp_path / "new", code=1).output.split())
    assert "has no run of the authors preset" in output
    assert not (tmp_path / "new").exists()


def test_figure2_draws_the_runs_that_exist(data: Path, tmp_path: Path) -> None:
    run("table1", "--data", data, "--out", tmp_path, "--models lenet --optimizers sgd --seeds 1 --epochs 1")
    output = run("figure2", "--out", tmp_path).output
    assert str(tmp_path / "figure2-authors.svg") in output
    assert (tmp_path / "figure2-authors.png").exists()
    (tmp_path / "figure2-authors.svg").unlink()
    (tmp_path / "figure2-authors.svg").mkdir()
    output = run("figure2", "--out", tmp_path, code=1).output
    assert f"--out: {tmp_path / 'figure2-authors.svg'} cannot be written" in output


def test_runs_of_one_table_are_of_one_data_set(data: Path, tmp_path: Path) -> None:
    write_mnist(tmp_path / "other", train=401, test=40)
    base = ["--out", tmp_path, "--models", "lenet", "--optimizers", "sgd", "--epochs", 1]
    run("table1", *base, "--data", data, "--seeds", 1)
    for more in (["--seeds", 2], ["--seeds", 1], ["--seeds", 1, "--epochs", 2], ["--seeds", 1, "--optimizers", "hj"]):
        refused = run("table1", *base, "--data", tmp_path / "other", *more, code=1).output
        assert "sgd-1ep-seed0.jsonl is of other data" in refused.replace("\n", "")
    assert len(store.read_all(tmp_path)) == 1
    assert "1 of 6 seeds" in run("table1", *base, "--seeds", 1).output  # without --data: what is stored, and no data


def test_data_are_not_prepared_where_no_run_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files are compared without the whitening, which takes long."""
    base = ["--out", tmp_path, "--models", "lenet", "--optimizers", "sgd", "--epochs", 1, "--seeds", 1]
    run("table1", *base, "--data", data)
    monkeypatch.setattr("deeprelax.experiments.data.inputs.load", None)
    assert "1 of 6 seeds" in run("table1", *base, "--data", data).output


def test_two_processes_never_write_one_run(data: Path, tmp_path: Path) -> None:
    base = ["--data", data, "--out", tmp_path, "--models", "lenet", "--optimizers", "sgd", "--seeds", 1, "--epochs", 1]
    (planned,) = experiment.plan("authors", ["lenet"], ["sgd"], 1, epochs=1)
    lock = store.checkpoint_of(planned, tmp_path).with_suffix(".lock")
    lock.parent.mkdir()
    with filelock.FileLock(lock):
        assert "is being written by another process" in " ".join(run("table1", *base, code=1).output.split())
    assert not (tmp_path / "runs" / f"{planned.name}.jsonl").exists()
    run("table1", *base)
    assert not list(lock.parent.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("table1", ["--models", "resnet"], "'resnet' is not one of lenet, allcnn"),
        ("table1", ["--optimizers", "adam"], "'adam' is not one of entropy-sgd, heat, hj, sgd"),
        ("table1", ["--data", "no/such/folder"], "no folder no/such/folder"),
        ("table1", ["--device", "toaster"], "'toaster' is not a device"),
        ("table1", ["--device", "cuda:99"], "--device cuda:99: torch finds no such GPU here"),
        ("table1", ["--device", "meta"], "'meta' is neither a CPU nor an NVIDIA GPU"),
        ("table1", ["--optimizers", "sgd", "--ablation"], "--ablation needs entropy-sgd, which"),
        ("table1", ["--out", "/proc/no"], "/proc/no"),
        ("search", ["--out", "/proc/no"], "/proc/no"),
        ("table1", ["--found", __file__], "is not a file of `deeprelax reproduce search`"),
        ("search", ["--models", "lenet", "--images", "400"], "--images 400: with the 66 held out that is more than"),
        ("search", ["--models", "lenet", "--images", "30"], "batches of 128: the training set has only 30 images"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(
    data: Path, tmp_path: Path, command: str, arguments: list[str], named: str
) -> None:
    folder = [] if "--data" in arguments else ["--data", str(data)]
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    assert named in refused("reproduce", command, *folder, *out, *arguments)


@pytest.mark.parametrize("command", ["table1", "search"])
def test_with_a_budget_of_zero_the_table_says_that_every_run_is_left(data: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "new" / "folder"
    output = run(command, "--data", data, "--out", out, "--models", "lenet", "--budget-minutes", 0).output
    assert ("24 of 24 runs are left" if command == "table1" else "; 32 trials are left") in " ".join(output.split())


def test_a_backend_that_does_not_work_here_is_named(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DEEPRELAX_BACKEND", "nonsense")
    output = run("table1", "--data", data, "--out", tmp_path, "--models", "lenet", code=1).output
    assert "DEEPRELAX_BACKEND: no backend is called 'nonsense'" in output


def test_a_terminal_shows_the_progress_of_a_run(data: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    runs = experiment.plan("authors", ["lenet"], ["sgd"], 1, epochs=2)
    load = experiment.Loader(data, tmp_path, torch.device("cpu"))
    experiment.execute(runs, load, tmp_path, Console(file=screen, force_terminal=True, width=140))
    assert "2.0/2 effective epochs" in screen.getvalue()
    assert "all runs of lenet" in screen.getvalue()
    assert "authors-lenet-sgd-2ep-seed0: finished" in screen.getvalue()


def test_each_model_has_its_own_bar_with_its_ended_runs(tmp_path: Path) -> None:
    runs = experiment.plan("authors", protocol.MODELS, ["sgd"], 2)
    assert {run.epochs for run in runs} == {67, 195}
    path = store.path_of(runs[0], tmp_path)
    path.parent.mkdir()
    record = {"effective_epoch": 67, "gradients": 31_356, "validation_error": 0.01, "training_loss": 0.1, "lr": 0.1}
    lines = [
        {"run": runs[0].settings(), "machine": environment.describe(), "data": "d"},
        {**record, "gamma": None, "seconds": 1.0},
        {"ended": "finished"},
    ]
    store.write_lines(path, lines)
    with progress.bars(Console(file=io.StringIO(), force_terminal=True), 40) as shown:
        lengths = [(run, run.epochs) for run in runs]
        bars = [experiment._Bar(shown, model, lengths, tmp_path) for model in protocol.MODELS]
        assert [(task.completed, task.total) for task in shown.tasks] == [(67, 134), (0, 390)]
        bars[1].show(2.5)
        bars[0].add(67)
        bars[1].show(3.5)
        assert [task.completed for task in shown.tasks] == [134, 3.5]


def test_each_data_set_is_loaded_once(tmp_path: Path, monkeypatch) -> None:
    loaded = []

    def load(name: str, *_: object) -> tuple[Data, str]:
        loaded.append(name)
        return Data(name, *[torch.zeros(1)] * 4), name

    monkeypatch.setattr("deeprelax.experiments.data.inputs.load", load)
    loader = experiment.Loader(None, tmp_path, torch.device("cpu"))
    for each in experiment.plan("authors", protocol.MODELS, ["sgd", "hj"], 2, ablation=True):
        assert loader(each)[1] == protocol.DATASETS[each.model]
    assert sorted(loaded) == ["cifar10", "mnist"]
