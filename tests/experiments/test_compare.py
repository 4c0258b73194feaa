"""``deeprelax compare``: every optimizer is searched alike, runs resume, and the table says what the runs say."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import run as command_line
from test_cli import write_mnist
from test_whitening import write_cifar

from deeprelax import files
from deeprelax.cli import compare as command
from deeprelax.experiments.compare import report, runner, tasks
from deeprelax.experiments.compare.contestants import CONTESTANTS
from deeprelax.experiments.data.datasets import DataError
from deeprelax.terminal import Interruptions, handling

RUN = vars(runner.Run("test", "digits-mlp", "HJ", 1.0, 1.0, 0))
GOOD = json.dumps({"run": RUN, "curve": [0.5] * runner.POINTS, "seconds": 1.0}).encode()
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_optimizer_gets_the_same_search() -> None:
    assert {len(list(contestant.grid())) for contestant in CONTESTANTS.values()} == {6}
    runs = runner.search("test", tasks.NAMES, list(CONTESTANTS))
    assert len(runs) == len(set(runs)) == 6 * len(tasks.NAMES) * len(CONTESTANTS)
    assert command.TASKS == tasks.NAMES


def test_a_run_is_a_function_of_its_settings() -> None:
    run = runner.Run("test", "digits-cnn", "EntropyAdamW", 0.01, 0.67, 3)
    first, second = runner.execute(run, None), runner.execute(run, None)
    assert first["curve"] == second["curve"]
    assert len(first["curve"]) == runner.POINTS
    assert first["curve"][-1] < 0.8  # ten classes


@pytest.mark.parametrize("name", ["digits-mlp", "text-transformer"])
def test_every_optimizer_takes_its_outer_steps_and_learns(name: str) -> None:
    task = tasks.make(name, "test", None)
    for optimizer, contestant in CONTESTANTS.items():
        torch.manual_seed(0)
        model = task.model()
        opts = contestant.make(list(model.parameters()), contestant.rates[1], contestant.others[0])
        batches, losses = task.batches(torch.Generator().manual_seed(0)), []
        for _ in range(30):
            loss = task.loss(model, next(batches))
            losses.append(float(loss))
            for opt in opts:
                opt.zero_grad()
            loss.backward()
            for opt in opts:
                opt.step()
        assert sum(losses[-5:]) < sum(losses[:5]), optimizer


def test_rates_fall_to_zero_in_a_straight_line() -> None:
    p = torch.nn.Parameter(torch.zeros(2, 2))
    for optimizer in ("EntropySGD", "OuterLoop(Muon)", "AdamW"):
        contestant = CONTESTANTS[optimizer]
        opts = contestant.make([p], contestant.rates[0], contestant.others[0])
        name = "inner_lr" if optimizer == "EntropySGD" else "lr"
        for fraction in (1.0, 0.5, 0.25):
            runner.decay(opts, fraction)
            assert opts[0].param_groups[0][name] == pytest.approx(fraction * contestant.rates[0])


def test_an_interrupted_comparison_resumes_with_what_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    done: list[runner.Run] = []

    def perform(runs: Any, results: runner.Results, folder: Any, processes: int) -> Any:
        for run in results.missing(runs):
            if len(done) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(run)
            results.add({"run": vars(run), "curve": [run.rate + run.seed / 100] * runner.POINTS, "seconds": 1.0})
            yield results.all[-1]

    monkeypatch.setattr(runner, "perform", perform)
    given = ["compare", "--preset", "test", "--task", "digits-mlp", "--optimizer", "AdamW", "--seeds", "3"]
    given += ["--out", str(tmp_path)]
    output = command_line(*given, code=143).output
    assert f"interrupted; 4 runs are in {tmp_path / 'runs.jsonl'}; the same command resumes" in output
    (tmp_path / "runs.jsonl").write_text((tmp_path / "runs.jsonl").read_text() + '{"run": {"pre')
    done.clear()
    done.extend([None] * 5)  # type: ignore[list-item]
    command_line(*given)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines if line.endswith("}")]
    assert len({runner.Run(**r["run"]) for r in results}) == len(results) == 6 + 2
    assert {r["run"]["rate"] for r in results if r["run"]["seed"]} == {1e-3}
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize(
    "damaged",
    [
        b"123", b"\xff\xfe", b'{"run": {"preset": "test"}}', b'{"run": 7, "curve": [], "seconds": 1}', b"{}",
        GOOD.replace(b"0.5", b'"0.5"', 1), GOOD.replace(b"0.5, ", b"", 1),
        GOOD.replace(b'"seed"', b'"more": 1, "seed"'), GOOD.replace(b"1.0}", b'1.0, "data": 7}'),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_nothing_lost(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    content = b"\n".join((GOOD, damaged, GOOD, b""))
    path.write_bytes(content)
    output = command_line("compare", "--preset", "test", "--out", tmp_path, code=1).output
    assert f"Error: {path}, line 2 is damaged: " in output
    assert "remove that line" in output
    assert path.read_bytes() == content


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    with files.alone(tmp_path / "runs.jsonl", tmp_path / "runs.lock"):
        output = command_line("compare", "--preset", "test", "--out", tmp_path, code=1).output
    assert f"{tmp_path / 'runs.jsonl'} is being written by another process" in output
    assert not list(tmp_path.iterdir())


def test_a_comparison_resumes_on_the_data_of_its_runs_only(tmp_path: Path) -> None:
    for name, images in (("first", 64), ("second", 65)):
        write_mnist(tmp_path / name, train=images)
    given = ["compare", "--preset", "test", "--task", "mnist-cnn", "--out", tmp_path, "--processes", "1"]
    alone = ["--optimizer", "HJ()", "--seeds", "1"]
    command_line(*given, *alone, "--data", tmp_path / "first")
    stored = (tmp_path / "runs.jsonl").read_text()
    assert json.loads(stored)["data"] == tasks.digest("mnist-cnn", tmp_path / "first")
    for more in (["--optimizer", "AdamW()"], ["--optimizer", "HJ()"], alone):  # search, seeds, and nothing is missing
        output = command_line(*given, *more, "--data", tmp_path / "second", code=1).output
        assert f"{tmp_path / 'runs.jsonl'} has runs of mnist-cnn on other data, checksum" in output
        assert "1 runs are in" in output
        assert "the same command" not in output
    command_line(*given, *alone)  # without --data finished runs are shown, and no data needed
    assert (tmp_path / "runs.jsonl").read_text() == stored


def test_a_checksum_counts_for_its_own_task_and_may_be_missing(tmp_path: Path) -> None:
    other = json.dumps({**json.loads(GOOD), "run": {**RUN, "task": "mnist-cnn"}, "data": "there"}).encode()
    (tmp_path / "runs.jsonl").write_bytes(b"\n".join((GOOD, other, b"")))
    results = runner.Results(tmp_path / "runs.jsonl")
    results.take("digits-mlp", "now")  # stored before checksums were kept
    with pytest.raises(DataError, match="runs of mnist-cnn on other data, checksum there there, now now: give"):
        results.take("mnist-cnn", "now")
    assert results.data == {"digits-mlp": "now"}


@pytest.mark.parametrize(("task", "cure"), [("digits-cnn", "scikit-learn"), ("text-transformer", "the Python of")])
def test_an_error_about_bundled_data_does_not_name_an_option(task: str, cure: str, tmp_path: Path) -> None:
    line = {**json.loads(GOOD), "run": {**RUN, "task": task}, "data": "there"}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=cure) as refused:
        runner.Results(tmp_path / "runs.jsonl").take(task, "now")
    assert "--data" not in str(refused.value)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_the_checksum_is_of_the_files_of_the_tasks_data(name: str, tmp_path: Path) -> None:
    found = []
    for folder, images in (("first", 64), ("again", 64), ("other", 65)):
        write_mnist(tmp_path / folder, train=images)
        write_cifar(tmp_path / folder, "npz", train=images)
        found.append(tasks.digest(name, tmp_path / folder))
    assert found[0] == found[1]
    assert (found[0] != found[2]) == (name in ("mnist-cnn", "cifar-resnet"))  # the others bring their data along


def test_a_worker_that_dies_is_reported_with_what_is_kept(tmp_path: Path, monkeypatch: Any) -> None:
    def perform(*_: object) -> Any:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(runner, "perform", perform)
    output = command_line("compare", "--preset", "test", "--out", tmp_path, code=1).output
    assert "terminated abruptly; 0 runs are in" in output


def sleep(theirs: Connection, ours: Connection) -> None:
    ours.close()  # a fork has it, unlike what perform spawns
    runner._end_with_parent(theirs)
    time.sleep(60)


def test_a_worker_ends_with_its_parent() -> None:
    context = get_context("fork")
    theirs, ours = context.Pipe(duplex=False)
    worker = context.Process(target=sleep, args=(theirs, ours))
    worker.start()
    ours.close()
    worker.join(30)
    assert worker.exitcode == 1


def test_only_the_parent_handles_an_interruption_without_waiting(tmp_path: Path, heard: None) -> None:
    runs = runner.search("long", ["digits-cnn"], ["EntropyAdamW"])  # a run takes many minutes
    blocked = []

    def stop() -> None:
        (worker,) = active_children()
        blocked.append(re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{worker.pid}/status").read_text()))
        os.kill(os.getpid(), signal.SIGINT)

    before = time.monotonic()
    threading.Timer(0.5, stop).start()
    with handling(Interruptions()), pytest.raises(KeyboardInterrupt):
        list(runner.perform(runs, runner.Results(tmp_path / "runs.jsonl"), None, 1))
    assert time.monotonic() - before < 60
    assert not active_children()
    assert int(blocked[0][1], 16) & 1 << signal.SIGINT - 1


def result(optimizer: str, rate: float, seed: int, end: float) -> dict[str, Any]:
    run = runner.Run("test", "digits-mlp", optimizer, rate, 0.9, seed)
    return {"run": vars(run), "curve": [1.0] * 7 + [end], "seconds": 1.0}


def test_the_table_has_means_errors_and_differences_from_the_best_peer() -> None:
    results = [result("AdamW", 0.01, seed, end) for seed, end in enumerate((0.02, 0.04, 0.03))]
    results += [result("AdamW", 0.1, 0, 0.5), result("SGD, Nesterov", 0.02, 0, 0.2)]
    results += [result("EntropyAdamW", 0.01, seed, end) for seed, end in enumerate((0.02, 0.02, 0.02))]
    text = report.table(results)
    assert "| AdamW | 3.00 ± 0.58 (0.01↑, beta2 0.9) |" in text  # the largest rate tried
    assert "| EntropyAdamW | −1.00 ± 0.58 |" in text
    assert "| EntropyAdamW | 2.00 ± 0.00 (0.01↑, momentum 0.9) |" in text


def test_one_seed_has_no_error_and_no_runs_have_no_table() -> None:
    text = report.table([result("AdamW", 0.01, 0, 0.02), result("HJ", 0.01, 0, 0.03)])
    assert "| AdamW | 2.00 (0.01↑, beta2 0.9) |" in text
    assert "| HJ | +1.00 |" in text
    assert "Constructed without arguments" not in text
    alone = report.table([result("HJ()", 0.0, 0, 0.02)])
    assert alone.splitlines()[0] == "Constructed without arguments, at constant rates:"
    assert alone.endswith("| HJ() | 2.00 |\n")


@pytest.mark.filterwarnings("error")
def test_the_picture_names_every_curve_whichever_task_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(report, "write_picture", lambda path, figure, **_: drawn.append(figure))
    results = [result("HJ()", 0.0, 0, 0.02), result("AdamW", 0.01, 0, 0.02)]
    results[1]["run"] = {**results[1]["run"], "task": "text-transformer"}  # the first task has no curve
    report.draw(results[:1], tmp_path / "curves.png")
    report.draw(results, tmp_path / "curves.png")
    assert drawn[0].axes[0].get_legend() is None
    assert [text.get_text() for text in drawn[1].axes[0].get_legend().get_texts()] == ["AdamW"]


def test_an_unknown_optimizer_is_named(tmp_path: Path) -> None:
    output = command_line("compare", "--optimizer", "Adam", "--out", tmp_path, code=2).output
    assert "known are 'SGD, Nesterov', 'AdamW'" in output
