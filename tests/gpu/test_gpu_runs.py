"""Whole runs on a GPU give the bits of the reference on the CPU, in weights and state."""

from __future__ import annotations

from typing import Any

import conftest
import pytest
import torch
from long_runs import OPTIMIZERS, STEPS, change, fill_gradients, groups, parameters
from on_gpu import BACKENDS, flat, give_gradients, parameters_there, use
from updates import DTYPES, same_bits

# Triton compiles a kernel for each combination of options.
STEPS_OF, DTYPES_OF = {"cuda": STEPS, "triton": 25}, {"cuda": DTYPES, "triton": [torch.float32, torch.bfloat16]}


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
        reference, opt = make(groups(mine), **options, backend="eager"), make(groups(theirs), **options, **there)
        for step in range(STEPS_OF[backend]):
            fill_gradients(mine, step)
            give_gradients(mine, theirs)
            if backend == "cuda":
                change([reference, opt], step)
            reference.step()
            opt.step()
            for p, q in zip(mine, theirs):
                assert same_bits(flat(p), flat(q)), (dtype, step)
        a, b = reference.state_dict(), opt.state_dict()
        assert [clock(group) for group in a["param_groups"]] == [clock(group) for group in b["param_groups"]]
        for key, entry in a["state"].items():
            for what, value in entry.items():
                assert same_bits(flat(value), flat(b["state"][key][what])), (dtype, key, what)


def clock(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("step", "phase", "gamma", "lr", "seed")}
