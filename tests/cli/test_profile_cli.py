"""``deeprelax profile``: what it prints and stores, and what it refuses before it measures."""

from __future__ import annotations

import functools
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import refused, run

from deeprelax.benchmark import profile_report, profiler
from deeprelax.benchmark.profiler import Plan
from deeprelax.benchmark.shapes import named
from deeprelax.benchmark.traffic import bytes_moved


@pytest.fixture(autouse=True)
def _small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "COPY_BYTES", {"cpu": 2**16, "cuda": 2**16})


command = functools.partial(run, "profile")


@pytest.mark.parametrize(
    ("arguments", "optimizer", "options"),
    [
        (["--no-noise", "--dtype", "bfloat16"], "EntropySGD", {"temperature": 0.0}),
        (
            ["--noise", "--momentum", 0.9, "--inner-momentum", 0.8],
            "EntropySGD",
            {"momentum": 0.9, "inner_momentum": 0.8},
        ),
        (["--optimizer", "hj", "--inner-steps", 2, "--dtype", "float64"], "HJ", {}),
        (["--optimizer", "heat", "--backend", "eager", "--weight-decay", 0.1], "Heat", {"weight_decay": 0.1}),
    ],
)
def test_the_command_prints_and_stores_where_the_time_went(
    arguments: list[object], optimizer: str, options: dict[str, Any], tmp_path: Path
) -> None:
    files = [tmp_path / "out" / "profile.json", tmp_path / "p.png", tmp_path / "t.json"]
    output = command("--shapes", "64x3,7", "--steps", 2, *arguments, "--out", tmp_path / "out",
                     "--plot", files[1], "--trace", files[2]).output  # fmt: skip
    result = json.loads(files[0].read_text())
    assert (result["optimizer"], result["options"], result["rounds"]) == (optimizer, options, 2)
    assert (result["tensors"], result["elements"]) == (2, 199)
    assert result["machine"]["versions"]["torch"] == torch.__version__
    dtype = getattr(torch, result["dtype"])
    moving = {name: value for name, value in options.items() if name != "temperature"}
    for row in result["calls"]:
        assert row["bytes_per_element"] == bytes_moved(optimizer, dtype, row["kind"], **moving)
        assert row["launches"] == 1
        assert min(row["kernel_us"], row["host_us"], row["gb_per_s"], row["of_copy"]) > 0
    assert sum(row["calls_per_cycle"] for row in result["calls"]) == result["inner_steps"]
    assert [row["name"] for row in result["peers"]] == list(profiler.PEERS)
    assert all(row["ours_by_this"] > 0 for row in result["peers"])
    for shown in ("kernels µs", "host µs", "launches", "GB/s", "of a copy's", "average", *profiler.PEERS):
        assert shown in output
    assert all(f"written: {file}" in output.replace("\n", "") for file in files)
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files[2].read_text())["traceEvents"]


def test_without_peers_no_other_optimizer_runs() -> None:
    assert "torch.optim" not in command("--shapes", 64, "--steps", 1, "--no-peers").output


def test_the_number_of_threads_is_that_asked_for_and_then_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    command("--shapes", 64, "--steps", 1, "--threads", before + 1, "--out", tmp_path)
    assert json.loads((tmp_path / "profile.json").read_text())["machine"]["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "resnet50", "--shapes", "4"], "--model and --shapes are mutually exclusive"),
        (["--shapes", "4x"], "'4x' in '4x' is not a shape"),
        (["--shapes", "4", "--optimizer", "hj", "--no-noise"], "--noise has no meaning for hj"),
        (["--shapes", "4", "--optimizer", "heat", "--inner-momentum", "0.9"], "--inner-momentum has no meaning"),
        (["--shapes", "4", "--momentum", "-1"], "'--momentum': -1.0 is not in the range x>=0"),
        (["--shapes", "4", "--optimizer", "sgd"], "'sgd' is not one of 'heat', 'entropy-sgd', 'hj'"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: list[str], named: str) -> None:
    assert named in refused("profile", *arguments)


@pytest.mark.parametrize(
    ("option", "path", "named"),
    [
        ("--plot", "a.xyz", "--plot a.xyz: its name must end in .png, .svg, .pdf"),
        ("--plot", "/proc/a.png", "--plot: /proc/a.png cannot be written"),
        ("--out", "/proc/foo", "--out: /proc/foo/profile.json cannot be written"),
        ("--trace", "/proc/x.json", "--trace: /proc/x.json cannot be written"),
        ("--trace", "/dev/full", "--trace: /dev/full cannot be written (/dev/full exists and is not a file)"),
        ("--plot", "no/such/folder/a.png", "cannot be written (no folder no/such/folder)"),
        ("--trace", "no/such/folder/a.json", "cannot be written (no folder no/such/folder)"),
    ],
)
def test_an_unwritable_file_is_refused_before_measuring(
    option: str, path: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Plan] = []
    monkeypatch.setattr(profiler, "profile", lambda plan, *_: measured.append(plan))
    assert named in refused("profile", "--shapes", 4, option, path)
    assert not measured


@pytest.fixture
def room() -> Iterator[Callable[[int], None]]:
    """``room(n)``: from now on a write beyond a file's first n bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_trace_that_cannot_be_written_costs_no_timings(
    name: str, tmp_path: Path, room: Callable[[int], None]
) -> None:
    path = tmp_path / name
    path.write_text("an earlier one")
    room(4000)  # the numbers fit, half of the trace
    arguments = ("--shapes", 64, "--steps", 1, "--no-peers", "--out", tmp_path, "--trace", path)
    output = command(*arguments, code=1).output
    assert "average" in output  # the table was shown
    assert json.loads((tmp_path / "profile.json").read_text())["calls"]
    assert [line for line in output.splitlines() if line.startswith(("written", "Error"))] == [
        f"written: {tmp_path / 'profile.json'}",
        f"Error: torch's profiler could not write all of {path}; is the disk full?",
    ]
    assert path.read_text() == "an earlier one"


def test_a_disk_that_fills_up_in_a_run_is_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(result: dict[str, Any], path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profile_report, "draw", full)
    output = command("--shapes", 64, "--steps", 1, "--no-peers", "--plot", tmp_path / "a.png", code=1).output
    assert "average" in output  # the table was shown
    assert "No space left on device" in output
    assert "written: " not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert "torch finds no GPU" in command("--device", "cuda", code=1).output


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "free_memory", lambda device: 30 * 10**9)
    output = " ".join(command("--model", "decoder-1.3b", code=1).output.split())
    need = (4 + 5) * 4 * named("decoder-1.3b").elements / 1e9  # w g x z, and of the peers w g m, m v
    assert f"takes {need:.1f} GB, and 30.0 GB are free on cpu; try --no-peers" in output
