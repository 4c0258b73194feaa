"""OuterLoop: the published equations around any optimizer, and every method of torch's contract."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BACKENDS, bits, plain, same_bits, values
from torch import Tensor
from torch.nn import Parameter

from deeprelax import EntropyAdamW, OuterLoop
from deeprelax.kernels.cuda import Cuda

INNER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.02, fused=True),
    "Muon": lambda params: torch.optim.Muon(params, lr=0.05),
}


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((5, 7), (130, 3), (1, 1))
    return [Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)) for shape in shapes]


def run(opt: Any, params: Iterable[Tensor], steps: Iterable[int]) -> None:
    for k in steps:
        for p in params:
            p.grad = torch.sin(3 * p.detach() + k) + p.detach() / 3
        opt.step()


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"momentum": 0.0}, {"alpha": 0.6}], ids=str)
def test_a_hundred_steps_are_those_of_the_published_equations(options: dict[str, Any]) -> None:
    o = {"inner_steps": 7, "outer_lr": 0.7, "momentum": 0.9, "nesterov": True, "alpha": 0.0, **options}
    start = np.linspace(-2, 2, 9)
    p = Parameter(torch.from_numpy(start.copy()))
    opt = OuterLoop(torch.optim.SGD([p], lr=0.1), **o)
    x = y = z = start
    b: Any = 0.0
    for k in range(100):
        p.grad = torch.from_numpy(np.sin(3 * p.detach().numpy() + k))
        opt.step()
        y = y - 0.1 * np.sin(3 * y + k)
        z = o["alpha"] * z + (1 - o["alpha"]) * y
        if k % 7 == 6:
            b = o["momentum"] * b + (x - z)
            x = x - o["outer_lr"] * (x - z + o["momentum"] * b if o["nesterov"] else b)
            y = z = x
        assert opt.outer_step_happened == (k % 7 == 6)
        np.testing.assert_allclose(p.detach().numpy(), y, rtol=0, atol=1e-12)


def test_around_adamw_it_is_entropy_adamw_without_a_pull() -> None:
    (p,), (q,) = [[Parameter(torch.linspace(-2, 2, 99, dtype=torch.float64))] for _ in range(2)]
    inner = torch.optim.AdamW([p], lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    opts = [
        OuterLoop(inner, inner_steps=6, alpha=0.3),
        EntropyAdamW([q], lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, inner_steps=6, gamma=math.inf, alpha=0.3),
    ]
    for k in range(60):
        for w, opt in zip((p, q), opts):
            w.grad = torch.sin(3 * w.detach() + k)
            opt.step()
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_backends_give_the_same_bits(dtype: torch.dtype, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("deeprelax._cuda")
    monkeypatch.setitem(BACKENDS, "cuda", Cuda(module, emulated=True))
    found = []
    for backend in ("eager", "cpu", BACKENDS["cuda"]):
        params = parameters(dtype)
        inner = torch.optim.SGD(params, lr=0.1)
        run(OuterLoop(inner, inner_steps=3, alpha=alpha, backend=backend), params, range(8))
        found.append(values(params))
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("steps", [6, 8])
def test_a_run_resumes_from_its_state_dict_bit_for_bit(name: str, steps: int) -> None:
    params, others = parameters(), parameters()
    opt = OuterLoop(INNER[name](params), inner_steps=3, alpha=0.4)
    run(opt, params, range(steps))
    file = io.BytesIO()
    torch.save((opt.state_dict(), values(params)), file)
    file.seek(0)
    saved, weights = torch.load(file, weights_only=True)
    other = OuterLoop(INNER[name](others), inner_steps=3, alpha=0.4)
    other.load_state_dict(saved)
    for q, w in zip(others, weights):
        q.data.copy_(w)
    run(opt, params, range(steps, 17))
    run(other, others, range(steps, 17))
    assert same_bits(params, others)
    assert plain(opt.state_dict()) == plain(other.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_runs_on_alone(duplicate: Callable[[Any], Any]) -> None:
    params = parameters()
    opt = OuterLoop(INNER["SGD"](params), inner_steps=3)
    run(opt, params, range(4))
    others, other = duplicate((params, opt))
    run(other, others, range(4, 9))
    before = values(others)
    run(opt, params, range(4, 9))
    assert same_bits(others, before)
    assert same_bits(params, others)


def test_evaluation_sees_x_and_leaves_no_trace() -> None:
    params, others = parameters(), parameters()
    opt, other = (OuterLoop(INNER["AdamW"](ps), inner_steps=4) for ps in (params, others))
    x = values(params)
    for k in range(11):
        run(opt, params, [k])
        run(other, others, [k])
        if opt.outer_step_happened:
            x = values(params)
        with opt.at_x():
            assert same_bits(params, x)
        opt.eval()
        assert same_bits(params, x)
        with pytest.raises(RuntimeError, match="eval mode"):
            opt.step()
        opt.train()
    assert same_bits(params, others)


def test_schedulers_closures_hooks_and_scaler_act_on_the_inner_optimizer() -> None:
    (p,) = params = [Parameter(torch.ones(3))]
    opt = OuterLoop(torch.optim.SGD(params, lr=1.0), inner_steps=2, outer_lr=1.0, momentum=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    heard: list[str] = []
    opt.register_step_pre_hook(lambda *_: heard.append("pre"))
    opt.register_step_post_hook(lambda *_: heard.append("post"))

    def closure() -> Tensor:
        opt.zero_grad()
        loss = p.sum()
        loss.backward()
        return loss

    assert float(opt.step(closure)) == 3.0
    scheduler.step()
    assert opt.inner.param_groups[0]["lr"] == 0.5
    opt.step(closure)
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - 1.0 - 0.5))
    assert heard == ["pre", "post"] * 2
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(p.sum() * math.inf).backward()
    before = p.detach().clone()
    scaler.step(opt)
    assert torch.equal(p.detach(), before)
    assert opt.phase == 0


def test_a_group_that_is_added_joins_both_loops() -> None:
    params, late = parameters(), Parameter(torch.ones(4, 2))
    opt = OuterLoop(INNER["Muon"](params), inner_steps=4)
    run(opt, params, range(2))
    opt.add_param_group({"params": [late], "lr": 0.3})
    run(opt, [*params, late], range(2, 8))
    assert opt.outer_step_happened
    assert torch.equal(opt.outer.state[late]["momentum_buffer"] != 0, torch.ones(4, 2, dtype=torch.bool))
    opt.param_groups.append({**opt.param_groups[0], "params": [extra := Parameter(torch.ones(2, 2))]})
    run(opt, [*params, late, extra], range(8, 12))
    assert not torch.equal(extra, torch.ones(2, 2))


def test_a_short_last_cycle_is_finished() -> None:
    (p,) = params = [Parameter(torch.zeros(2))]
    opt = OuterLoop(torch.optim.SGD(params, lr=1.0), inner_steps=5, outer_lr=0.5, momentum=0.0)
    for _ in range(7):
        p.grad = torch.ones(2)
        opt.step()
    assert opt.finish()
    torch.testing.assert_close(p.detach(), torch.full((2,), -5 / 2 - 2 / 2))
    assert not opt.finish()


def test_weights_loaded_in_mid_cycle_are_kept_with_a_warning() -> None:
    params = parameters()
    opt = OuterLoop(INNER["AdamW"](params), inner_steps=4)
    run(opt, params, range(2))
    best = [torch.full_like(p, 0.25) for p in params]
    for p, w in zip(params, best):
        p.data.copy_(w)
        torch.autograd.graph.increment_version(p)
    with pytest.warns(UserWarning, match="written to by other code"):
        opt.eval()
    assert same_bits(params, best)


def test_nothing_is_computed_between_outer_updates_without_an_average() -> None:
    """Between them the weights hold what the inner optimizer wrote, to the bit."""
    params, others = parameters(torch.bfloat16), parameters(torch.bfloat16)
    opt, inner = OuterLoop(INNER["SGD"](params), inner_steps=9), INNER["SGD"](others)
    run(opt, params, range(8))
    run(inner, others, range(8))
    assert [bits(p).tolist() for p in params] == [bits(q).tolist() for q in others]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer_lr": -1.0}, "lr"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"alpha": 2.0}, "alpha"),
        ({"momentum": -1.0}, "momentum"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OuterLoop(INNER["SGD"](parameters()), **options)


def test_an_inner_that_is_not_an_optimizer_and_its_own_state_are_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        OuterLoop(parameters())  # type: ignore[arg-type]
    params = parameters()
    opt = OuterLoop(INNER["SGD"](params))
    with pytest.raises(ValueError, match="OuterLoop"):
        opt.load_state_dict(opt.inner.state_dict())
