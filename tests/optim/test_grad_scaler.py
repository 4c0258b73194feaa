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


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1024.0), (torch.float32, 777.0), (torch.float64, 777.0), (torch.bfloat16, 1024.0)],
    ids=str,
)
def test_scaled_gradients_give_the_bits_of_unscaled_ones(
    name: str, backend: str, dtype: torch.dtype, scale: float, capturable: bool
) -> None:
    """The other run unscales as the scaler itself does: times the float32 of 1 / scale."""
    a, b = parameters(dtype), parameters(dtype)
    first, second = make(name, a), make(name, b, capturable=capturable)
    amp = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    amp.scale(torch.ones(1))
    inverse = float((1 / torch.tensor(scale, dtype=torch.float64)).float())
    for step in range(9):
        scaled_gradients(a, step, scale)
        for p in a:
            p.grad = p.grad * inverse
        first.step()
        scaled_gradients(b, step, scale)
        amp.step(second)
        amp.update()
        assert same_bits(values(a), values(b)), step


def test_the_gradients_are_left_as_they_are(name: str, backend: str) -> None:
    params = parameters()
    opt, amp = make(name, params, capturable=True), scaler(256.0)
    scaled_gradients(params, 0, 256.0)
    before = [p.grad.clone() for p in params]
    amp.step(opt)
    assert same_bits(before, [p.grad for p in params])


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("phase", range(4))
def test_a_skipped_step_changes_nothing(
    name: str, backend: str, phase: int, capturable: bool, unchanged: Callable[..., Callable[[], bool]]
) -> None:
    """Neither weights nor state, nor phase and noise counter: the run continues as if without the batch."""
    params = parameters()
    opt, amp = make(name, params, capturable=capturable), scaler(8.0)
    for step in range(phase):
        scaled_gradients(params, step, 8.0)
        amp.step(opt)
        amp.update(8.0)
    check = unchanged(opt, params)
    scaled_gradients(params, 9, 8.0, overflow=True)
    amp.step(opt)
    assert check()
    amp.update()
    assert amp.get_scale() < 8.0


def test_with_and_without_capturable_overflows_give_the_same_run(name: str, backend: str) -> None:
    a, b = parameters(), parameters()
    first, second = make(name, a), make(name, b, capturable=True)
    scalers = scaler(512.0), scaler(512.0)
    for step in range(14):
        for params, opt, amp in ((a, first, scalers[0]), (b, second, scalers[1])):
            scaled_gradients(params, step, amp.get_scale(), overflow=step in (3, 8, 9))
            amp.step(opt)
            amp.update()
        assert same_bits(values(a), values(b)), step
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert first.state_dict()["param_groups"][0]["step"] == 11
    assert plain(first.state_dict()) == plain(second.state_dict())


def test_gradients_that_the_user_has_unscaled_are_not_unscaled_again(name: str, backend: str) -> None:
    a, b = parameters(), parameters()
    first, second, amp = make(name, a), make(name, b, capturable=True), scaler(64.0)
    for step in range(5):
        set_gradients(a, step)
        first.step()
        scaled_gradients(b, step, 64.0)
        amp.unscale_(second)
        amp.step(second)
        amp.update(64.0)
        assert same_bits(values(a), values(b)), step


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_overflow_is_seen_in_any_dtype_of_found_inf(name: str, backend: str, dtype: torch.dtype) -> None:
    opt, params = started(name, capturable=True)
    set_gradients(params, 0)
    before = values(params)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    opt.step()
    assert same_bits(before, values(params))


def test_two_optimizers_under_one_scaler_are_skipped_independently(name: str, backend: str) -> None:
    params = [parameters(seed=0), parameters(seed=1)]
    opts = [make(name, p, capturable=True) for p in params]
    amp = scaler(4.0)
    for k in (0, 1):
        scaled_gradients(params[k], k, 4.0, overflow=k == 1)
    before = [values(p) for p in params]
    for opt in opts:
        amp.step(opt)
    amp.update()
    assert not same_bits(before[0], values(params[0]))
    assert same_bits(before[1], values(params[1]))


def test_clipping_after_unscaling_equals_clipping_without_a_scaler(name: str, backend: str) -> None:
    a, b = parameters(), parameters()
    first, second, amp = make(name, a), make(name, b, capturable=True), scaler(64.0)
    for step in range(5):
        set_gradients(a, step)
        torch.nn.utils.clip_grad_norm_(a, 0.5)
        first.step()
        scaled_gradients(b, step, 64.0)
        amp.unscale_(second)
        torch.nn.utils.clip_grad_norm_(b, 0.5)
        amp.step(second)
        amp.update(64.0)
        assert same_bits(values(a), values(b)), step


def test_after_an_error_the_next_step_is_scaled_as_before(name: str, backend: str) -> None:
    params = parameters()
    opt, amp = make(name, params, capturable=True), scaler(8.0)
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
