"""``capturable=True``: the same bits as without, from a clock on the device that a captured step advances by itself."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture import BACKENDS, Graph, use
from conftest import (
    OPTIMIZERS,
    PLAIN,
    SETTINGS,
    make,
    parameters,
    plain,
    run,
    same_bits,
    set_gradients,
    started,
    values,
)
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, OneCycleLR, StepLR

from deeprelax.optim import groups

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda opt: LambdaLR(opt, lambda step: 1.0),
    "lambda": lambda opt: LambdaLR(opt, lambda step: 1 / (1 + 0.3 * step)),
    "step": lambda opt: StepLR(opt, 3, 0.3),
    "exponential": lambda opt: ExponentialLR(opt, 0.87),
    "cosine": lambda opt: CosineAnnealingLR(opt, 7),
    "one cycle": lambda opt: OneCycleLR(opt, 0.9, total_steps=30, cycle_momentum=False),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, request.param)
    return str(request.param)


def dense(seed: int = 0) -> list[Parameter]:
    """Parameters whose memory the optimizer uses directly, without a copy."""
    return [p for p in parameters(seed=seed) if p.is_contiguous() and p.numel()]


def grads_in_place(params: list[Parameter], step: int) -> None:
    """New gradients at the old addresses, as a captured backward pass makes them."""
    before = [p.grad for p in params]
    set_gradients(params, step)
    for p, old in zip(params, before):
        if old is not None:
            p.grad = old.copy_(p.grad)


def both_clocks(
    name: str,
    before: Callable[[Any, list[Parameter], int], None] = lambda opt, params, step: None,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> None:
    """The same bits with a clock on the host and on the device; ``before`` is called before each of nine steps."""
    host, device = (started(name, dtype=dtype, capturable=capturable, **changes) for capturable in (False, True))
    for step in range(9):
        for opt, params in (host, device):
            set_gradients(params, step)
            before(opt, params, step)
            opt.step()
        assert same_bits(host[1], device[1]), step
    assert plain(host[0].state_dict()) == plain(device[0].state_dict())


@pytest.mark.parametrize(
    ("name", "backend", "scheduler"),
    [  # each backend with each optimizer and each scheduler
        (name, backend, list(SCHEDULERS)[(i + 2 * j) % len(SCHEDULERS)])
        for i, name in enumerate(OPTIMIZERS)
        for j, backend in enumerate(BACKENDS)
    ],
    indirect=["backend"],
)
def test_a_replayed_step_gives_the_uncaptured_bits_when_scheduled(
    name: str, backend: str, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten replays of one capture go through two and a half cycles of 4; a rate or a phase baked in would show."""
    a, b = parameters(), parameters()
    plain_opt, opt = make(name, a), make(name, b, capturable=True)
    plain_schedule, schedule = SCHEDULERS[scheduler](plain_opt), SCHEDULERS[scheduler](opt)
    for step in range(2):  # a capture begins in mid-cycle
        for params, each, s in ((a, plain_opt, plain_schedule), (b, opt, schedule)):
            grads_in_place(params, step)
            each.step()
            s.step()
    for params in (a, b):  # a gradient of another layout is copied, by the graph as well
        params[2].grad = params[2].grad.contiguous()
    before = values(b)
    graph = Graph().capture(opt, monkeypatch)
    assert same_bits(before, values(b))
    for step in range(2, 12):
        grads_in_place(a, step)
        plain_opt.step()
        plain_schedule.step()
        grads_in_place(b, step)
        graph.replay()
        schedule.step()
        assert same_bits(values(a), values(b)), step
        assert (opt.phase, opt.gamma, opt.outer_step_happened) == (
            plain_opt.phase,
            plain_opt.gamma,
            plain_opt.outer_step_happened,
        )
    assert plain(plain_opt.state_dict()["state"]) == plain(opt.state_dict()["state"])


NO_MOMENTA = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float64, {}),
        (torch.float32, {"inner_steps": 1}),
        (torch.bfloat16, NO_MOMENTA),
        (torch.float16, {}),
    ],
    ids=str,
)
def test_steps_that_are_not_captured_give_the_same_bits_too(
    name: str, backend: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    def before(opt: Any, params: list[Parameter], step: int) -> None:
        if step == 5:
            params[1].grad = params[3].grad = None
        if step == 6:  # HJ's weights no longer stand where gamma says
            opt.param_groups[0]["gamma"] = 0.2

    if changes is NO_MOMENTA:
        changes = {**PLAIN[name], **changes}
    both_clocks(name, before, dtype, **changes)


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {"coupling": "implicit"}),
        (torch.float32, {"absorb_gamma": True, "carry_inner_momentum": True}),
        (torch.float32, {"temperature": 0.0, "inner_lr": 0.0, "maximize": True}),
        (torch.bfloat16, {"stochastic_rounding": True, "momentum": 0.0, "inner_momentum": 0.0, "nesterov": False}),
    ],
    ids=str,
)
def test_the_options_of_entropy_sgd_give_the_same_bits(
    backend: str, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    both_clocks("EntropySGD", dtype=dtype, **changes)


def test_groups_have_their_own_rates_on_the_device_and_one_clock(name: str, backend: str) -> None:
    runs = []
    for capturable in (False, True):
        params, late = dense(), Parameter(torch.arange(5.0))
        groups = [{"params": params[:1], "lr": 0.3}, {"params": params[1:], "gamma": 0.4}]
        opt = make(name, groups, capturable=capturable)
        run(opt, params, range(2))
        opt.add_param_group({"params": [late], "lr": 0.1})
        run(opt, [*params, late], range(2, 10))
        runs.append((plain(values([*params, late])), plain(opt.state_dict())))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_rate_given_as_a_tensor_stays_the_users_tensor(name: str, backend: str, dtype: torch.dtype) -> None:
    lr = torch.tensor(0.25, dtype=dtype)
    a, b = dense(), dense()
    first, second = make(name, a, lr=0.25), make(name, b, lr=lr, capturable=True)
    for step in range(9):
        if step == 4:
            lr.fill_(0.125)
            first.param_groups[0]["lr"] = 0.125
        for params, opt in ((a, first), (b, second)):
            set_gradients(params, step)
            opt.step()
    assert second.param_groups[0]["lr"] is lr
    assert same_bits(values(a), values(b))


def test_groups_that_were_given_one_tensor_get_one_each(name: str) -> None:
    lr, params = torch.tensor(0.25), dense()
    opt = make(name, [{"params": params[:1]}, {"params": params[1:]}], lr=lr, capturable=True)
    StepLR(opt, 1, 0.5)
    opt.param_groups[1]["lr"].fill_(0.1)
    assert float(opt.param_groups[0]["lr"]) == 0.25


@pytest.mark.parametrize("lr", [torch.tensor([0.1, 0.2]), torch.tensor(1), torch.tensor(0.1, dtype=torch.bfloat16)])
def test_a_rate_that_the_kernels_cannot_read_is_refused(name: str, lr: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="lr"):
        make(name, dense(), lr=lr, capturable=True)


def test_parameters_on_two_devices_are_refused_with_both_names(name: str) -> None:
    # No kernel serves the meta device, so the names come from the clock's own check.
    params = [("here", Parameter(torch.ones(2))), ("there", Parameter(torch.ones(2)))]
    opt = make(name, params, capturable=True)
    opt.param_groups[0]["params"][1] = Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match="here is on cpu, there on meta"):
        groups.one_device(opt)


def test_capturing_needs_capturable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = make(name, params := dense())
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match="needs capturable=True"):
        Graph().capture(opt, monkeypatch)


def test_capturing_without_a_gradient_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch, unchanged: Callable[..., Callable[[], bool]]
) -> None:
    params = dense()
    opt = make(name, [(f"layer{i}.weight", p) for i, p in enumerate(params)], capturable=True)
    set_gradients(params, 0, without=[1])
    check = unchanged(opt, params)
    with pytest.raises(RuntimeError, match=r"layer1\.weight has no gradient while a CUDA graph is captured"):
        Graph().capture(opt, monkeypatch)
    assert check()
    params[1].requires_grad_(False)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"frozen.*run one step\(\)"):
        Graph().capture(opt, patch)
    opt.step()  # its state goes, which a graph could not repeat
    Graph().capture(opt, monkeypatch)


def test_a_momentum_that_is_new_in_a_capture_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffer would be the graph's, and zero again at every replay."""
    changes = {"inner_momentum": 0.0} if name == "EntropySGD" else {}
    opt = make(name, params := dense(), momentum=0.0, nesterov=False, capturable=True, **changes)
    set_gradients(params, 0)
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(RuntimeError, match="momentum_buffer is needed"):
        Graph().capture(opt, monkeypatch)


def test_the_eager_backend_is_not_captured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "eager")
    opt = make(name, params := dense(), capturable=True)
    set_gradients(params, 0)
    monkeypatch.setattr("deeprelax.optim.device_clock.capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="'eager' backend cannot be captured"):
        opt.step()


@pytest.mark.parametrize("then_capturable", [False, True])
def test_checkpoints_pass_between_capturable_and_not(name: str, backend: str, then_capturable: bool) -> None:
    first, a = started(name, 6, capturable=not then_capturable)
    second, b = started(name, capturable=then_capturable, lr=9.0)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    rates = second.param_groups[0]["lr"]
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert isinstance(rates, float) or second.param_groups[0]["lr"] is rates
    for p, q in zip(a, b):
        q.data.copy_(p.data)
    run(first, a, range(6, 12))
    run(second, b, range(6, 12))
    assert same_bits(a, b)
    assert plain(first.state_dict()) == plain(second.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_have_their_own_clock(name: str, copied: Callable[[Any], Any]) -> None:
    opt, params = started(name, 3, capturable=True)
    other_params, other = copied((params, opt))
    run(opt, params, range(3, 9))
    run(other, other_params, range(3, 9))
    assert same_bits(params, other_params)
    other.param_groups[0]["lr"].fill_(0.0)
    assert float(opt.param_groups[0]["lr"]) == SETTINGS[name]["lr"]


def test_numbers_written_to_a_group_reach_the_device(name: str, backend: str) -> None:
    def before(opt: Any, params: list[Parameter], step: int) -> None:
        rate = opt.param_groups[0]["lr"]
        if step == 5:
            opt.param_groups[0].update(lr=0.05, gamma=0.7, inner_steps=2)
        rates.setdefault(id(opt), rate)
        assert isinstance(rate, float) or rate is rates[id(opt)]

    rates: dict[int, Any] = {}
    both_clocks(name, before)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_a_rate_out_of_range_is_refused_when_it_is_written(name: str, bad: float) -> None:
    opt = make(name, params := dense(), capturable=True)
    set_gradients(params, 0)
    rate = opt.param_groups[0]["lr"]
    opt.param_groups[0]["lr"] = bad
    with pytest.raises(ValueError, match="lr"):
        opt.step()
    assert opt.param_groups[0]["lr"] is rate
    assert float(rate) == SETTINGS[name]["lr"]
    rate.fill_(0.1)
    opt.step()


@pytest.mark.parametrize("value", [0.05, torch.tensor(0.05)], ids=["number", "tensor"])
def test_what_a_graph_would_assign_at_every_replay_is_refused(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt = make(name, params := dense(), capturable=True)
    set_gradients(params, 0)
    opt.param_groups[0]["lr"] = value
    with pytest.raises(RuntimeError, match="lr was assigned to a group"):
        Graph().capture(opt, monkeypatch)
    assert float(opt.param_groups[0]["lr"]) == SETTINGS[name]["lr"]


@pytest.mark.parametrize("capturable", [False, True])
def test_whether_the_outer_step_happened_survives_copies_and_loading(name: str, capturable: bool) -> None:
    opt, _ = started(name, 4, capturable=capturable)
    assert opt.outer_step_happened
    assert copy.deepcopy(opt).outer_step_happened
    other, _ = started(name, capturable=capturable)
    other.load_state_dict(opt.state_dict())
    assert other.outer_step_happened
    opt.restart()
    assert not opt.outer_step_happened


def test_a_copy_keeps_the_dtype_of_a_rate(name: str) -> None:
    opt = make(name, dense(), lr=torch.tensor(0.25), capturable=True)
    assert copy.deepcopy(opt).param_groups[0]["lr"].dtype == torch.float32


def test_the_tables_of_the_kernels_do_not_follow_the_default_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "cuda")
    params = dense()
    with torch.device("meta"):
        opt = make(name, params, capturable=True)
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert all(bool(p.isfinite().all()) for p in params)


def test_eval_train_and_restart_work_at_any_phase(name: str, backend: str) -> None:
    def before(opt: Any, params: list[Parameter], step: int) -> None:
        opt.eval()
        opt.train()  # at first Heat draws a point
        if step == 6:
            opt.restart()

    both_clocks(name, before)


def test_capturable_is_true_or_false(name: str) -> None:
    with pytest.raises(TypeError, match="capturable"):
        make(name, dense(), capturable=1)
