"""``torch.amp.GradScaler``: in the kernel with ``capturable=True``, around the step without it."""

from collections.abc import Callable

import pytest
import torch
from capture import BACKENDS, Graph, use
from conftest import make, parameters, plain, same_bits, set_gradients, started, values
from torch.nn import Parameter


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return str(request.param)


def scaled_gradients(params: list[Parameter], step: int, scale: float, overflow: bool = False) -> None:
    set_gradients(params, step)
    for p in params:
        p.grad = p.grad * scale
    if overflow:
        params[0].grad[1] = float("inf")


def scaler(scale: float) -> torch.amp.GradScaler:
    made = torch.amp.GradScaler("cpu", init_scale=scale, growth_factor=3.0, backoff_factor=0.3, growth_interval=3)
    made.scale(torch.ones(1))  # makes its tensors
    return made


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1024.0), (torch.float32, 777.0), (torch.float64, 777.0), (torch.bfloat16, 1024.0)],
    ids=str,
)
def test_scaled_gradients_give_the_bits_of_unscaled_ones(
    name: str, backend: str, dtype: torch.dtype, scale: float
) -> None:
    """The other run unscales as the scaler itself does: times the float32 of 1 / scale."""
    (first, a), (second, b) = started(name, dtype=dtype), started(name, dtype=dtype, capturable=True)
    amp = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    amp.scale(torch.ones(1))
    inverse = float((1 / torch.tensor(scale, dtype=torch.float64)).float())
    for step in range(9):
        scaled_gradients(a, step, scale)
        for p in a:
            p.grad = p.grad * inverse
        first.step()
        scaled_gradients(b, step, scale)
        before = values(p.grad for p in b)
        amp.step(second)
        amp.update()
        assert same_bits(before, [p.grad for p in b])
        assert same_bits(a, b), step


@pytest.mark.parametrize("phase", [0, 1, 3])
def test_a_skipped_step_changes_nothing(
    name: str, backend: str, phase: int, unchanged: Callable[..., Callable[[], bool]]
) -> None:
    """Neither weights nor state, nor phase and noise counter: the run continues as if without the batch."""
    opt, params = started(name, phase, capturable=True)
    amp, check = scaler(8.0), unchanged(opt, params)
    scaled_gradients(params, 9, 8.0, overflow=True)
    amp.step(opt)
    assert check()
    amp.update()
    assert amp.get_scale() < 8.0


def test_with_and_without_capturable_overflows_give_the_same_run(name: str, backend: str) -> None:
    runs = [(*started(name, capturable=capturable), scaler(512.0)) for capturable in (False, True)]
    for step in range(14):
        for opt, params, amp in runs:
            scaled_gradients(params, step, amp.get_scale(), overflow=step in (3, 8, 9))
            amp.step(opt)
            amp.update()
        assert same_bits(runs[0][1], runs[1][1]), step
    (first, _, amp), (second, _, other) = runs
    assert amp.get_scale() == other.get_scale()
    assert first.state_dict()["param_groups"][0]["step"] == 11
    assert plain(first.state_dict()) == plain(second.state_dict())


@pytest.mark.parametrize("clip", [False, True])
def test_gradients_that_the_user_has_unscaled_are_not_unscaled_again(name: str, clip: bool) -> None:
    (first, a), (second, b), amp = started(name), started(name, capturable=True), scaler(64.0)
    for step in range(5):
        set_gradients(a, step)
        scaled_gradients(b, step, 64.0)
        amp.unscale_(second)
        for params in (a, b) if clip else ():
            torch.nn.utils.clip_grad_norm_(params, 0.5)
        first.step()
        amp.step(second)
        amp.update(64.0)
        assert same_bits(a, b), step


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_overflow_is_seen_in_any_dtype_of_found_inf(name: str, dtype: torch.dtype) -> None:
    opt, params = started(name, capturable=True)
    set_gradients(params, 0)
    before = values(params)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    opt.step()
    assert same_bits(before, values(params))


def test_two_optimizers_under_one_scaler_are_skipped_independently(name: str) -> None:
    (opt, params), (other, others) = started(name, capturable=True), started(name, capturable=True)
    amp, before = scaler(4.0), values(params)
    scaled_gradients(params, 0, 4.0)
    scaled_gradients(others, 1, 4.0, overflow=True)
    amp.step(opt)
    amp.step(other)
    assert not same_bits(before, params)
    assert same_bits(before, others)


def test_after_an_error_the_next_step_is_scaled_as_before(name: str) -> None:
    (opt, params), amp = started(name, capturable=True), scaler(8.0)
    scaled_gradients(params, 0, 8.0)
    opt.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        amp.step(opt)
    assert not hasattr(opt, "grad_scale")
    assert not hasattr(opt, "found_inf")


def test_a_replayed_step_follows_the_scaler(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale and overflow are read when the graph runs, not when it was captured."""
    a, b = ([p for p in parameters() if p.is_contiguous() and p.numel()] for _ in range(2))
    first, second = make(name, a), make(name, b, capturable=True)
    scale, found_inf = torch.tensor(16.0), torch.tensor(0.0)
    scaled_gradients(b, 0, 16.0)
    second.grad_scale, second.found_inf = scale, found_inf
    graph = Graph().capture(second, monkeypatch)
    del second.grad_scale, second.found_inf
    for step, value, overflow in [(0, 16.0, False), (1, 4.0, False), (2, 4.0, True), (3, 2.0, False), (4, 2.0, False)]:
        scale.fill_(value)
        found_inf.fill_(float(overflow))
        if not overflow:
            set_gradients(a, step)
            first.step()
        kept = [p.grad for p in b]
        scaled_gradients(b, step, value)
        for p, grad in zip(b, kept):
            p.grad = grad.copy_(p.grad)
        if overflow:
            b[0].grad[0] = float("nan")
        graph.replay()
        if not overflow:
            assert same_bits(values(a), values(b)), step
    assert second.phase == first.phase
