"""The table of the Triton kernels' sizes, and the script that is to choose them on a GPU."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import interpreted

pytest.importorskip("triton")

import common
import tune
from common import DTYPES, RULES

from deeprelax.benchmark.timing import HostTimer, Watch
from deeprelax.kernels.triton.backend import Triton
from deeprelax.kernels.triton.sizes import SIZES, Kind, Sizes


@interpreted
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_is_tried_with_other_sizes(
    rule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interpreter is slow: one other candidate, one call. Lines for sizes.py are printed."""
    monkeypatch.setattr(common, "GPU", torch.device("cpu"))
    monkeypatch.setattr(common, "timer", lambda: HostTimer(Watch()))
    made = {"CALLS": 1, "ROUNDS": 1, "ELEMENTS": 2**8, "OUT": tmp_path, "RULES": (rule,)}
    made["candidates"] = lambda bytes_each, noise: [Sizes(256, 8 if bytes_each == 2 else 4, 1)]
    for name, value in made.items():
        monkeypatch.setattr(tune, name, value)
    monkeypatch.setattr(sys, "argv", ["tune.py", "--backend", "triton"])
    tune.main()
    printed = eval("{" + capsys.readouterr().out + "}", {"Sizes": Sizes})
    assert list(printed) == [(rule.kernel.name, dtype.itemsize, rule.noise) for dtype in DTYPES.values()]
    assert all(sizes in (SIZES[kind], *tune.candidates(*kind[1:])) for kind, sizes in printed.items())
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1 + 3 * len(DTYPES)


def test_other_sizes_change_the_programs_of_their_kind_alone() -> None:
    for rule in RULES:
        kind = rule.kernel.name, 4, rule.noise
        backends = tune.triton_backends(rule, "fp32")
        assert next(iter(backends)) == str(SIZES[kind])
        for text, backend in backends.items():
            assert isinstance(backend, Triton)
            assert str(backend._sizes[kind]) == text
            assert all(backend._sizes[other] == SIZES[other] for other in SIZES if other != kind)


@pytest.mark.parametrize("kind", SIZES)
def test_a_thread_accesses_16_bytes_of_weights(kind: Kind) -> None:
    for sizes in (SIZES[kind], *tune.candidates(kind[1], kind[2])):
        assert sizes.block // (32 * sizes.warps) * kind[1] >= 16


def test_the_present_sizes_are_among_the_candidates() -> None:
    assert all(present in tune.candidates(kind[1], kind[2]) for kind, present in SIZES.items())


@pytest.mark.parametrize("sizes", [(1000, 4, 4), (1024, 2, 8), (1024, 8, 8), (1024, 4, 3), (0, 4, 8)])
def test_sizes_that_no_kernel_can_have_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be powers of two"):
        Sizes(*sizes)
