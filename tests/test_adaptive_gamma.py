"""``gamma_schedule="adaptive"``: γ follows the rule of ``schedules.py`` on the norms of the outer updates."""

from typing import Any

import pytest
import torch
from conftest import make, parameters, plain, same_bits, set_gradients, values
from torch import Tensor
from torch.nn import Parameter

from deeprelax.schedules import adaptive_gamma

OPTIONS = {"momentum": 0.0, "nesterov": False, "gamma_schedule": "adaptive", "gamma": 0.5}


def adaptive(name: str, params: Any, **changes: Any) -> Any:
    inner = {"inner_momentum": 0.0} if name == "EntropySGD" else {}
    return make(name, params, **{**OPTIONS, **inner, **changes})


def position(opt: Any, params: list[Parameter]) -> list[Tensor]:
    """x, as a user sees it."""
    opt.eval()
    seen = values(params)
    opt.train()
    return seen


@pytest.mark.parametrize("changes", [{}, {"inner_steps": 1}, {"lr": 0.05}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gamma_follows_the_rule_on_the_norms_of_the_updates(
    name: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    params = [Parameter(torch.linspace(-1, 1, 40).to(dtype)), Parameter(torch.ones(3, 5, dtype=dtype))]
    opt = adaptive(name, params, **changes)
    lr = opt.param_groups[0]["lr"]
    expected, norms, gammas = opt.gamma, [], [opt.gamma]
    before = position(opt, params)
    for step in range(24):
        for p in params:  # a quadratic loss whose gradients sometimes jump
            p.grad = (p.detach() * (3.0 if step // 4 in (2, 3) else 0.5)).to(dtype)
        opt.step()
        if not opt.outer_step_happened:
            continue
        after = [opt.state[p]["x"].double() for p in params] if dtype == torch.bfloat16 else position(opt, params)
        if len(norms) >= 2:
            expected = adaptive_gamma(expected, norms[-1], norms[-2])
        moved = sum(((a.double() - b.double()) ** 2).sum() for a, b in zip(after, before)) ** 0.5
        norms.append(float(moved) * gammas[-1] / lr)
        gammas.append(opt.gamma)
        assert opt.gamma == pytest.approx(expected, rel=1e-12), step
        assert opt.param_groups[0]["norm"] == pytest.approx(norms[-1], rel=1e-3 if dtype == torch.bfloat16 else 1e-5)
        expected, before = opt.gamma, after
    assert len(set(gammas)) > 2


def test_absorb_gamma_has_the_same_norm(name: str) -> None:
    if name != "EntropySGD":
        pytest.skip("EntropySGD alone has absorb_gamma")
    found = []
    for options in ({"lr": 0.2}, {"lr": 0.2 / 0.5, "absorb_gamma": True}):
        params = [Parameter(torch.linspace(-1, 1, 40))]
        opt = adaptive(name, params, temperature=0.0, **options)
        for step in range(4):
            set_gradients(params, step)
            opt.step()
        found.append(opt.param_groups[0]["norm"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_saved_run_goes_on_with_the_same_gammas(name: str) -> None:
    a, b = parameters(), parameters()
    first = adaptive(name, a)
    for step in range(14):
        set_gradients(a, step)
        first.step()
    second = adaptive(name, b)
    second.load_state_dict(first.state_dict())
    for p, q in zip(a, b):
        q.data.copy_(p.data)
    for step in range(14, 30):
        for params, opt in ((a, first), (b, second)):
            set_gradients(params, step)
            opt.step()
    assert same_bits(values(a), values(b))
    assert plain(first.state_dict()) == plain(second.state_dict())
    assert first.gamma != OPTIONS["gamma"]


def test_without_a_step_gamma_stays(name: str) -> None:
    params = parameters()
    opt = adaptive(name, params, lr=0.0)
    for step in range(20):
        set_gradients(params, step)
        opt.step()
    assert opt.gamma == OPTIONS["gamma"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"capturable": True}, "capturable"),
        ({"gamma_schedule": "linear"}, "gamma_schedule"),
    ],
)
def test_what_does_not_go_with_it_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive(name, parameters(), **changes)
