"""``opt.diagnostics()`` is what a plain computation from the state and the gradients gives, and waits for nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import make, parameters, plain, set_gradients, values
from distributed.workers import Thread, threads
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

import deeprelax

NORM = {
    **{"EntropySGD": "x_z_norm", "EntropyAdamW": "x_z_norm", "Parle": "x_z_norm"},
    **{"HJ": "p_norm", "Heat": "s_norm", "ElasticSGD": "x_y_norm"},
}
RATIO = ("EntropySGD", "ElasticSGD", "Parle")


class NothingRead(TorchDispatchMode):
    """An error where a tensor is read to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def vector(name: str, opt: Any, p: Parameter) -> list[float]:
    """What the cycle has gathered for a parameter, from the state."""
    entry = {key: value.double().flatten().tolist() for key, value in opt.state[p].items()}
    if name in ("HJ", "Heat"):
        return entry["p" if name == "HJ" else "s"]
    other = entry["z"] if name != "ElasticSGD" else entry.get("y", p.detach().double().flatten().tolist())
    return [a - b for a, b in zip(entry["x"], other, strict=True)]


def expected(name: str, opt: Any, params: Sequence[Parameter], phase: int) -> dict[str, float]:
    v = [e for p in params for e in vector(name, opt, p)]
    if phase == 0 and name != "ElasticSGD":
        v = [0.0] * len(v)
    g = [e for p in params for e in (torch.zeros_like(p) if p.grad is None else p.grad).double().flatten().tolist()]
    norm, grad_norm = math.hypot(*v), math.hypot(*g)
    cosine = sum(a * b for a, b in zip(v, g)) / (norm * grad_norm) if norm * grad_norm else math.nan
    found = {"phase": phase, "gamma": opt.gamma, NORM[name]: norm, "cosine": cosine}
    if name in RATIO:
        found["inner_lr_over_gamma"] = float(opt.param_groups[0]["inner_lr"]) / opt.gamma
    return found


def same(found: dict[str, Tensor], wanted: dict[str, float]) -> bool:
    numbers = {key: value.item() for key, value in found.items()}
    return numbers == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("capturable", [False, True], ids=["host clock", "device clock"])
def test_diagnostics_are_those_of_a_plain_computation(name: str, capturable: bool) -> None:
    params = [*parameters(), *parameters(torch.bfloat16, seed=1)]
    groups = [{"params": params[:4]}, {"params": params[4:]}]
    opt = make(name, groups, capturable=capturable)
    for step in range(6):
        set_gradients(params, step, without=[2] if step == 1 else [])
        opt.step()
        found = opt.diagnostics()
        assert same(found, expected(name, opt, params, (step + 1) % 4))
        assert {key: (value.dtype, value.shape) for key, value in found.items()} == {
            key: (torch.int64 if key == "phase" else torch.float64, ()) for key in found
        }


@pytest.mark.parametrize("capturable", [False, True], ids=["host clock", "device clock"])
def test_diagnostics_read_nothing_to_the_host_and_change_nothing(name: str, capturable: bool, unchanged: Any) -> None:
    params = parameters()
    opt = make(name, params, capturable=capturable)
    for step in range(6):
        check = unchanged(opt, params)
        with NothingRead():
            found = opt.diagnostics()
        assert check()
        before = {key: value.clone() for key, value in found.items()}
        set_gradients(params, step)
        opt.step()
        assert plain(before) == plain(found)  # and what was returned does not change later


def test_eval_mode_and_frozen_parameters_do_not_change_diagnostics(name: str) -> None:
    params = parameters()
    params[3].requires_grad_(False)
    opt = make(name, params)
    for step in range(3):
        set_gradients(params, step)
        opt.step()
    before = opt.diagnostics()
    assert same(before, expected(name, opt, [p for i, p in enumerate(params) if i != 3], 3))
    opt.eval()
    assert plain(opt.diagnostics()) == plain(before)


@pytest.mark.parametrize("name", ["ElasticSGD", "Parle"])
def test_each_worker_has_its_own_diagnostics(name: str) -> None:
    def work(replicas: Thread) -> tuple[bool, float]:
        params = parameters()
        opt = make(name, params, replicas=replicas)
        for step in range(6):
            set_gradients(params, step + 10 * replicas.rank)
            opt.step()
        found = opt.diagnostics()
        return same(found, expected(name, opt, params, 2)), found[NORM[name]].item()

    (first, norm), (second, other) = threads(2, work)
    assert first
    assert second
    assert norm != other


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_an_average_that_is_not_kept_is_the_inner_point(alpha: float) -> None:
    params = parameters()
    adamw = make("EntropyAdamW", params, alpha=alpha)
    others = parameters()
    loop = deeprelax.OuterLoop(torch.optim.SGD(others, lr=0.1), inner_steps=4, alpha=alpha)
    for opt, holders, owner in ((adamw, params, adamw), (loop, others, loop.outer)):
        for step in range(2):
            set_gradients(holders, step)
            opt.step()
        z = values(holders) if alpha == 0 else [owner.state[p]["z"] for p in holders]
        x = [owner.state[p]["x"] for p in holders]
        distance = math.hypot(*(e for a, b in zip(x, z) for e in (a.double() - b.double()).flatten().tolist()))
        found = opt.diagnostics()
        assert found["x_z_norm"].item() == pytest.approx(distance, rel=1e-6)
        assert found["phase"].item() == 2
        assert ("gamma" in found) is (opt is adamw)
