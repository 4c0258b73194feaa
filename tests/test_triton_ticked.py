"""Ticked calls in Triton's interpreter: the bits of the eager reference, from a clock that only the kernels advance."""

import importlib.util
import itertools
import random
from array import array
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from interpreter import INTERPRETED, at_offset, interpreted, numbers, run_interpreted, same_bits
from torch import Tensor

from deeprelax.kernels import Backend, Clock, Eager, EntropySGDCall, HeatCall, HJCall, Table, Tick
from deeprelax.kernels.settings import AnySettings, EntropySGDSettings, HeatSettings, HJSettings

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BUFFERS = {call.rule: call.buffers for call in (EntropySGDCall, HJCall, HeatCall)}
SIZES = [1029, 0, 67]  # the kernels' block is 1024
CPU = torch.device("cpu")

if not INTERPRETED:

    @pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
    def test_ticked_calls_return_the_bits_of_the_eager_reference() -> None:
        run_interpreted(__file__)


else:
    from deeprelax.kernels.triton_backend import Triton


def flag() -> bool:
    return random.random() < 0.5


def random_settings(rule: str, inner_steps: int) -> AnySettings:
    shared: dict[str, Any] = {
        "inner_steps": inner_steps,
        "keep": 0.97,
        "momentum": random.choice([0.0, 0.9]),
        "nesterov": flag(),
        "weight_decay": random.choice([0.0, 0.03]),
        "maximize": flag(),
    }
    if rule == "hj":
        return HJSettings(**shared, alpha=0.7, warm_start=flag())
    if rule == "heat":
        return HeatSettings(**shared)
    return EntropySGDSettings(
        **shared,
        alpha=0.7,
        temperature=random.choice([0.0, 1e-3, 1e-3]),
        implicit=flag(),
        absorb_gamma=flag(),
        inner_momentum=random.choice([0.0, 0.8]),
        carry_inner_momentum=flag(),
        stochastic_rounding=flag(),
    )


@dataclass
class Run:
    """One backend's own copy of everything that a step changes."""

    backend: Backend
    table: Table
    clock: Clock
    buffers: dict[str, Tensor]

    def step(self, tick: Tick, grads: list[Tensor | None]) -> None:
        own = replace(tick, clock=self.clock)
        self.backend.tick(own)
        addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
        self.backend.run_ticked(own, self.table, list(grads), addresses, self.buffers)


def new_clock(step: int = 0) -> Clock:
    clock = Clock(CPU)
    for name, value in {"step": step, "fresh": 1, "seed": 0xFEDCBA9876543210, "gamma": 0.3}.items():
        clock.set(name, value)
    return clock


def new_runs(settings: AnySettings, dtype: torch.dtype, special: bool) -> list[Run]:
    """Eager and Triton, in the same state."""
    values = [numbers(size, dtype, special) for size in SIZES]
    offsets = [random.choice([0, 0, 1, 8]) for _ in SIZES]
    step = random.choice([0, 2**32 - 2])
    kept: dict[str, Tensor] = {}
    runs = []
    for backend in (Eager(), Triton()):
        weights = [at_offset(v, offset) for v, offset in zip(values, offsets)]
        table = Table(weights, [3, 0, 11], starts=[2**34 + 8, 0, 4])
        if not kept:
            kept = {name: numbers(table.length, table.compute_dtype, special) for name in BUFFERS[settings.rule]}
            rounding = getattr(settings, "stochastic_rounding", False) and dtype == torch.bfloat16
            if dtype == table.compute_dtype or rounding:
                kept.pop("y", None)
        runs.append(Run(backend, table, new_clock(step), {name: b.clone() for name, b in kept.items()}))
    return runs


def check(runs: list[Run], where: str) -> None:
    eager, triton = runs
    assert eager.clock.words.tolist() == triton.clock.words.tolist(), where
    for t, (a, b) in enumerate(zip(eager.table.weights, triton.table.weights)):
        assert same_bits(a, b), f"weight {t}, {where}"
    for name, reference in eager.buffers.items():
        assert same_bits(reference, triton.buffers[name]), f"{name}, {where}"


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", list(BUFFERS))
def test_two_cycles_with_random_options(rule: str, dtype: torch.dtype) -> None:
    """First, inner and last calls of L = 3, then L = 1; one call skipped; gamma changed in mid-cycle, so that HJ's
    weights are no longer where it has put them; gradients missing; a gamma and rates that schedulers change."""
    random.seed(f"{rule} {dtype}")
    torch.manual_seed(random.getrandbits(32))
    settings = random_settings(rule, 3)
    runs = new_runs(settings, dtype, special=flag())
    lr, inner_lr = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.07])
    if flag():
        lr, inner_lr = lr.float(), inner_lr.double()
    scaler = flag()
    grad_scale, found_inf = torch.tensor([65537.0]), torch.zeros(1)
    for step in range(6):
        grads = [at_offset(numbers(size, dtype, False), random.choice([0, 0, 1])) for size in SIZES]
        kept = [None if random.random() < 0.3 else g for g in grads]
        found_inf.fill_(step == 1)
        if step == 2:
            for run in runs:
                run.clock.gamma.mul_(1.5)
            lr.mul_(0.7)
        if step == 4:
            settings = replace(settings, inner_steps=1)
        source = (grad_scale, found_inf) if scaler or step == 1 else (None, None)
        tick = Tick(settings, runs[0].clock, lr, inner_lr, *source, any(g is None for g in kept))
        for run in runs:
            run.step(tick, kept)
        check(runs, f"step {step} of {settings}")


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_decay_reads_a_weight_that_is_not_where_gamma_says(dtype: torch.dtype) -> None:
    """Every call of a cycle with a gamma of its own; the weight has been written to as well."""
    random.seed(str(dtype))
    settings = replace(random_settings("hj", 3), weight_decay=0.1)
    runs = new_runs(settings, dtype, special=False)
    read = []
    for step in range(4):
        for run in runs:
            run.clock.gamma.mul_(1.0 if step == 1 else 0.5)
            run.table.weights[0].add_(1)
        tick = Tick(settings, runs[0].clock, torch.tensor(0.1), None, None, None, False)
        grads: list[Tensor | None] = [numbers(size, dtype, False) for size in SIZES]
        for run in runs:
            run.step(tick, grads)
        check(runs, f"step {step}")
        read.append(bool(runs[1].clock.numbers.view(torch.int32)[45] & 256))
    assert read == [True, False, True, True]


@interpreted
@pytest.mark.parametrize("rule", list(BUFFERS))
def test_a_skipped_call_changes_nothing(rule: str) -> None:
    random.seed(rule)
    settings = random_settings(rule, 2)
    _, run = new_runs(settings, torch.bfloat16, special=True)
    before = [t.clone() for t in (*run.table.weights, *run.buffers.values(), run.clock.words)]
    rate = torch.tensor(0.1)
    tick = Tick(settings, run.clock, rate, rate, torch.tensor(3.0), torch.tensor(1.0), missing=False)
    run.step(tick, [numbers(size, torch.bfloat16, True) for size in SIZES])
    after = [*run.table.weights, *run.buffers.values(), run.clock.words]
    assert all(same_bits(a, b) for a, b in zip(before, after))


@interpreted
def test_no_noise_is_drawn_while_its_scale_is_zero() -> None:
    """Adding a normal times 0 would make +0 of -0."""
    random.seed(0)
    settings = random_settings("entropy_sgd", 3)
    assert isinstance(settings, EntropySGDSettings)
    settings = replace(settings, temperature=0.1, weight_decay=0.0, maximize=False, implicit=False)
    runs = new_runs(settings, torch.float32, special=False)
    for run in runs:
        for weight in run.table.weights:
            weight.fill_(-0.0)
    tick = Tick(settings, runs[0].clock, torch.tensor(0.1), torch.tensor(0.0), None, None, missing=False)
    for run in runs:
        run.step(tick, [torch.zeros(size) for size in SIZES])
    check(runs, "the first step")
    assert runs[1].table.weights[0].signbit().all()


def every_settings(rule: str) -> list[AnySettings]:
    """With each option on and off that the clock's arithmetic knows."""
    chosen = []
    for absorb, carry, decay, other in itertools.product([False, True], repeat=4):
        settings = replace(random_settings(rule, 3), weight_decay=0.03 * decay, maximize=other)
        if isinstance(settings, EntropySGDSettings):
            settings = replace(settings, absorb_gamma=absorb, carry_inner_momentum=carry)
        chosen.append(settings)
    return chosen if rule == "entropy_sgd" else chosen[:4]


@interpreted
@pytest.mark.parametrize("rule", list(BUFFERS))
def test_the_clock_and_every_number_are_those_of_the_cpu_backend(rule: str) -> None:
    """Bit for bit over ten ticks: padding, unused numbers and an unknown placed gamma included. ``inner_steps``
    changes in mid-cycle, which concerns the next cycle."""
    native = pytest.importorskip("deeprelax.kernels.native")
    cpu = native.NativeCPU(pytest.importorskip("deeprelax._cpu"))
    random.seed(rule)
    for settings in every_settings(rule):
        triton, clocks = Triton(), [new_clock(2**32 - 3), new_clock(2**32 - 3)]
        lr = torch.tensor([0.1], dtype=random.choice([torch.float32, torch.float64]))
        inner_lr = torch.tensor([0.07], dtype=random.choice([torch.float32, torch.float64]))
        scale, found_inf = torch.tensor([65537.0]), torch.zeros(1)
        for step in range(10):
            scaler = step % 3 != 0
            found_inf.fill_(step == 4)
            lr.mul_(0.9)
            for clock in clocks:
                if step in (2, 5):
                    clock.gamma.mul_(1.1)
            tick = Tick(
                replace(settings, inner_steps=3 if step < 5 else 1),
                clocks[0],
                lr,
                inner_lr,
                scale if scaler else None,
                found_inf if scaler else None,
                missing=step in (1, 2, 6),
            )
            cpu.tick(tick)
            triton.tick(replace(tick, clock=clocks[1]))
            for kind in ("words", "numbers"):
                expected, found = (getattr(clock, kind).tolist() for clock in clocks)
                assert found == expected, f"{kind} after step {step} of {settings}"
