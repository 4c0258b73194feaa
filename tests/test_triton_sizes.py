"""The table of the Triton kernels' sizes, and the script that is to choose them on a GPU."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from interpreter import INTERPRETED, interpreted, run_interpreted

pytest.importorskip("triton")

from deeprelax.kernels.triton_sizes import SIZES, Sizes

if not INTERPRETED:

    def test_the_sweep_runs_in_the_interpreter() -> None:
        run_interpreted(__file__)


@pytest.fixture
def tune() -> ModuleType:
    path = Path(__file__).parent.parent / "bench/tune_triton.py"
    spec = importlib.util.spec_from_file_location("tune_triton", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@interpreted
def test_the_sweep_times_every_kind_of_kernel(tune: ModuleType) -> None:
    for kind, present in SIZES.items():
        rows = tune.measure(kind, [present, Sizes(256, present.per_thread, 1)], 300, torch.device("cpu"), 1)
        assert [(row["block"], row["present"]) for row in rows] == [(present.block, True), (256, False)]
        assert all(row["ms"] > 0 for row in rows)


@interpreted
def test_the_sweep_stores_every_candidate_and_prints_the_fastest(tune: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new/sizes.json"
    arguments = ["--rule", "hj", "--device", "cpu", "--elements", "300", "--repeats", "1", "--out", str(out)]
    done = CliRunner().invoke(tune.main, arguments, catch_exceptions=False)
    rows = json.loads(out.read_text())["rows"]
    kinds = [kind for kind in SIZES if kind[0] == "hj"]
    assert len(rows) == sum(len(list(tune.candidates(kind))) for kind in kinds)
    fastest = min((row for row in rows if row["bytes"] == 2), key=lambda row: row["ms"])
    sizes = Sizes(fastest["block"], fastest["per_thread"], fastest["warps"])
    assert f'    ("hj", 2, False): Sizes({sizes.block}, {sizes.per_thread}, {sizes.warps}),' in done.output


def test_the_sweep_says_that_there_is_no_gpu(tune: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(tune.main, [])
    assert done.exit_code == 2
    assert "there is no GPU to measure on" in done.output


@pytest.mark.parametrize("kind", SIZES)
def test_a_thread_accesses_16_bytes_of_weights(tune: ModuleType, kind: tuple[str, int, bool]) -> None:
    for sizes in (SIZES[kind], *tune.candidates(kind)):
        assert sizes.block // (32 * sizes.warps) * kind[1] >= 16


def test_the_present_sizes_are_among_the_candidates(tune: ModuleType) -> None:
    assert all(present in tune.candidates(kind) for kind, present in SIZES.items())


@pytest.mark.parametrize("sizes", [(1000, 4, 4), (1024, 2, 8), (1024, 8, 8), (1024, 4, 3), (0, 4, 8)])
def test_sizes_that_no_kernel_can_have_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be powers of two"):
        Sizes(*sizes)
