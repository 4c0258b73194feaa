"""One kernel for every step: Triton compiles again for arguments of another kind, which must not happen from one step
to the next, and cannot happen while a CUDA graph is captured."""

import os
from array import array
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import make
from torch.nn import Parameter

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("needs Triton's compiler, and TRITON_INTERPRET=1 is set", allow_module_level=True)

from ahead import Driver, specialization
from triton_binaries import hyper, new_tick, scalars
from updates import names_of_buffers

from deeprelax.kernels import RULES, Hyper, Scalars, Table, Tick, device_table
from deeprelax.kernels.triton.backend import Launch, Triton
from deeprelax.optim.bucket import new_buffer

WHERE_CAPTURING = [
    *("kernels.device_table", "kernels.triton.backend"),
    *("optim.groups", "optim.relaxation", "optim.clock", "optim.device_clock"),
]


@pytest.fixture(params=list(RULES))
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tick_of(rule: str) -> Tick:
    """The tick of a group with every optional term."""
    of: Hyper = hyper(rule)
    return new_tick(rule, of)


def capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a CUDA graph is being captured from now on."""
    for module in WHERE_CAPTURING:
        monkeypatch.setattr(f"deeprelax.{module}.capturing", lambda device: True)


class Bound:
    """A rule on weights of one dtype, with its own backend."""

    def __init__(self, rule: str, dtype: torch.dtype = torch.float32) -> None:
        weight = torch.zeros(5, dtype=dtype)
        self.backend, table = Triton(), Table([weight], [0])
        names = names_of_buffers(RULES[rule], dtype, False)
        buffers = {name: new_buffer(name, table) for name in names}
        self.update = self.backend.bind(RULES[rule], table, buffers, capturable=True)
        self.addresses = array("q", [weight.data_ptr()])

    def launch(self, scalars: Scalars) -> Launch:
        return self.update.launch(scalars, self.addresses)

    def ticked(self, tick: Tick) -> Launch:
        return self.update.launch_ticked(tick, self.addresses)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17])
def test_captured_uploads_go_to_new_multiples_of_16_bytes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = device_table.Upload(size, torch.int64, torch.device("cpu"))
    monkeypatch.setattr(device_table, "capturing", lambda device: True)
    places = [upload(array("q", range(size))) for _ in range(4)]
    assert len({place.data_ptr() for place in places}) == 4
    assert [place.data_ptr() % 16 for place in places] == [0] * 4
    assert all(place.tolist() == list(range(size)) for place in places)


def at(alignment: int, like: torch.Tensor) -> torch.Tensor:
    """A copy whose address is that many bytes past a multiple of 16."""
    skip = alignment // like.element_size()
    return torch.empty(like.numel() + skip, dtype=like.dtype)[skip:].copy_(like.reshape(-1))


def test_the_address_of_an_argument_compiles_no_other_kernel(rule: str) -> None:
    on, tick = Bound(rule), tick_of(rule)
    launches = [on.backend.launch_tick(tick), on.ticked(tick)]
    names = [("lr", "inner_lr", "grad_scale", "found_inf"), ("grads",)]
    for launch, moved in zip(launches, names):
        before = specialization(launch)
        for name in moved:
            there = at(8, launch.arguments[name])
            assert there.data_ptr() % 16 == 8
            assert specialization(replace(launch, arguments={**launch.arguments, name: there})) == before, name


def test_a_number_that_changes_between_steps_compiles_no_other_kernel(rule: str) -> None:
    """Of integers Triton treats 1 and multiples of 16 as something else."""
    on, tick = Bound(rule), tick_of(rule)
    launches = [on.backend.launch_tick(tick), on.ticked(tick)]
    values = [
        {"inner_steps": (1, 5, 16), "flags": (0, 1, 4, 16), "keep_low": (0, 1, 16, -5), "alpha_high": (0, 1, 16, 7)},
        {"key0": (1, 16, -5), "key1": (0, 1, 16), "step": (0, 1, 7, 16)},
    ]
    for launch, changes in zip(launches, values):
        for name, each in changes.items():
            kinds = [specialization(replace(launch, arguments={**launch.arguments, name: value})) for value in each]
            assert all(kind == kinds[0] for kind in kinds), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_integer_hyper_parameter_compiles_no_other_kernel(dtype: torch.dtype) -> None:
    """``HJ(gamma=1)``: scoping makes a float of it with the second cycle."""
    on = Bound("hj", dtype=dtype)
    call = scalars("hj", gamma=1.0, lr=2.0, outer_step=2.0, momentum=1.0)
    same = scalars("hj", gamma=1, lr=2, outer_step=2, momentum=1)
    other = scalars("hj", gamma=0.7, lr=0.3, outer_step=0.1, momentum=0.9)
    assert specialization(on.launch(same)) == specialization(on.launch(call)) == specialization(on.launch(other))


def optimizer(name: str, count: int, **changes: Any) -> tuple[list[Parameter], Any]:
    """Parameters with gradients, and the optimizer on the Triton backend."""
    params = [Parameter(torch.ones(5 + i)) for i in range(count)]
    for p in params:
        p.grad = torch.ones_like(p)
    return params, make(name, params, capturable=True, backend=Triton(), **changes)


@pytest.mark.parametrize("tensors", [1, 2, 3, 5])
def test_a_capture_after_one_step_compiles_nothing(name: str, tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    params, opt = optimizer(name, tensors)
    opt.step()
    assert len(driver.compiled) == driver.launched == 2
    capture(monkeypatch)
    for _ in range(3):  # with gradients at new addresses, in the graph's own memory
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert len(driver.compiled) == 2
    assert driver.launched == 8


@pytest.mark.parametrize("change", ["weight decay", "scaler", "options", "nothing was run"])
def test_a_capture_that_would_have_to_compile_says_what_to_do(
    name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's own message would be that an operation is not permitted when a stream is capturing."""
    driver = Driver(monkeypatch)
    _, opt = optimizer(name, 3, weight_decay=0.0)

    def vary() -> None:
        if change == "weight decay":
            opt.param_groups[0]["weight_decay"] = 0.1
        elif change == "options":
            opt.param_groups[0]["maximize"] = True
        elif change == "scaler":
            opt.grad_scale, opt.found_inf = torch.ones(()), torch.zeros(())

    if change != "nothing was run":
        opt.step()
    vary()
    compiled = len(driver.compiled)
    with monkeypatch.context() as patch:
        capture(patch)
        with pytest.raises(RuntimeError, match=r"run one step\(\) (with the same settings )?before"):
            opt.step()
    assert len(driver.compiled) == compiled
    vary()
    opt.step()
    compiled = len(driver.compiled)
    vary()
    capture(monkeypatch)
    opt.step()
    assert len(driver.compiled) == compiled
