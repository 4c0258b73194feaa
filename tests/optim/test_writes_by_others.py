"""What other code wrote into the parameters is never overwritten without a warning."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import make, parameters, run, same_bits, set_gradients, started, twins, values
from torch.nn import Parameter

from deeprelax import EntropySGD


def load(params: list[Parameter], seed: int = 5) -> list[torch.Tensor]:
    """As ``model.load_state_dict`` writes: other weights, which it returns."""
    weights = values(parameters(params[0].dtype, seed=seed))
    with torch.no_grad():
        for p, w in zip(params, weights):
            p.copy_(w)
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_loaded_in_mid_cycle_survive_eval_and_train(name: str, dtype: torch.dtype):
    params = parameters(dtype)
    opt = make(name, [(f"layer{i}", p) for i, p in enumerate(params)])
    run(opt, params, range(6))
    weights = load(params)
    with pytest.warns(UserWarning, match=r"layer0 was written to.*restart\(\)"):
        opt.eval()
    assert same_bits(params, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.train()
    assert name == "Heat" or same_bits(params, weights)
    assert opt.phase == 0
    run(opt, params, range(6, 10))
    assert opt.outer_step_happened


def test_weights_loaded_in_eval_mode_survive_train(name: str):
    opt, params = started(name, 6)
    opt.eval()
    weights = load(params)
    with pytest.warns(UserWarning, match="was written to"):
        opt.train()
    if name == "Heat":  # it stands at x + w
        opt.eval()
    assert same_bits(params, weights)
    assert opt.phase == 0


def test_the_run_continues_from_loaded_weights_as_after_restart(name: str):
    (opt, params), (other, others) = twins(name, 6)
    load(params)
    load(others)
    with pytest.warns(UserWarning, match="was written to"):
        opt.eval()
    opt.train()
    other.restart()
    other.train()
    run(opt, params, range(6, 12))
    run(other, others, range(6, 12))
    assert same_bits(params, others)


def test_only_what_was_written_is_kept(name: str):
    opt, params = started(name, 6)
    x = [opt.state[p]["x"].clone() for p in params]
    with torch.no_grad():
        params[0].fill_(3.0)
    with pytest.warns(UserWarning, match="was written to"):
        opt.eval()
    assert torch.equal(params[0], torch.full((129,), 3.0))
    assert same_bits(params[1:], x[1:])


def test_a_write_in_mid_cycle_warns_once_at_its_end(name: str):
    opt, params = started(name, 2)
    load(params)
    with pytest.warns(UserWarning, match="was written to by other code in mid-cycle"):
        run(opt, params, range(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(opt, params, range(4, 6))
        load(params)
        run(opt, params, range(6, 8))


@pytest.mark.parametrize(("steps", "inner_steps"), [(0, 4), (4, 4), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_loaded_between_cycles_are_taken_up(name: str, dtype: torch.dtype, steps: int, inner_steps: int):
    """With one warning if the parameters did not hold x."""
    (opt, params), (other, others) = twins(name, steps, dtype=dtype, inner_steps=inner_steps)
    load(params)
    load(others)
    other.restart()
    with warnings.catch_warnings(record=True, action="always") as found:
        run(opt, params, range(steps, steps + 4))
    run(other, others, range(steps, steps + 4))
    assert same_bits(params, others)
    assert ["taken up as x" in str(w.message) for w in found] == [True] * (steps > 0 and not opt.params_hold_x)


def test_an_ordinary_run_with_evaluation_never_warns(name: str):
    opt, params = started(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(14):
            run(opt, params, range(step, step + 1))
            with torch.no_grad():
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            if step % 3 == 0:
                opt.eval()
                opt.train()
            if step % 5 == 0:
                with opt.at_x():
                    values(params)


def test_weights_and_state_may_be_loaded_in_any_order_in_mid_cycle(name: str):
    opt, params = started(name, 6)
    saved, weights = opt.state_dict(), values(params)
    for model_first in (True, False):
        other, others = started(name, 3, weights=3)
        for part in (0, 1) if model_first else (1, 0):
            if part:
                other.load_state_dict(saved)
            else:
                with torch.no_grad():
                    for p, w in zip(others, weights):
                        p.copy_(w)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.eval()
            other.train()
        assert same_bits(others, weights)
        assert other.phase == 2


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_x_shows_x_and_leaves_no_trace(name: str, dtype: torch.dtype, capturable: bool):
    (opt, params), (other, others) = twins(name, dtype=dtype, capturable=capturable)
    for step in range(10):
        run(opt, params, range(step, step + 1))
        run(other, others, range(step, step + 1))
        with opt.at_x():
            seen = values(params)
            with opt.at_x():
                assert same_bits(params, seen)
            with pytest.raises(RuntimeError, match="eval mode"):
                opt.step()
        other.eval()
        assert same_bits(seen, others)
        other.train()
        assert same_bits(params, others)
        assert opt.outer_step_happened == other.outer_step_happened
    assert "inner" not in opt.state[params[0]]


def test_at_x_works_in_eval_mode_and_before_the_first_step(name: str):
    params = parameters()
    before = values(params)
    opt = make(name, params)
    with opt.at_x():
        assert same_bits(params, before)
    assert same_bits(params, before)
    run(opt, params, range(2))
    opt.eval()
    shown = values(params)
    with opt.at_x():
        assert same_bits(params, shown)
    assert same_bits(params, shown)
    with pytest.raises(RuntimeError, match="eval mode"):
        opt.step()


def test_at_x_keeps_what_is_loaded_inside(name: str):
    opt, params = started(name, 6)

    def load_inside() -> list[torch.Tensor]:
        with opt.at_x():
            return load(params)

    with pytest.warns(UserWarning, match="was written to"):
        weights = load_inside()
    assert same_bits(params, weights)


@pytest.mark.parametrize("steps", [0, 2])
def test_eval_and_train_in_inference_mode_leave_usable_state(name: str, steps: int):
    (opt, params), (other, others) = twins(name)
    for ps, o in ((params, opt), (others, other)):
        for p in ps:
            p.data = p.data.double()  # adopted in the next call
        run(o, ps, range(steps))
    with torch.inference_mode():
        opt.eval()
        opt.train()
    other.eval()
    other.train()
    run(opt, params, range(steps, 9))
    run(other, others, range(steps, 9))
    assert same_bits(params, others)


def test_the_warning_of_a_write_is_at_the_users_line():
    p = Parameter(torch.ones(2))
    opt = EntropySGD([p])
    p.grad = torch.ones(2)
    opt.step()
    with torch.no_grad():
        p.fill_(2.0)
    with pytest.warns(UserWarning, match="was written to") as told:
        opt.eval()
    assert told[0].filename == __file__


def test_state_and_parameters_moved_together_in_mid_cycle_are_adopted(name: str):
    """As Lightning's teardown moves both to the CPU."""
    (opt, params), (other, others) = twins(name, 6)
    for p in params:
        p.data = p.data.clone()
    for p in params:
        opt.state[p] = {key: value.clone() for key, value in opt.state[p].items()}
    opt.eval()
    other.eval()
    assert same_bits(params, others)
    opt.train()
    other.train()
    set_gradients(params, 6)
    run(opt, params, range(6, 10))
    run(other, others, range(6, 10))
    assert same_bits(params, others)
