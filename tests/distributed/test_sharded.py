"""Parameters sharded as DTensors: a run has the bits of one with whole tensors, however many processes share them."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from workers import processes

run = functools.partial(processes, program="sharded", timeout=280.0)


@pytest.mark.timeout(300)
def test_every_number_of_parts_gives_the_bits_of_whole_tensors(tmp_path: Path) -> None:
    """One to four parts, of the first, second or last dimension, on two-dimensional meshes, with a replica, in turn."""
    results = run(4, "bits", tmp_path)
    for result in results:
        assert int(result.pop("count")[0]) > 1000
        assert result == {}


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_gives_these_bits_as_well(tmp_path: Path) -> None:
    for result in run(2, "bits", tmp_path, fresh=True, TRITON_INTERPRET="1", NAMES="EntropySGD"):
        assert int(result.pop("count")[0]) > 10
        assert result == {}


@pytest.mark.timeout(300)
def test_fsdp_and_tensor_parallelism_give_the_bits_of_whole_tensors(tmp_path: Path) -> None:
    for result in run(4, "compositions", tmp_path):
        assert result["wrong"] == []
        assert any("_StridedShard" in kind for kind in result["kinds"])
        assert "(Shard(dim=0), Shard(dim=1))" in result["kinds"]


def test_validation_under_fsdp_is_at_x_and_leaves_no_trace(tmp_path: Path) -> None:
    """After a forward pass without gradients FSDP holds on to the weights that it gathered."""
    for result in run(2, "validation", tmp_path):
        assert len(result) == len(sharded.OPTIMIZERS)
        assert all(result.values()), result


def test_norms_under_sequence_parallelism_are_those_of_one_process(tmp_path: Path) -> None:
    """Their gradients are sums over the processes, which have to be added up first."""
    results = run(2, "sequence_parallel", tmp_path)
    for result in results:
        assert "(Partial(sum),)" in result["gradients"]
        assert result["error"] < 1e-6
        assert all(map(torch.equal, result["norms"], results[0]["norms"]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where two processes have saved their runs, and how these ended."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run(2, "save", folder)[0]


@pytest.mark.parametrize(
    ("first", "size"), [(0, 4), (1, 1), (2, 0)], ids=["four processes", "one process", "no process group"]
)
def test_a_checkpoint_of_two_processes_resumes_exactly_on(
    first: int, size: int, saved: tuple[Path, dict[str, Any]]
) -> None:
    """In mid-cycle: the bits of a run that was not interrupted. Each resumes another way of saving of each case."""
    folder, expected = saved
    for found in run(max(size, 1), "load", folder, GROUP=str(min(size, 1)), FIRST=str(first)):
        assert len(found) == len(expected)
        for name, weights in found.items():
            case = next(case for case in expected if name.startswith(case + " "))
            assert all(map(torch.equal, weights, expected[case])), name


def test_what_sharded_runs_refuse_is_reported_by_every_process(tmp_path: Path) -> None:
    results = run(2, "refusals", tmp_path)
    for result in results:
        assert result == results[0]
        assert "is a partial sum" in result["partial"]
        assert "AdaptiveGamma does not support sharded parameters" in result["adaptive gamma"]
        assert (
            "x of the saved state is (Shard(dim=1),), and the parameter (Shard(dim=0),)" in result["another placement"]
        )
        assert "is a plain tensor, and the parameter (Shard(dim=0),)" in result["whole tensors"]
        assert "call opt.train() first" in result["eval mode"]
        assert result["unchanged"]


def test_workers_that_share_their_weights_have_the_bits_of_whole_ones(tmp_path: Path) -> None:
    """Elastic-SGD and Parle on two and three workers of one process each, and of two."""
    results = processes(6, "sharded_workers", tmp_path, timeout=200.0)
    for size, kind in itertools.product((2, 3), ("ElasticSGD", "Parle")):
        for rank, found in enumerate(results[: 2 * size]):
            whole = results[rank - rank % 2][f"{size} {kind} whole"]
            for a, b in zip(whole, found[f"{size} {kind} shared"], strict=True):
                assert all(map(torch.equal, a, b)), (size, kind, rank)
            other = results[0 if rank > 1 else 2][f"{size} {kind} whole"]
            assert not any(map(torch.equal, whole[4], other[4]))
