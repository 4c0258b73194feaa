"""A run of Table 1 whose gradients are replays of one CUDA graph learns, and resumes with the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from on_gpu import only_real
from test_reproduce import data_for, errors, final_state, narrow, small

from deeprelax.experiments.runner import Runner, can_be_captured
from deeprelax.experiments.table1 import protocol, store
from deeprelax.experiments.table1.protocol import OPTIMIZERS

__all__ = ["narrow"]  # a fixture for every test here
# Where the program of the authors has more momentum than these few easy images bear.
GENTLER = {("lenet", "entropy-sgd"): {"lr": 0.03}, ("lenet", "sgd"): {"lr": 0.03}}


@only_real
@pytest.mark.parametrize("changes", [{}, {"autocast": "bf16"}, {"tf32": True}], ids=["float32", "bf16", "tf32"])
@pytest.mark.parametrize("model", protocol.MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_run_learns_and_resumes_with_the_same_bits(
    tmp_path: Path, optimizer: str, model: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captures = []
    captured = Runner._captured
    monkeypatch.setattr(Runner, "_captured", lambda self: captures.append(1) or captured(self))
    data = data_for(model).to(torch.device("cuda"))
    run = small(optimizer, model, epochs=16, evaluate_every=8, **changes)
    run = dataclasses.replace(run, options={**run.options, **GENTLER.get((model, optimizer), {})})
    store.execute(run, data, "digest", tmp_path / "whole")
    assert store.execute(run, data, "digest", tmp_path / "parts", deadline=0.0) == store.PAUSED
    assert store.execute(run, data, "digest", tmp_path / "parts") == store.FINISHED
    assert final_state(run, tmp_path / "whole") == final_state(run, tmp_path / "parts")
    assert errors(run, tmp_path / "whole")[-1][2] < 0.5
    assert len(captures) == (3 if can_be_captured(run, torch.device("cuda")) else 0)
