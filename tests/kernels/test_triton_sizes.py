"""The table of the Triton kernels' sizes, and the script that is to choose them on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import interpreted

pytest.importorskip("triton")

import tune
from common import DTYPES, RULES, Rows

from deeprelax.benchmark.timing import HostTimer, Watch
from deeprelax.kernels.triton.backend import Triton
from deeprelax.kernels.triton.sizes import SIZES, Kind, Sizes

CPU = torch.device("cpu")


@interpreted
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_is_tried_with_other_sizes(rule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow: one other candidate, one call."""
    monkeypatch.setattr(tune, "CALLS", 1)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(tune, "candidates", lambda bytes_each, noise: [Sizes(256, 8 if bytes_each == 2 else 4, 1)])
    rows = Rows(tmp_path, "tune", CPU)
    for dtype in DTYPES:
        backends = tune.triton_backends(rule, dtype)
        best = tune.try_all(rows, backends, rule, dtype, 2**8, HostTimer(Watch()))
        kind = rule.kernel.name, DTYPES[dtype].itemsize, rule.noise
        assert next(iter(backends)) == str(SIZES[kind])
        assert best in backends
        (line,) = eval("{" + tune.line(rule, dtype, best) + "}", {"Sizes": Sizes}).items()
        assert (line[0], str(line[1])) == (kind, best)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1 + 3 * len(DTYPES)


def test_other_sizes_change_the_programs_of_their_kind_alone() -> None:
    for rule in RULES:
        kind = rule.kernel.name, 4, rule.noise
        for text, backend in tune.triton_backends(rule, "fp32").items():
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
