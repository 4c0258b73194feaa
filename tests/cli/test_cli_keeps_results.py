"""A comparison or a benchmark that has run is in its files, whatever the terminal, the disk or the user do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import matplotlib
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from test_cli import run

from deeprelax import files
from deeprelax.benchmark import report as benchmark_report
from deeprelax.benchmark import throughput
from deeprelax.benchmark.shapes import Workload
from deeprelax.cli.common import extras_needed
from deeprelax.cli.main import main
from deeprelax.cli.reproduce import reproduce
from deeprelax.experiments import progress, report
from deeprelax.experiments.compare import report as comparison_report
from deeprelax.experiments.compare import runner
from deeprelax.experiments.training import DivergedError
from deeprelax.pde import figure1
from deeprelax.terminal import Pace

TRAIN = ["train", "--optimizer", "sgd", "--epochs", "1", "--seeds", "2"]
FILES = ["digits.json", "digits.png", "digits.txt"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark that takes no time."""
    monkeypatch.setattr(throughput, "workloads", lambda preset: [Workload(name, ((16,),) * 2) for name in ("a", "b")])


def full_device() -> IO[str]:
    return Path("/dev/full").open("w")


def closed_pipe() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("stdout", [closed_pipe, full_device])
@pytest.mark.parametrize(("arguments", "written"), [(TRAIN, FILES), (["bench"], ["cpu.json"])])
def test_files_are_written_even_if_nothing_can_be_printed(
    stdout: Callable[[], IO[str]],
    arguments: list[str],
    written: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stdout() as screen, contextlib.suppress(OSError):
        monkeypatch.setattr(sys, "stdout", screen)
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--out", str(tmp_path)])
    assert end.value.code == 1
    assert names(tmp_path) == written


def test_an_ascii_terminal_gets_its_table(tmp_path: Path) -> None:
    result = CliRunner(charset="ascii").invoke(main, [*TRAIN, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "+-" in result.output
    assert names(tmp_path) == FILES


@pytest.mark.parametrize("command", ["train", "bench", "compare", "figure1"])
@pytest.mark.parametrize("out", ["/proc/no", "/dev/full", "taken"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_run(
    command: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("digits.png", "cpu.json", "curves.png", "figure1.svg"):  # folders where files are expected
        (tmp_path / "taken" / name).mkdir(parents=True)
    monkeypatch.setattr(progress, "run_all", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(throughput, "main", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(runner, "perform", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(figure1, "compute", lambda *_: pytest.fail("it ran"))
    output = run(command, "--out", tmp_path / out, code=1).output
    assert "--out: " in output
    assert ("Not a directory" in output) == (out == "/dev/full")


def test_a_comparison_without_its_data_names_the_folder(tmp_path: Path) -> None:
    arguments = ("compare", "--task", "mnist-cnn", "--preset", "test", "--processes", 1, "--optimizer", "HJ")
    output = run(*arguments, "--data", tmp_path / "no", "--out", tmp_path / "out", code=1).output
    assert f"no folder {tmp_path / 'no'}" in output
    assert "0 runs are in" in output


def test_a_full_disk_is_named_and_the_table_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: Any, **_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_json", full)
    output = run(*TRAIN, "--out", tmp_path, code=1).output
    assert f"No space left on device: '{tmp_path / 'digits.json'}'" in output.replace("\n", "")
    assert "effective" in output


def test_a_comparison_on_a_full_disk_names_the_file_and_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    done = runner.Run("small", "digits-mlp", "AdamW", 0.01, 0.95, 0)
    runner.Results(tmp_path / "runs.jsonl").add({"run": vars(done), "curve": [0.02] * runner.POINTS, "seconds": 1.0})
    monkeypatch.setattr(runner, "perform", lambda *_: [])
    monkeypatch.setattr(comparison_report, "draw", full)
    output = run("compare", "--out", tmp_path, code=1).output
    assert "| AdamW | 2.00" in output.partition("Error: ")[0]
    assert f"No space left on device: '{tmp_path / 'curves.png'}'; 1 runs are in {tmp_path / 'runs.jsonl'}" in output


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to process string with tex because latex could not be found")

    monkeypatch.setattr(Figure, "savefig", fails)
    output = run(*TRAIN, "--out", tmp_path, code=1).output
    assert "all numbers" in output
    assert f"Error: {tmp_path / 'digits.png'} cannot be drawn: Failed to process" in output
    assert names(tmp_path) == ["digits.json", "digits.txt"]


def test_a_backend_of_matplotlib_for_windows_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    with extras_needed():
        matplotlib.rcsetup.validate_backend(os.environ["MPLBACKEND"])


def test_brackets_in_a_path_are_printed(tmp_path: Path) -> None:
    out = tmp_path / "a[bold]b[" / "c]"
    assert f"all numbers {out / 'digits.json'}\n" in run(*TRAIN, "--out", out).output


@pytest.mark.usefixtures("tiny")
def test_a_benchmark_is_written_before_its_last_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(benchmark_report, "show", lambda *_: seen.append(names(tmp_path)))
    run("bench", "--out", tmp_path)
    assert seen == [[], ["cpu.json"]]


def diverges() -> None:
    raise DivergedError("it diverged")


def loses_a_worker() -> None:
    raise RuntimeError("Connection closed by peer")


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("stop", "code", "said", "before"),
    [
        (signalled(signal.SIGINT), 130, "interrupted", 0),
        (signalled(signal.SIGTERM), 143, "interrupted", 1),
        (diverges, 1, "diverged", 1),
        (loses_a_worker, 1, "closed by peer", 0),
    ],
)
def test_finished_runs_and_earlier_files_are_kept(
    stop: Callable[[], None],
    code: int,
    said: str,
    before: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heard: None,
) -> None:
    (tmp_path / "digits.json").write_text("earlier")
    train, calls = progress.train, []

    def stops(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        if len(calls) > before:
            stop()
        return train(*arguments, **keywords)

    monkeypatch.setattr(progress, "train", stops)
    output = " ".join(run(*TRAIN, "--out", tmp_path, code=code).output.split())
    assert said in output
    assert "does not resume" in output
    assert (tmp_path / "digits.json").read_text() == "earlier"
    if before:
        assert "1 of 2 runs had ended" in output
        content = json.loads((tmp_path / "digits-unfinished.json").read_text())
        assert [r["seed"] for r in content["runs"]] == [0]
    else:
        assert "no run had ended" in output
        assert names(tmp_path) == ["digits.json"]


def test_a_worker_that_writes_nothing_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprelax.cli.train.join_workers", lambda *_: 1)
    monkeypatch.setattr(progress, "train", lambda *_, **__: loses_a_worker())
    output = run(*TRAIN, "--out", tmp_path, code=1).output
    assert "closed by peer; rank 0 keeps" in output
    assert "digits" not in output
    assert not names(tmp_path)


def test_a_signal_while_results_are_written_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: None
) -> None:
    write_json = report.write_json

    def interrupted(*arguments: Any) -> None:
        signalled(signal.SIGTERM)()
        write_json(*arguments)

    monkeypatch.setattr(report, "write_json", interrupted)
    run(*TRAIN, "--out", tmp_path)
    assert names(tmp_path) == FILES


def test_a_long_run_says_how_much_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0.0,))
    output = run(*TRAIN, "--epochs", 2, "--out", tmp_path).output
    assert re.search(r"SGD         seed 0: 0\.5/2 effective epochs, [01] s left", output)
    assert "% error, " in output


def test_fewer_gradients_than_one_update_needs_are_refused(tmp_path: Path) -> None:
    output = " ".join(
        run("train", "--optimizer", "entropy-sgd", "--epochs", 1, "--out", tmp_path, code=1).output.split()
    )
    assert "10 gradients (1 epochs of 10 batches of 128)" in output
    assert "L = 20" in output
    assert "raise --epochs to 2" in output
    run("train", "--optimizer", "entropy-sgd", "--epochs", 2, "--seeds", 1, "--out", tmp_path)


def test_every_command_is_in_the_help_and_has_its_own() -> None:
    for name in main.commands:
        assert f"deeprelax {name} " in (main.help or "")
    for words in [[name] for name in main.commands] + [["reproduce", name] for name in reproduce.commands]:
        assert "Usage:" in run(*words, "--help").output


@pytest.mark.skipif(torch.cuda.is_available() or any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_doctor_says_that_there_is_no_gpu_and_blames_no_driver() -> None:
    lines = run("doctor").output.splitlines()
    told = [line for line in lines if line.startswith(("gpu ", "backend cuda", "backend triton"))]
    assert len(told) == 3
    assert all("no GPU found" in line for line in told)
    assert not any("driver" in line for line in told)


def test_the_command_line_imports_click_and_the_package_alone() -> None:
    code = (
        "import sys, deeprelax; before = set(sys.modules)\nimport deeprelax.cli.main\n"
        "print({n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names))\n"
        "print({'scipy', 'deeprelax.pde'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    further, unwanted = map(eval, done.stdout.splitlines())
    assert further <= {"click", "deeprelax"}
    assert not unwanted


def test_the_files_of_an_experiment_are_those_that_are_checked(tmp_path: Path) -> None:
    assert sorted(path.name for path in report.paths(tmp_path, "digits").values()) == FILES
