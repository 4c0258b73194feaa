"""Both Trainers in two processes: every checkpoint and the end are x, and a resumed run is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_bits
from workers import launched

NAMES = ("EntropySGD", "Heat")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process made of every optimizer."""
    folder = tmp_path_factory.mktemp("two")
    launched(2, Path(__file__).with_name("two_processes.py"), folder, *NAMES, folder=folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("library", ["transformers", "lightning"])
@pytest.mark.parametrize("kind", NAMES)
def test_checkpoints_and_the_end_are_x_and_a_resumed_run_is_exact(kind: str, library: str, ranks: list[dict[str, Any]]):
    found = [rank[f"{library} {kind}"] for rank in ranks]
    assert len(found[0]["x"]) == 7
    for each in found:
        assert all(same_bits(a, b) for a, b in zip(each["x"], found[0]["x"], strict=True))
        assert same_bits(each["saved"], each["x"][5])
        assert same_bits(each["end"], each["x"][6])
        (resumed,) = each["resumed"]
        assert same_bits(resumed, each["x"][6])
        assert each["same"]
    for shown, x in zip(found[1].get("shown", [])[1:], found[1]["x"][2::3]):  # the first is the sanity check
        assert same_bits(shown, x)
