"""Whole runs on a GPU give the bits of the reference on the CPU, in weights and state."""

from __future__ import annotations

from typing import Any

import conftest
import pytest
import torch
from long_runs import CHANGES, OPTIMIZERS, fill_gradients, parameters
from on_gpu import BACKENDS, flat, give_gradients, parameters_there, use
from updates import DTYPES, same_bits

# Triton compiles a kernel for each combination of options.
STEPS, DTYPES_OF = {"cuda": 60, "triton": 25}, {"cuda": DTYPES, "triton": [torch.float32, torch.bfloat16]}


@pytest.mark.parametrize(("flatten", "capturable"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_run_gives_the_bits_of_the_reference_on_the_cpu(
    backend: str, name: str, flatten: bool, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients come at new addresses, some unaligned, some of another layout, some missing; options change."""
    use(monkeypatch, backend, capturable)
    make, options = OPTIMIZERS[name]
    for dtype in DTYPES_OF[backend]:
        mine = parameters(dtype)
        theirs = parameters_there(mine)
        there = {"backend": conftest.BACKENDS.get(backend, backend), "flatten": flatten, "capturable": capturable}
        reference, opt = (
            make([{"params": p[:3]}, {"params": p[3:], "lr": 0.02}], **options, **more)
            for p, more in (
                (mine, {"backend": "eager"}),
                (theirs, there),
            )
        )
        data = torch.Generator().manual_seed(9)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        for step in range(STEPS[backend]):
            fill_gradients(mine, step, torch.randn(4, 3, 6, 6, generator=data, dtype=wide))
            give_gradients(mine, theirs)
            if step % 13 == 12 and backend == "cuda":
                change([reference, opt], step)
            reference.step()
            opt.step()
            for p, q in zip(mine, theirs):
                assert same_bits(flat(p), flat(q)), (dtype, step)
            if step % 31 == 30:
                for each in (reference, opt):
                    each.eval()
                    each.train()
        a, b = reference.state_dict(), opt.state_dict()
        assert [clock(group) for group in a["param_groups"]] == [clock(group) for group in b["param_groups"]]
        for key, entry in a["state"].items():
            for what, value in entry.items():
                assert same_bits(flat(value), flat(b["state"][key][what])), (dtype, key, what)


def change(opts: list[Any], step: int) -> None:
    for opt in opts:
        opt.param_groups[step % 2].update(CHANGES[step // 13 % len(CHANGES)])
        opt.param_groups[1]["inner_steps"] = opt.param_groups[0]["inner_steps"]


def clock(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("step", "phase", "gamma", "lr", "seed")}
