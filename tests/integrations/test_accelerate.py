"""accelerate's wrapper: what reaches through it, a saved model at x, and ``save_state`` in mid-cycle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import make, same_bits, values
from safetensors.torch import load_file
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def prepared(name: str) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    return (accelerator, *accelerator.prepare(model, make(name, model.parameters())))


def train(accelerator: Any, model: Any, opt: Any, steps: range) -> None:
    """Each with two batches."""
    for batch in range(2 * steps.start, 2 * steps.stop):
        with accelerator.accumulate(model):
            inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(batch))
            accelerator.backward(model(inputs).square().mean())
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            opt.step()
            opt.zero_grad()


def test_a_state_saved_in_mid_cycle_is_loaded_exactly_and_the_model_is_x(name: str, tmp_path: Path):
    accelerator, model, opt = prepared(name)
    train(accelerator, model, opt, range(6))
    assert (opt.optimizer.phase, opt.optimizer.outer_step_happened) == (2, False)
    accelerator.save_state(str(tmp_path / "state"))
    with opt.optimizer.at_x():
        x = values(model.parameters())
        accelerator.save_model(model, str(tmp_path / "model"))
    assert same_bits([load_file(tmp_path / "model" / "model.safetensors")[n] for n in ("weight", "bias")], x)
    train(accelerator, model, opt, range(6, 11))

    again, other, optimizer = prepared(name)
    again.load_state(str(tmp_path / "state"))
    train(again, other, optimizer, range(6, 11))
    assert same_bits(model.parameters(), other.parameters())
    with optimizer.optimizer.at_x():
        x = values(other.parameters())
    optimizer.eval()  # the wrapper passes on this and train()
    assert same_bits(other.parameters(), x)
    optimizer.train()
    assert same_bits(model.parameters(), other.parameters())
    optimizer.optimizer.restart()
    assert optimizer.optimizer.phase == 0
