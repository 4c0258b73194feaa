"""Whole runs of the optimizers: the ``cpu`` backend ends in the bits of the ``eager`` reference."""

import pytest
import torch
from conftest import plain, same_bits, values
from long_runs import OPTIMIZERS, STEPS, change, fill_gradients, groups, parameters
from updates import DTYPES

import deeprelax

pytest.importorskip("deeprelax._cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_long_run_gives_the_bits_of_the_reference(name: str, dtype: torch.dtype) -> None:
    make, options = OPTIMIZERS[name]
    mine, theirs = parameters(dtype), parameters(dtype)
    eager, cpu = (make(groups(p), **options, backend=b) for p, b in ((mine, "eager"), (theirs, "cpu")))
    for step in range(STEPS):
        fill_gradients(mine, step)
        for p, q in zip(mine, theirs):
            q.grad = None if p.grad is None else p.grad.detach()
        change([eager, cpu], step)
        eager.step()
        cpu.step()
        assert same_bits(mine, theirs), step
        if step % 10 == 9:
            assert plain(eager.state_dict()) == plain(cpu.state_dict()), step
    assert all(bool(p.isfinite().all()) for p in mine)
    assert not same_bits(values(mine), values(parameters(dtype)))


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_gradients_of_another_layout_reach_their_own_elements(backend: str) -> None:
    params = parameters(torch.float64)
    expected = []
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype)
        expected.append(p.detach() - 0.1 * p.grad)
    deeprelax.HJ(params, lr=0.1, inner_steps=1, alpha=0.0, backend=backend).step()
    torch.testing.assert_close([p.detach() for p in params], expected)
