"""``torch.compile``: a compiled training step has the bits of an uncompiled one, in one graph that is compiled once."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch._dynamo
from conftest import make, parameters, plain, same_bits, values
from torch import Tensor
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter

import deeprelax

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_compiled")
STEPS = 9  # two cycles of SETTINGS, and one more


def once(function: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    """The function compiled as one graph; compiling it a second time is an error."""
    graph = torch.compile(function, backend=backend, fullgraph=True)
    calls = 0

    def call(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        with torch._dynamo.config.patch(error_on_recompile=calls > 1, trace_autograd_ops=True):
            return graph(*args)

    return call


def noises(params: Sequence[Tensor], step: int) -> list[Tensor]:
    """Random tensors from which, with the weights, a step's gradients are computed."""
    draw = torch.Generator().manual_seed(step)
    return [torch.empty_like(p).copy_(torch.randn(p.shape, generator=draw)) for p in params]


def train_step(opt: Any, params: Sequence[Parameter], noise: Sequence[Tensor]) -> None:
    """The gradients come from inside the graph."""
    for p, n in zip(params, noise):
        p.grad = n + p.detach() / 2
    opt.step()


def trained(name: str, wrap: Callable[..., Any], params: Sequence[Parameter], **changes: Any) -> Any:
    """What parameters and saved state hold at the end."""
    opt = make(name, params, **changes)
    step = wrap(train_step)
    for i in range(STEPS):
        step(opt, params, noises(params, i))
    return plain(values(params)), plain(opt.state_dict())


@pytest.mark.parametrize(
    ("name", "capturable"),
    [("EntropySGD", True), ("Heat", False), ("EntropyAdamW", False), ("ElasticSGD", True), ("Parle", False)],
)
def test_a_compiled_step_has_the_bits_of_an_uncompiled_one(name: str, capturable: bool) -> None:
    """Two rates as tensors, parameters that never hold x, counts of missing gradients, steps with an exchange."""
    compiled, uncompiled = (
        trained(name, wrap, [*parameters(), *parameters(torch.bfloat16)], capturable=capturable)
        for wrap in (once, lambda f: f)
    )
    assert compiled == uncompiled


def test_the_default_backend_gives_the_same_bits() -> None:
    def turn(opt: Any, p: Parameter, matrix: Tensor) -> Tensor:
        before = p.detach() @ matrix  # a product needs no C++ compiler
        p.grad = before
        opt.step()
        return torch.mm(p.detach(), before.t())

    def run(wrap: Callable[..., Any]) -> list[Tensor]:
        p = Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
        opt, step = make("EntropySGD", [p]), wrap(turn)
        return [step(opt, p, torch.rand(3, 3, generator=torch.Generator().manual_seed(i))) for i in range(STEPS)]

    assert same_bits(run(lambda f: once(f, "inductor")), run(lambda f: f))


def test_backward_may_be_inside_the_graph() -> None:
    def whole(opt: Any, model: torch.nn.Module, batch: Tensor) -> Tensor:
        for p in model.parameters():
            p.grad = None
        loss = model(batch).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    def run(wrap: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        opt, step = make("EntropySGD", model.parameters()), wrap(whole)
        losses = [step(opt, model, torch.ones(2, 4)) for _ in range(STEPS)]
        return [*losses, *values(model.parameters())]

    assert same_bits(run(lambda f: once(f, "eager")), run(lambda f: f))


@pytest.mark.parametrize(("capturable", "scheduled"), [(False, True), (True, False)])
def test_an_ordinary_loop_has_no_more_graph_breaks_than_with_sgd(capturable: bool, scheduled: bool) -> None:
    """It is compiled once as well."""

    def loop(opt: Any, model: torch.nn.Module, schedule: Any) -> None:
        opt.zero_grad()
        model(torch.ones(2, 4)).square().mean().backward()
        opt.step()
        if schedule is not None:
            schedule.step()

    def breaks(build: Callable[..., Any]) -> int:
        torch._dynamo.reset()
        counters.clear()
        model, count = torch.nn.Linear(4, 3), CompileCounter()
        opt = build(model.parameters(), lr=torch.tensor(0.1))
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9) if scheduled else None
        step = torch.compile(loop, backend=count)
        step(opt, model, schedule)
        compiled_at_first = count.frame_count
        for _ in range(STEPS):
            step(opt, model, schedule)
        assert build is torch.optim.SGD or count.frame_count == compiled_at_first
        return sum(counters["graph_break"].values())

    assert breaks(functools.partial(make, "HJ", capturable=capturable)) <= breaks(torch.optim.SGD)


@pytest.mark.parametrize("capturable", [False, True], ids=["host clock", "device clock"])
@pytest.mark.filterwarnings("ignore:.*was written to by other code in mid-cycle")
def test_what_the_graph_writes_before_a_step_counts_in_it(capturable: bool) -> None:
    def scheduled(opt: Any, params: Sequence[Parameter], noise: Sequence[Tensor], lr: Tensor) -> None:
        lr.mul_(0.7)
        with torch.no_grad():
            params[0].mul_(1.5)
        train_step(opt, params, noise)

    def run(wrap: Callable[..., Any]) -> Any:
        params = parameters()
        groups = [{"params": params[:1], "lr": torch.tensor(0.1)}, {"params": params[1:]}]
        opt = make("HJ", groups, lr=torch.tensor(0.5), capturable=capturable)
        step = wrap(scheduled)
        for i in range(STEPS):
            step(opt, params, noises(params, i), opt.param_groups[1]["lr"])
        return plain(values(params)), plain(opt.state_dict())

    assert run(once) == run(lambda f: f)


def test_a_compiled_step_handles_missing_gradients_and_frozen_parameters() -> None:
    def some(opt: Any, params: Sequence[Parameter], noise: Sequence[Tensor]) -> None:
        for i, (p, n) in enumerate(zip(params, noise)):
            p.grad = None if i == 1 else n
        opt.step()

    def run(wrap: Callable[..., Any]) -> Any:
        params = parameters()
        params[2].requires_grad_(False)
        opt, step = make("EntropyAdamW", params), wrap(some)
        for i in range(STEPS):
            step(opt, params, noises(params, i))
            assert params[1].grad is None
        return plain(values(params)), plain(opt.state_dict())

    assert run(once) == run(lambda f: f)


def test_an_added_group_is_compiled_and_an_appended_one_is_refused() -> None:
    def run(step: Callable[..., Any]) -> Any:
        params = parameters()[:3]
        opt = make("EntropySGD", params[:1])
        for i in range(STEPS):
            if i == 2:
                opt.add_param_group({"params": params[1:2], "lr": 0.7})
            step(opt, params[:2], noises(params[:2], i))
        return opt, params

    count = CompileCounterWithBackend("aot_eager")
    step = torch.compile(train_step, backend=count)
    opt, params = run(step)
    reference, theirs = run(train_step)
    assert plain(values(params)) == plain(values(theirs))
    assert plain(opt.state_dict()) == plain(reference.state_dict())
    assert count.frame_count == 2
    opt.param_groups.append({"params": params[2:]})
    before = plain(values(params))
    with pytest.raises(RuntimeError, match=r"add_param_group\(\), or make one step outside"):
        step(opt, params, noises(params, 0))
    assert plain(values(params)) == before
    assert torch.is_grad_enabled()


def test_a_closure_is_evaluated_in_the_graph() -> None:
    def with_closure(opt: Any, params: Sequence[Parameter]) -> Any:
        def closure() -> Tensor:
            for p in params:
                p.grad = p.detach() / 2
            return sum(p.detach().sum() for p in params)

        return opt.step(closure)

    def run(wrap: Callable[..., Any]) -> list[Tensor]:
        params = parameters()
        opt, step = make("Heat", params), wrap(with_closure)
        return [step(opt, params) for _ in range(STEPS)] + values(params)

    assert same_bits(run(once), run(lambda f: f))


def test_a_compiled_step_in_eval_mode_is_refused(unchanged: Any) -> None:
    params = parameters()
    opt, step = make("HJ", params), once(train_step)
    step(opt, params, noises(params, 0))
    opt.eval()
    check = unchanged(opt, params)
    with pytest.raises(RuntimeError, match="eval mode"):
        step(opt, params, noises(params, 1))
    assert check()
    opt.train()
    step(opt, params, noises(params, 1))
    assert opt.phase == 2


def test_two_optimizers_step_in_one_graph() -> None:
    def both(first: Any, second: Any, params: Sequence[Parameter], noise: Sequence[Tensor]) -> None:
        train_step(first, params[:3], noise[:3])
        train_step(second, params[3:], noise[3:])

    def run(wrap: Callable[..., Any]) -> Any:
        params = parameters()
        first, second = make("EntropySGD", params[:3]), make("EntropyAdamW", params[3:], inner_steps=3)
        step = wrap(both)
        for i in range(STEPS):
            step(first, second, params, noises(params, i))
        return plain(values(params)), plain(first.state_dict()), plain(second.state_dict())

    assert run(once) == run(lambda f: f)


def test_a_new_optimizer_is_not_mistaken_for_a_deleted_one() -> None:
    def run(step: Callable[..., Any]) -> Any:
        params = parameters()[:2]
        for lr in (0.1, 0.3):
            opt = make("HJ", params, lr=lr)
            for i in range(STEPS):
                step(opt, params, noises(params, i))
            name, saved = opt._name_in_graphs, plain(opt.state_dict())
            del opt
            gc.collect()
            with pytest.raises(RuntimeError, match="gone"):
                torch.ops.deeprelax.step([], [], [], None, None, name)
        return plain(values(params)), saved

    assert run(torch.compile(train_step, backend="eager", fullgraph=True)) == run(train_step)


def test_a_copy_steps_itself_in_graphs() -> None:
    (p,) = params = [Parameter(torch.ones(3))]
    opt, step = make("HJ", params), torch.compile(train_step, backend="eager", fullgraph=True)
    step(opt, params, noises(params, 0))
    twin = copy.deepcopy(opt)
    copies = twin.param_groups[0]["params"]
    before = plain(opt.state_dict())
    step(twin, copies, noises(params, 1))
    assert (opt.phase, twin.phase) == (1, 2)
    assert plain(opt.state_dict()) == before
    assert not torch.equal(p, copies[0])


@pytest.mark.parametrize("capturable", [False, True], ids=["host clock", "device clock"])
def test_properties_read_after_a_compiled_step_are_current(capturable: bool) -> None:
    def look(opt: Any, params: Sequence[Parameter], noise: Sequence[Tensor]) -> Any:
        train_step(opt, params, noise)
        return opt.phase, opt.outer_step_happened, opt.gamma

    def run(step: Callable[..., Any]) -> list[Any]:
        params = parameters()[:2]
        opt = make("HJ", params, capturable=capturable)
        return [step(opt, params, noises(params, i)) for i in range(STEPS)]

    assert run(torch.compile(look, backend="eager")) == run(look)


def test_eval_at_x_and_finish_run_between_graphs() -> None:
    def look(opt: Any, params: Sequence[Parameter], noise: Sequence[Tensor]) -> list[Tensor]:
        train_step(opt, params, noise)
        opt.eval()
        shown = [p + 0.5 for p in params]
        opt.train()
        with opt.at_x():
            shown += [p - 0.5 for p in params]
        opt.finish()
        return shown

    def run(step: Callable[..., Any]) -> list[Tensor]:
        params = parameters()[:2]
        opt = make("Parle", params)
        return [t for i in range(STEPS) for t in step(opt, params, noises(params, i))] + values(params)

    count = CompileCounter()
    assert same_bits(run(torch.compile(look, backend=count)), run(look))
    assert count.frame_count == 2  # the step, and the sums after eval(); a `with` block around a break is not compiled


def test_weights_loaded_between_compiled_steps_are_kept_by_eval() -> None:
    (p,) = params = [Parameter(torch.ones(3))]
    opt, step = make("HJ", params), once(lambda opt: opt.step(), "eager")
    p.grad = torch.ones(3)
    for _ in range(2):
        step(opt)
    with torch.no_grad():
        p.fill_(7.0)
    with pytest.warns(UserWarning, match="written to by other code"):
        opt.eval()
    assert p.tolist() == [7.0] * 3


def test_a_scaler_scales_and_skips_inside_a_compiled_function() -> None:
    def scaled(opt: Any, params: Sequence[Parameter], noise: Sequence[Tensor], scaler: Any) -> None:
        for p, n in zip(params, noise):
            p.grad = n
        scaler.step(opt)
        scaler.update()

    def run(step: Callable[..., Any]) -> Any:
        params = parameters()
        opt, scaler = make("HJ", params, capturable=True), torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(torch.ones(()))
        for i in range(STEPS):
            noise = noises(params, i)
            if i == 3:
                noise[0][0] = torch.inf
            step(opt, params, noise, scaler)
        assert opt.phase == 0  # one of the nine did not count
        return plain(values(params)), plain(opt.state_dict()), scaler.get_scale()

    assert run(torch.compile(scaled, backend="eager")) == run(scaled)


def test_an_outer_loop_has_the_bits_of_an_uncompiled_one() -> None:
    def run(step: Callable[..., Any], frames: Callable[[], int]) -> Any:
        params = parameters()
        inner = torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=True)  # as torch 2.11 compiles any SGD
        opt = deeprelax.OuterLoop(inner, inner_steps=3, alpha=0.5)
        compiled_so_far = []
        for i in range(STEPS):
            step(opt, params, noises(params, i))
            compiled_so_far.append(frames())
        assert compiled_so_far[1:] == compiled_so_far[1:2] * (STEPS - 1)  # SGD makes its momenta in the first step
        return plain(values(params)), plain(opt.state_dict())

    count = CompileCounter()
    found = run(torch.compile(train_step, backend=count), lambda: count.frame_count)
    assert found == run(train_step, lambda: 0)


def test_sharded_parameters_are_stepped_between_graphs(mesh: DeviceMesh) -> None:
    """With the bits of an uncompiled step; the graphs are compiled once."""

    def pull(opt: Any, params: Sequence[Parameter]) -> None:
        for p in params:
            p.grad = p.detach() * 0.7
        opt.step()

    def run(step: Callable[..., Any]) -> list[Tensor]:
        first, *others = parameters()
        params = [Parameter(distribute_tensor(first.detach(), mesh, [Shard(0)])), *others]
        opt = make("EntropySGD", params)
        for _ in range(STEPS):
            step(opt, params)
        found = [p.detach() for p in params] + [t for entry in opt.state.values() for t in entry.values()]
        return [t.full_tensor() if isinstance(t, DTensor) else t for t in found]

    count = CompileCounter()
    assert same_bits(run(torch.compile(pull, backend=count)), run(pull))
    assert count.frame_count == 1
