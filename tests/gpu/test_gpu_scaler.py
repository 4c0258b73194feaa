"""``torch.amp.GradScaler("cuda")``: in the kernel with ``capturable=True``, around the step without it."""

from __future__ import annotations

import pytest
import torch
from conftest import make, parameters, same_bits, set_gradients, values
from on_gpu import BACKENDS, DEVICE, give_gradients, parameters_there, use


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scaled_gradients_give_the_bits_of_unscaled_ones_through_overflows(
    name: str, backend: str, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale stays a power of two, so that unscaling is exact; a skipped step is as if its batch had not been."""
    use(monkeypatch, backend, capturable)
    mine = parameters()
    theirs = parameters_there(mine)
    reference = make(name, mine, backend="eager")
    opt = make(name, theirs, backend=backend, capturable=capturable)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0, growth_interval=3)
    scaler.scale(torch.ones(1, device=DEVICE))  # makes its tensors
    for step in range(14):
        overflow = step in (3, 8, 9)
        set_gradients(mine, step)
        give_gradients(mine, theirs)
        with torch.no_grad():
            for q in theirs:
                q.grad.mul_(scaler.get_scale())
        if overflow:
            theirs[0].grad[1] = float("inf")
        else:
            reference.step()
        scaler.step(opt)
        scaler.update()
        assert same_bits(values(mine), [v.cpu() for v in values(theirs)]), step
    assert opt.phase == reference.phase
    assert opt.state_dict()["param_groups"][0]["step"] == 11
