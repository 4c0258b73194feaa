"""What a run leaves is whole, or refused by name; it says what it was produced with, and warns where that changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reproduce import LENET, small

from deeprelax import environment
from deeprelax.experiments.runner import why_not_captured
from deeprelax.experiments.table1 import checkpoints, store
from deeprelax.experiments.table1.checkpoints import StoreError

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = small("sgd", epochs=2)


def flipped(content: bytes, position: int) -> bytes:
    """One bit of one byte is another."""
    return content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a run that was stopped in its middle, and of one that has ended."""
    folder = tmp_path_factory.mktemp("runs")
    with environment.threads(1):  # as many as in every test
        assert store.execute(RUN, LENET, "digest", folder / "paused", deadline=0.0) == store.PAUSED
        assert store.execute(RUN, LENET, "digest", folder / "finished") == store.FINISHED
    return folder


@pytest.fixture
def paused(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "paused", tmp_path / "paused")


@pytest.fixture
def finished(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "finished", tmp_path / "finished")


def test_no_flipped_byte_of_a_checkpoint_goes_unnoticed(paused: Path) -> None:
    path = store.checkpoint_of(RUN, paused)
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 97):
        path.write_bytes(flipped(content, position))
        with pytest.raises(StoreError, match=r"\.pt is damaged"):
            checkpoints.read(path)


def test_a_damaged_checkpoint_is_refused_with_its_name(paused: Path) -> None:
    path = store.checkpoint_of(RUN, paused)
    whole = path.read_bytes()
    for damaged in (whole[:500], whole[:-1], b"", flipped(whole, len(whole) // 2)):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=path.name):
            store.execute(RUN, LENET, "digest", paused)


def test_damaged_lines_are_refused_with_the_files_name(finished: Path) -> None:
    path = store.path_of(RUN, finished)
    content = path.read_bytes()
    path.write_bytes(content[:-5])  # the machine went down while it was written
    assert store.read(path).ended is None
    refused, places = 0, range(0, len(content), 7)
    for position in places:
        path.write_bytes(flipped(content, position))
        try:
            store.read(path)
        except StoreError as error:
            refused += path.name in str(error)
    assert refused > len(places) // 10  # a digit for another, and most of a name, are still such a file
    for damaged in (b"", b"[]\n", b"7\n", b"{}\n", b'{"run": 7, "machine": {}, "data": "d"}\n', content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=path.name):
            store.read(path)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (1, {"validation_error": "abc"}), (1, {"validation_error": None}), (1, {"gamma": "1"}), (0, {"machine": {}}),
        (0, {"run": {**RUN.settings(), "model": "foo"}}), (0, {"run": {**RUN.settings(), "epochs": "2"}}),
        (0, {"data": 7}), (3, {"ended": True}),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_with_file_and_line(
    line: int, change: dict[str, Any], finished: Path
) -> None:
    path = store.path_of(RUN, finished)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[line] |= change
    store.write_lines(path, lines)
    with pytest.raises(StoreError, match=rf"{path.name}, line {line + 1} is damaged: .*; remove the file"):
        store.read(path)


def test_a_run_without_an_evaluation_has_not_ended(finished: Path) -> None:
    path = store.path_of(RUN, finished)
    header, *_, end = path.read_text().splitlines()
    path.write_text(f"{header}\n{end}\n")
    with pytest.raises(StoreError, match=f"{path.name} is damaged: the run ended without an evaluation"):
        store.read(path)


def test_the_checksum_of_a_state_is_of_every_bit() -> None:
    state = {"a": [torch.zeros(3), 1.5], "b": {"c": torch.ones(2, dtype=torch.bfloat16)}}
    same = {"a": [torch.zeros(3), 1.5], "b": {"c": torch.ones(2, dtype=torch.bfloat16)}}
    others: list[Any] = [
        {"a": [-torch.zeros(3), 1.5], "b": state["b"]},
        {"a": [torch.zeros(3), 1.25], "b": state["b"]},
        {"a": state["a"], "b": {"c": torch.ones(2)}},
        {"a": state["a"], "b": {"c": torch.ones(2, 1, dtype=torch.bfloat16)}},
        {"a": state["a"]},
    ]
    assert checkpoints.digest(state) == checkpoints.digest(same)
    assert len({checkpoints.digest(each) for each in [state, *others]}) == 6


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = store.path_of(RUN, finished).read_bytes()
    assert store.execute(RUN, LENET, "digest", finished) == store.FINISHED
    assert store.path_of(RUN, finished).read_bytes() == before


def test_the_header_says_what_may_change_the_bits(paused: Path) -> None:
    header = store.read(store.path_of(RUN, paused)).header
    assert header["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert set(header["machine"]) >= {"cpu", "cpu_model", "instruction_set", "threads", "commit", "versions"}
    assert header["how"] == {"backend": "torch", "captured": False, "evaluation": "fp32"}


def test_the_cpus_model_is_stored_where_its_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 2\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert (environment.cpu_name(), environment.cpu_model()) == ("AMD EPYC", "family 25, model 1, stepping 2")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cpu_model": "family 26"}, "cpu model .* before, family 26 now"),
        ({"cpu_capability": "NO AVX"}, "cpu capability .* before, NO AVX now"),
        ({"versions": {"torch": "9.9"}}, r"torch .* before, 9\.9 now"),
        ({"how": {"backend": "eager", "captured": False, "evaluation": "fp32"}}, "backend torch before, eager now"),
    ],
)
def test_a_run_resumed_on_another_machine_warns_and_records_it(
    paused: Path, changes: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how := changes.get("how"):
        monkeypatch.setattr("deeprelax.experiments.runner.Runner.how", how)
    here = environment.describe()
    monkeypatch.setattr(environment, "describe", lambda device: {**here, **changes})
    with pytest.warns(UserWarning, match=f"the bits of the rest may differ: .*{named}"):
        assert store.execute(RUN, LENET, "digest", paused) == store.FINISHED
    stored = store.read(store.path_of(RUN, paused))
    assert len(stored.records) == 2
    assert [line["gone_on_at"] for line in stored.gone_on] == [10]
    assert [place["machine"] for place in stored.places] == [here, {**here, **changes}]


def test_a_run_does_not_move_between_a_cpu_and_a_gpu(paused: Path) -> None:
    """Their generators of dropout have nothing in common."""
    path = store.checkpoint_of(RUN, paused)
    content = checkpoints.read(path)
    content["lines"][0]["machine"]["gpu"] = "NVIDIA H200"
    checkpoints.write(path, content)
    with pytest.raises(StoreError, match=r"is of a run on NVIDIA H200, .* on cpu: give --device cuda, or remove it"):
        store.execute(RUN, LENET, "digest", paused)
    path.unlink()
    assert store.execute(RUN, LENET, "digest", paused) == store.FINISHED


def test_a_checkpoint_that_outlives_its_run_is_removed(paused: Path, finished: Path) -> None:
    """Where a process was killed between the run's last line and the removal."""
    path = shutil.copy(store.checkpoint_of(RUN, paused), store.checkpoint_of(RUN, finished))
    assert store.execute(RUN, LENET, "digest", finished) == store.FINISHED
    assert not path.exists()


def test_resuming_on_the_same_machine_does_not_warn(paused: Path, recwarn: pytest.WarningsRecorder) -> None:
    store.execute(RUN, LENET, "digest", paused)
    assert not recwarn.list


def test_a_gpu_without_a_backend_that_can_be_captured_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPRELAX_BACKEND", "eager")
    said = why_not_captured(small("hj"), torch.device("cuda"))
    assert said.startswith("its steps are not captured in a CUDA graph")
    assert why_not_captured(RUN, torch.device("cuda")) == ""  # torch's SGD
    assert why_not_captured(small("hj"), torch.device("cpu")) == ""
    monkeypatch.setattr(store, "why_not_captured", lambda run, device: said)
    with pytest.warns(UserWarning, match="sgd-2ep-seed0: its steps are not captured"):
        store.execute(RUN, LENET, "digest", tmp_path)
