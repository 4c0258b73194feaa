"""``AdaptiveGamma``: γ follows the rule of ``adaptive_gamma`` on the norms of the outer updates."""

import copy
import warnings
from typing import Any

import pytest
import torch
from conftest import make, parameters, plain, same_bits, set_gradients, values
from torch import Tensor
from torch.nn import Parameter

from deeprelax import EntropySGD, Heat
from deeprelax.optim.schedules import AdaptiveGamma, adaptive_gamma, smallest_gamma

OPTIONS = {"momentum": 0.0, "nesterov": False, "scoping": 0.0, "gamma": 0.5}


def adaptive(name: str, params: Any, **changes: Any) -> tuple[Any, AdaptiveGamma]:
    inner = {"inner_momentum": 0.0} if name == "EntropySGD" else {}
    opt = make(name, params, **{**OPTIONS, **inner, **changes})
    return opt, AdaptiveGamma(opt)


def position(opt: Any, params: list[Parameter]) -> list[Tensor]:
    """x, as a user sees it."""
    opt.eval()
    seen = values(params)
    opt.train()
    return seen


@pytest.mark.filterwarnings("ignore:gamma has come down")
@pytest.mark.parametrize("changes", [{}, {"inner_steps": 1}, {"lr": 0.05}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gamma_follows_the_rule_on_the_norms_of_the_updates(
    name: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    params = [Parameter(torch.linspace(-1, 1, 40).to(dtype)), Parameter(torch.ones(3, 5, dtype=dtype))]
    opt, schedule = adaptive(name, params, **changes)
    lr = opt.param_groups[0]["lr"]
    expected, norms, gammas = opt.gamma, [], [opt.gamma]
    before = position(opt, params)
    for step in range(24):
        for p in params:  # a quadratic loss whose gradients sometimes jump
            p.grad = (p.detach() * (3.0 if step // 4 in (2, 3) else 0.5)).to(dtype)
        opt.step()
        schedule.step()
        if not opt.outer_step_happened:
            continue
        after = [opt.state[p]["x"].double() for p in params] if dtype == torch.bfloat16 else position(opt, params)
        moved = sum(((a.double() - b.double()) ** 2).sum() for a, b in zip(after, before)) ** 0.5
        norms.append(float(moved) * gammas[-1] / lr)
        if len(norms) >= 2:
            bound = smallest_gamma(opt.param_groups[0])
            expected = adaptive_gamma(expected, norms[-1], norms[-2], smallest=bound)
        gammas.append(opt.gamma)
        assert opt.gamma == pytest.approx(expected, rel=1e-12), step
        assert schedule.norms[0][-1] == pytest.approx(norms[-1], rel=1e-3 if dtype == torch.bfloat16 else 1e-5)
        expected, before = opt.gamma, after
    assert len(set(gammas)) > 2


@pytest.mark.parametrize(
    ("changes", "updates", "lowest"),
    [
        ({}, 400, 0.55),  # lr 1
        ({"inner_steps": 3, "absorb_gamma": True}, 120, 0.1),  # inner_lr
        ({"inner_steps": 3, "absorb_gamma": True, "coupling": "implicit"}, 200, 1e-3),
        ({"inner_steps": 3, "coupling": "implicit"}, 120, 0.55),
        ({"inner_steps": 3, "lr": 0.1, "inner_lr": 0.4}, 120, 0.4),
        ({"inner_steps": 3, "lr": 30.0, "gamma": 30.0}, 120, 16.5),  # above the rule's largest gamma
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2000])
def test_under_gradient_noise_gamma_stays_stable_for_entropy_sgd(
    changes: dict[str, Any], updates: int, lowest: float, size: int
) -> None:
    """On ½x² with noise of variance 1, and all else at its default. Norms over 2,000 elements hardly differ."""
    torch.manual_seed(0)
    param = Parameter(torch.ones(size))
    opt = EntropySGD([param], **{"lr": 1.0, "gamma": 1.0, "scoping": 0, **changes})
    schedule = AdaptiveGamma(opt)
    gammas = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(updates * opt.param_groups[0]["inner_steps"]):
            param.grad = param.detach() + torch.randn(size)
            opt.step()
            schedule.step()
            gammas.append(opt.gamma)
    assert torch.isfinite(param).all()
    assert float(param.detach().abs().max()) < 5
    assert min(gammas) >= lowest
    if size > 1:
        assert min(gammas) == pytest.approx(lowest, rel=1e-12)


def test_a_gamma_below_the_smallest_of_the_rule_is_not_raised() -> None:
    param = Parameter(torch.ones(200))
    opt = EntropySGD([param], lr=1.0, gamma=0.2, scoping=0, inner_lr=0.01, inner_steps=2)
    schedule = AdaptiveGamma(opt)
    for _ in range(40):
        param.grad = torch.ones(200)
        opt.step()
        schedule.step()
    assert opt.gamma == 0.2


def test_heats_gamma_is_not_moved_to_a_bound() -> None:
    """Its default, 1e-4, lies below the rule's."""
    param = Parameter(torch.ones(200))
    opt = Heat([param], scoping=0)
    schedule = AdaptiveGamma(opt)
    for _ in range(20 * opt.param_groups[0]["inner_steps"]):
        before = opt.gamma
        param.grad = torch.randn(200)
        opt.step()
        schedule.step()
        assert before <= opt.gamma <= 1.1 * before
    assert opt.gamma < 2e-4


def test_absorb_gamma_has_the_same_norm() -> None:
    found = []
    for options in ({"lr": 0.2}, {"lr": 0.2 / 0.5, "absorb_gamma": True}):
        params = [Parameter(torch.linspace(-1, 1, 40))]
        opt, schedule = adaptive("EntropySGD", params, temperature=0.0, **options)
        for step in range(4):
            set_gradients(params, step)
            opt.step()
            schedule.step()
        found.append(schedule.norms[0][-1])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_saved_run_continues_with_the_same_gammas(name: str) -> None:
    a, b = parameters(), parameters()
    first, schedule = adaptive(name, a)
    for step in range(14):
        set_gradients(a, step)
        first.step()
        schedule.step()
    second, other = adaptive(name, b)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(schedule.state_dict()))
    for p, q in zip(a, b):
        q.data.copy_(p.data)
    for step in range(14, 30):
        for params, opt, each in ((a, first, schedule), (b, second, other)):
            set_gradients(params, step)
            opt.step()
            each.step()
    assert same_bits(values(a), values(b))
    assert plain(first.state_dict()) == plain(second.state_dict())
    assert schedule.norms == other.norms
    assert first.gamma != OPTIONS["gamma"]


def test_without_a_step_gamma_stays(name: str) -> None:
    params = parameters()
    opt, schedule = adaptive(name, params, lr=0.0)
    for step in range(20):
        set_gradients(params, step)
        opt.step()
        schedule.step()
    assert opt.gamma == OPTIONS["gamma"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"momentum": 0.9}, "momentum"), ({"capturable": True}, "capturable"), ({"scoping": 0.1}, "scoping")],
)
def test_settings_that_the_rule_cannot_judge_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive(name, parameters(), **changes)


def test_a_schedule_of_other_parameters_is_refused(name: str) -> None:
    _, schedule = adaptive(name, parameters())
    _, other = adaptive(name, [Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="other groups or parameters"):
        other.load_state_dict(schedule.state_dict())
