"""Unsupported input is refused by name, and leaves weights, state and clock as they were."""

import warnings

import pytest
import torch

import deeprelax
from deeprelax import HJ, EntropyAdamW, EntropySGD, Heat, kernels
from deeprelax.optim.bucket import Bucket

OPTIMIZERS = [EntropySGD, HJ, Heat, EntropyAdamW]


def parameters(*sizes: int) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.arange(1.0, n + 1)) for n in sizes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params


class Wrapper(torch.Tensor):
    """A tensor without its own memory, as quantised and sharded ones are."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.detach.default, func
        return cls(args[0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_parameter_without_its_own_memory_is_refused(optimizer):
    p = torch.nn.Parameter(Wrapper(torch.ones(3)), requires_grad=False)
    with pytest.raises(TypeError, match=r"\['params'\]\[0\] is a \w+ without its own memory"):
        optimizer([p])


def test_a_parameter_on_the_meta_device_is_refused():
    with pytest.raises(TypeError, match="meta device"):
        HJ([torch.nn.Parameter(torch.ones(3, device="meta"))])


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_gradient_of_zeros_without_memory_is_a_gradient(backend):
    p, q = parameters(4, 4)
    p.grad, q.grad = torch._efficientzerotensor(4), torch.zeros(4)
    one, two = (HJ([w], weight_decay=0.5, backend=backend) for w in (p, q))
    for opt in (one, two):
        opt.step()
    assert torch.equal(p, q)
    assert not torch.equal(p, torch.arange(1.0, 5))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_error_in_one_group_leaves_all_groups_as_they_were(optimizer, monkeypatch):
    params = parameters(4, 4)
    opt = optimizer([{"params": params[:1]}, {"params": params[1:]}], momentum=0.0)
    opt.step()
    before, phase = [p.detach().clone() for p in params], opt.phase
    opt.param_groups[1]["momentum"] = 0.9
    original = Bucket.add_buffers

    def fail(self, which, *args):
        if "momentum_buffer" in which:
            raise MemoryError(which)
        original(self, which, *args)

    monkeypatch.setattr(Bucket, "add_buffers", fail)
    with pytest.raises(MemoryError):
        opt.step()
    opt.param_groups[1].update(momentum=0.0, maximize="no")
    with pytest.raises(ValueError, match="maximize"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    assert opt.phase == phase


def test_an_error_while_a_moved_parameter_is_adopted_keeps_its_state(monkeypatch):
    (p,) = parameters(4)
    opt = HJ([p], lr=0.5, inner_steps=1, momentum=0.9)
    opt.step()
    momentum = opt.state[p]["momentum_buffer"].clone()
    p.data = p.data.clone()
    monkeypatch.setattr(Bucket, "add_buffers", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        opt.step()
    monkeypatch.undo()
    assert torch.equal(opt.state[p]["momentum_buffer"], momentum)
    opt.step()
    assert torch.equal(opt.state[p]["momentum_buffer"], 1.9 * momentum)


@pytest.mark.parametrize("broken", [{"gamma": float("nan")}, {"inner_steps": -3}, {"phase": 7}, {"step": -1}])
def test_a_saved_state_with_impossible_values_is_refused(broken):
    (p,) = parameters(4)
    opt = HJ([p])
    opt.step()
    saved, before = opt.state_dict(), opt.state_dict()
    saved["param_groups"] = [{**saved["param_groups"][0], **broken}]
    with pytest.raises(ValueError, match=next(iter(broken))):
        opt.load_state_dict(saved)
    assert opt.state_dict()["param_groups"] == before["param_groups"]


def test_a_frozen_parameter_does_not_send_the_others_down_the_slow_path(monkeypatch):
    params = parameters(4, 4, 4)
    params[1].grad = None
    opt = HJ(params)

    def fail(*_):
        raise AssertionError("slow path")

    monkeypatch.setattr(Bucket, "_in_layout", fail)
    opt.step()
    assert torch.equal(params[1], torch.arange(1.0, 5))
    assert not torch.equal(params[2], torch.arange(1.0, 5))


def test_scoping_that_takes_the_outer_step_past_its_bound_warns_once():
    (p,) = parameters(2)
    opt = EntropySGD([p], lr=1.0, gamma=0.502, scoping=2e-3, inner_steps=1, inner_lr=0.01)
    with warnings.catch_warnings(record=True, action="always") as told:
        for _ in range(6):
            opt.step()
    assert [(w.filename, "lr / gamma to 2" in str(w.message)) for w in told] == [(__file__, True)]


def test_a_backend_that_cannot_start_is_reported_without_a_crash(monkeypatch):
    monkeypatch.setenv("DEEPRELAX_ISA", "foo")
    kernels._load.cache_clear()
    try:
        assert "DEEPRELAX_ISA=foo" in deeprelax.kernels.why_not("cpu")
        assert "cpu" not in kernels.available()
    finally:
        kernels._load.cache_clear()
