"""Hyper-parameters are plain Python numbers, which other processes and versions read; floating-point modes."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make, parameters, plain, run, same_bits, started
from torch.nn import Parameter
from workers import FORKED

import deeprelax
from deeprelax import HJ

KINDS = [np.float32, np.float64, torch.tensor, lambda v: torch.tensor([v], dtype=torch.float64)]


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_scalars_and_tensors_are_taken_in_as_numbers(name: str, kind: Any):
    params, others = parameters(), parameters()
    opt = make(name, params, gamma=kind(0.25), momentum=kind(0.5), inner_steps=np.int64(3), maximize=np.bool_(True))
    other = make(name, others, gamma=0.25, momentum=0.5, inner_steps=3, maximize=True)
    run(opt, params, range(4))
    run(other, others, range(4))
    for o in (opt, other):
        o.param_groups[0].update(weight_decay=kind(0.125) if o is opt else 0.125, gamma=kind(0.5) if o is opt else 0.5)
    run(opt, params, range(4, 8))
    run(other, others, range(4, 8))
    assert same_bits(params, others)
    assert {type(v) for k, v in opt.param_groups[0].items() if k not in ("params", "betas")} <= {int, float, bool, str}


def test_scoping_counts_from_the_value_that_a_narrow_number_stands_for():
    p = Parameter(torch.zeros(1))
    opt = HJ([p], gamma=np.float16(0.37), inner_steps=1)
    for _ in range(300):
        p.grad = torch.ones(1)
        opt.step()
    assert opt.gamma == pytest.approx(float(np.float16(0.37)) * (1 - 1e-3) ** 300, rel=1e-12)
    assert opt.gamma == pytest.approx(0.2741, abs=5e-5)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_state_made_with_numpy_numbers_loads_with_weights_only(name: str, capturable: bool):
    opt, _ = started(name, gamma=np.float32(0.25), lr=torch.tensor(0.1), capturable=capturable)
    opt.param_groups[0]["weight_decay"] = np.float64(0.5)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    others = parameters()
    make(name, others, capturable=capturable).load_state_dict(torch.load(file, weights_only=True))


def step_in_a_child(opt: Any, params: list[Parameter]) -> list[Any]:
    run(opt, params, range(3, 6))
    return [p.detach().numpy() for p in params]


@pytest.fixture(scope="module")
def another() -> Iterator[Executor]:
    """Another process."""
    with ProcessPoolExecutor(1, FORKED) as process:
        yield process


@pytest.mark.parametrize("capturable", [False, True])
def test_an_optimizer_can_be_sent_to_another_process(name: str, capturable: bool, another: Executor):
    params = [Parameter(torch.linspace(-1, 1, 9))]
    opt = make(name, params, capturable=capturable)
    run(opt, params, range(3))
    mine, ours = copy.deepcopy((params, opt))  # the child steps the very memory of params
    found = another.submit(step_in_a_child, opt, params).result(timeout=90)
    run(ours, mine, range(3, 6))
    assert same_bits([torch.from_numpy(a) for a in found], mine)
    opt.eval()  # its own state is as it was


def test_an_optimizer_goes_on_where_it_was_sent_from(name: str):
    """Sending moves the state into shared memory; the weights were there before."""
    params = [Parameter(torch.linspace(-1, 1, 9).share_memory_())]
    opt = make(name, params)
    run(opt, params, range(3))
    others, other = copy.deepcopy((params, opt))
    addresses = [t.data_ptr() for t in opt.state[params[0]].values()]
    ForkingPickler.dumps(opt)
    assert addresses != [t.data_ptr() for t in opt.state[params[0]].values()]
    run(opt, params, range(3, 9))
    run(other, others, range(3, 9))
    assert same_bits(params, others)
    assert plain(opt.state_dict()) == plain(other.state_dict())


# States of version 0.1.

OLD = {"norm": -1.0, "norm_before": -1.0, "gamma_schedule": "scoping"}


def as_saved_by_0_1(state: dict[str, Any]) -> dict[str, Any]:
    """A state without momenta that no step had made yet, with the groups of version 0.1."""
    groups = [{k: v for k, v in {**g, **OLD}.items() if k != "cycle_gamma"} for g in state["param_groups"]]
    return {**state, "param_groups": groups}


def test_a_state_of_version_0_1_loads_and_continues(name: str):
    opt, params = started(name, 6)
    others = [Parameter(p.detach().clone()) for p in params]
    other = make(name, others)
    other.load_state_dict(as_saved_by_0_1(opt.state_dict()))
    run(opt, params, range(6, 12))
    run(other, others, range(6, 12))
    assert same_bits(params, others)
    assert not set(OLD) & set(other.param_groups[0])


def test_an_adaptive_state_of_version_0_1_is_refused_with_the_cure(name: str, unchanged: Any):
    opt, params = started(name)
    state = as_saved_by_0_1(opt.state_dict())
    state["param_groups"][0]["gamma_schedule"] = "adaptive"
    same = unchanged(opt, params)
    with pytest.raises(ValueError, match=r"gamma_schedule='adaptive'.*AdaptiveGamma"):
        opt.load_state_dict(state)
    assert same()


# Floating-point modes and imports.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_flushed_denormals_are_the_same_for_any_number_of_threads(name: str, dtype: torch.dtype):
    if "cpu" not in deeprelax.kernels.available() or not torch.set_flush_denormal(True):
        pytest.skip("no compiled kernels, or a processor without this mode")
    threads, results = torch.get_num_threads(), []
    tiny = torch.finfo(torch.float32 if dtype == torch.bfloat16 else dtype).tiny
    torch.set_flush_denormal(False)  # torch's own threads do not take it over
    weights = (torch.linspace(-2, 2, 1 << 18, dtype=torch.float64) * tiny).to(dtype)
    gradients = [weights / (3 + step) for step in range(6)]
    torch.set_flush_denormal(True)
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            p = Parameter(weights.clone())
            opt = make(name, [p], **({"temperature": 0.0} if name == "EntropySGD" else {}))
            for gradient in gradients:
                p.grad = gradient
                opt.step()
            results.append(p.detach().clone())
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    assert same_bits(results[:1], results[1:2])
    assert same_bits(results[:1], results[2:])


def test_importing_does_not_load_the_compiler():
    code = "import sys, deeprelax; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0
