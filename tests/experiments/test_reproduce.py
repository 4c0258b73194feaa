"""A run of Table 1 learns, can be interrupted anywhere and ends with the same bits, and takes each batch once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import plain

from deeprelax import environment
from deeprelax.experiments import models
from deeprelax.experiments.data.datasets import Data
from deeprelax.experiments.runner import Runner, numerics
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import checkpoints, protocol, store

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 4  # of All-CNN here; 96 in the paper


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, make in (("allcnn", models.allcnn), ("allcnn-authors", models.allcnn_authors)):
        monkeypatch.setitem(models.MODELS, name, (functools.partial(make, width=WIDTH), (3, 32, 32)))


@functools.cache
def data_for(model: str, train: int = 320, validation: int = 100) -> Data:
    """A pattern for each class and noise, in the shapes and ranges of the real images."""
    shape = models.MODELS[model][1]
    generator = torch.Generator().manual_seed(5)
    patterns = torch.nn.functional.interpolate(torch.randn(10, shape[0], 4, 4, generator=generator), shape[1:])
    targets = torch.arange(train + validation) % 10
    inputs = patterns[targets] + 0.25 * torch.randn(train + validation, *shape, generator=generator)
    if model == "lenet":
        inputs = (64 * inputs + 128).clamp(0, 255).round()
    return Data(model, inputs[:train], targets[:train], inputs[train:], targets[train:])


LENET = data_for("lenet")


def small(optimizer: str, model: str = "lenet", preset: str = "authors", epochs: int = 3, **changes: Any) -> Run:
    """Twenty gradients an epoch."""
    return dataclasses.replace(protocol.run(preset, model, optimizer, 0, epochs=epochs), batch_size=16, **changes)


def final_state(run: Run, out: Path) -> str:
    """The checksum of all its bits."""
    state = store.read(store.path_of(run, out)).state
    assert state is not None
    return state


def errors(run: Run, out: Path) -> list[tuple[Any, ...]]:
    records = store.read(store.path_of(run, out)).records
    return [tuple(value for name, value in record.items() if name != "seconds") for record in records]


@pytest.mark.parametrize(
    ("preset", "optimizer"), [("authors", "entropy-sgd"), ("authors", "sgd"), ("paper", "heat"), ("paper", "hj")]
)
def test_rows_of_all_cnn_run_end_to_end_and_learn(tmp_path: Path, preset: str, optimizer: str) -> None:
    """One image in ten is right by chance. test_no_collapse.py has rows of LeNet that learn, test_gpu_reproduce.py all
    that run."""
    run = small(optimizer, "allcnn", preset, epochs=8, evaluate_every=4)
    assert store.execute(run, data_for("allcnn"), "digest", tmp_path) == store.FINISHED
    stored = store.read(store.path_of(run, tmp_path))
    assert [record["gradients"] for record in stored.records] == [80, 160]
    assert stored.records[-1]["validation_error"] < 0.5


class Killed(BaseException):
    """Nothing in the program catches it."""


@pytest.mark.parametrize(
    ("gradients", "model", "optimizer"),
    [(20, "lenet", "hj"), (33, "lenet", "heat"), (33, "lenet", "entropy-sgd"), (33, "allcnn", "sgd")],
)
def test_a_run_killed_in_its_middle_ends_with_the_same_bits(
    tmp_path: Path, gradients: int, model: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of an epoch and within one, in the middle of a cycle, with dropout and batches drawn."""
    monkeypatch.setattr(store, "CHUNK", 7)
    run, data = small(optimizer, model, epochs=2), data_for(model)
    store.execute(run, data, "digest", tmp_path / "whole")
    gradient = Runner._gradient

    def dies(self: Runner) -> None:
        if self.done == gradients:
            raise Killed
        gradient(self)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_gradient", dies)
        with pytest.raises(Killed):
            store.execute(run, data, "digest", tmp_path / "parts", checkpoint_seconds=0)
    saved = checkpoints.read(store.checkpoint_of(run, tmp_path / "parts"))
    assert 0 < saved["state"]["done"] <= gradients
    assert store.read(store.path_of(run, tmp_path / "parts")).ended is None
    torch.manual_seed(999)
    assert store.execute(run, data, "digest", tmp_path / "parts") == store.FINISHED
    assert final_state(run, tmp_path / "whole") == final_state(run, tmp_path / "parts")
    assert errors(run, tmp_path / "whole") == errors(run, tmp_path / "parts")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_run_resumes_with_the_number_of_threads_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over a batch depend on how many threads share them."""
    run = small("sgd", epochs=2)
    seen = []
    gradient = Runner._gradient

    def counts(self: Runner) -> None:
        seen.append(torch.get_num_threads())
        gradient(self)

    monkeypatch.setattr(Runner, "_gradient", counts)
    assert store.execute(run, LENET, "digest", tmp_path, deadline=0.0) == store.PAUSED
    torch.set_num_threads(2)
    assert store.execute(run, LENET, "digest", tmp_path) == store.FINISHED
    assert torch.get_num_threads() == 2
    assert seen == [1] * 40


@pytest.mark.parametrize("optimizer", ["heat", "sgd"])
def test_the_rehearsal_before_a_capture_leaves_no_trace(optimizer: str) -> None:
    run = small(optimizer)
    states = []
    for rehearse in (False, True):
        with numerics(run, torch.device("cpu")):
            runner = Runner(run, LENET)
            if rehearse:
                runner.rehearse()
            runner.advance(19)  # of an epoch of 20
            if rehearse:
                runner.rehearse()
            runner.advance(10)
            states.append(plain(runner.state()))
    assert states[0] == states[1]


def test_every_gradient_of_a_captured_run_is_a_replay_of_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the graph, which runs nothing while it is captured and a gradient whenever it is replayed."""
    run = small("entropy-sgd")
    with numerics(run, torch.device("cpu")):
        plain_runner = Runner(run, LENET)
        plain_runner.advance(45)
        expected = plain(plain_runner.state())
        runner = Runner(run, LENET)
        calls = {"replays": 0, "captures": 0}
        gradient = runner._gradient

        class Graph:
            def replay(self) -> None:
                calls["replays"] += 1
                gradient()

        @contextlib.contextmanager
        def graph(_: Graph) -> Iterator[None]:
            calls["captures"] += 1
            monkeypatch.setattr(runner, "_gradient", lambda: None)
            yield

        class Stream:
            def wait_stream(self, _: object) -> None:
                pass

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        runner._step = runner._captured()
        runner.advance(45)
        assert plain(runner.state()) == expected
    assert calls == {"replays": 45, "captures": 1}


def test_a_backend_that_cannot_be_captured_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("entropy-sgd", drops=((0.25, 0.1),))
    states = []
    for name in ("auto", "eager"):
        if name == "eager":
            monkeypatch.setenv("DEEPRELAX_BACKEND", name)
        with numerics(run, torch.device("cpu")):
            runner = Runner(run, LENET)
            runner.advance(25)
            states.append(plain(runner.state()))
    assert states[0] == states[1]


def test_the_learning_rate_falls_where_the_schedule_says() -> None:
    run = small("hj", drops=((0.5, 0.1), (0.75, 0.02)))
    with numerics(run, torch.device("cpu")):
        runner = Runner(run, LENET)
        rates = []
        for _ in range(60):
            runner.advance(1)
            rates.append(float(runner.optimizer.param_groups[0]["lr"]))
    lr = run.options["lr"]
    assert rates == [lr] * 30 + [lr * 0.1] * 15 + [lr * 0.02] * 15


def test_a_seed_determines_weights_batches_dropout_and_noise() -> None:
    runs = [small("heat"), small("heat"), small("heat", seed=1)]
    states = []
    for run in runs:
        with numerics(run, torch.device("cpu")):
            runner = Runner(run, LENET)
            runner.advance(9)
            states.append(runner.state())
    first, again, other = (plain(state) for state in states)
    assert first == again
    assert first["model"] != other["model"]
    assert first["draws"] != other["draws"]
    assert first["dropout"] != other["dropout"]
    assert states[0]["optimizer"]["param_groups"][0]["seed"] != states[2]["optimizer"]["param_groups"][0]["seed"]


def test_mixed_precision_trains_in_bf16_and_keeps_float32_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    cross_entropy = torch.nn.functional.cross_entropy

    def spy(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        if logits.requires_grad:
            seen.add(logits.dtype)
        return cross_entropy(logits, targets, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spy)
    run = small("hj", "allcnn", autocast="bf16", epochs=1)
    assert store.execute(run, data_for("allcnn"), "digest", tmp_path, deadline=0.0) == store.PAUSED
    assert seen == {torch.bfloat16}
    weights = checkpoints.read(store.checkpoint_of(run, tmp_path))["state"]["model"]
    assert weights["1.weight"].dtype == torch.float32


def test_a_run_that_diverges_is_stored_as_such(tmp_path: Path) -> None:
    run = small("sgd")
    run = dataclasses.replace(run, options={**run.options, "lr": 1e30})
    assert store.execute(run, LENET, "digest", tmp_path) == store.DIVERGED
    stored = store.read(store.path_of(run, tmp_path))
    assert stored.ended == store.DIVERGED
    assert stored.records[-1]["training_loss"] is None


@pytest.mark.parametrize("change", [{"batch_size": 32}, {"options": {"lr": 0.2}}, "data"])
def test_a_stored_run_of_other_settings_or_data_is_refused(tmp_path: Path, change: Any) -> None:
    run = small("sgd", epochs=1)
    store.execute(run, LENET, "digest", tmp_path)
    other, digest = (run, "other") if change == "data" else (dataclasses.replace(run, **change), "digest")
    with pytest.raises(store.StoreError, match=run.name):
        store.ended(other, digest, tmp_path)
    with pytest.raises(store.StoreError, match=run.name):
        store.execute(other, LENET, digest, tmp_path)


@pytest.mark.filterwarnings("ignore:.*resumed elsewhere")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_killed_diverged_run_does_not_train_on(
    tmp_path: Path, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small("sgd")
    run = dataclasses.replace(run, options={**run.options, "lr": 1e30})
    append = store._append

    def dies(path: Path, line: dict[str, Any]) -> None:
        if "ended" in line:
            raise Killed
        append(path, line)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_append", dies)
        with pytest.raises(Killed):
            store.execute(run, LENET, "digest", tmp_path)
    monkeypatch.setattr(Runner, "advance", lambda self, gradients: pytest.fail("it trained on"))
    if elsewhere:
        monkeypatch.setattr(environment, "cpu_model", lambda: "another")
    assert store.execute(run, LENET, "digest", tmp_path) == store.DIVERGED
    stored = store.read(store.path_of(run, tmp_path))
    assert (stored.ended, len(stored.records)) == (store.DIVERGED, 1)
