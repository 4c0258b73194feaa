"""Whole runs of the optimizers: the ``cpu`` backend ends in the bits of the ``eager`` reference."""

import pytest
import torch
from long_runs import CHANGES, OPTIMIZERS, fill_gradients, parameters
from updates import DTYPES, same_bits

import deeprelax

pytest.importorskip("deeprelax._cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_long_run_gives_the_bits_of_the_reference(name: str, dtype: torch.dtype) -> None:
    make, options = OPTIMIZERS[name]
    mine, theirs = parameters(dtype), parameters(dtype)
    eager, cpu = (
        make([{"params": p[:3]}, {"params": p[3:], "lr": 0.02}], **options, backend=backend)
        for p, backend in ((mine, "eager"), (theirs, "cpu"))
    )
    data = torch.Generator().manual_seed(9)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for step in range(200 if dtype == torch.float32 else 60):
        fill_gradients(mine, step, torch.randn(4, 3, 6, 6, generator=data, dtype=wide))
        for p, q in zip(mine, theirs):
            q.grad = None if p.grad is None else p.grad.detach()
        if step % 13 == 12:
            for opt in (eager, cpu):
                opt.param_groups[step % 2].update(CHANGES[step // 13 % len(CHANGES)])
                opt.param_groups[1]["inner_steps"] = opt.param_groups[0]["inner_steps"]
        eager.step()
        cpu.step()
        for p, q in zip(mine, theirs):
            assert same_bits(p.detach().reshape(-1), q.detach().reshape(-1)), step
        if step % 10 == 9:
            a, b = eager.state_dict(), cpu.state_dict()
            assert a["param_groups"] == b["param_groups"]
            for key, entry in a["state"].items():
                assert entry.keys() == b["state"][key].keys()
                assert all(same_bits(v.reshape(-1), b["state"][key][n].reshape(-1)) for n, v in entry.items()), step
        if step % 31 == 30:
            for opt in (eager, cpu):
                opt.eval()
                opt.train()
    assert all(bool(p.isfinite().all()) for p in mine)
    assert any(not same_bits(p.detach().reshape(-1), q.reshape(-1)) for p, q in zip(mine, parameters(dtype)))


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_gradients_of_another_layout_reach_their_own_elements(backend: str) -> None:
    params = parameters(torch.float64)
    expected = []
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype)
        expected.append(p.detach() - 0.1 * p.grad)
    deeprelax.HJ(params, lr=0.1, inner_steps=1, alpha=0.0, backend=backend).step()
    torch.testing.assert_close([p.detach() for p in params], expected)
