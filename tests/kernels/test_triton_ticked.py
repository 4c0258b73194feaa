"""Ticked calls in Triton's interpreter: the bits of the eager reference, from a clock that only the kernels advance."""

import ctypes
import itertools
import random
from array import array
from dataclasses import dataclass, replace

import pytest
import torch
from interpreter import interpreted
from torch import Tensor
from updates import DTYPES, at_offset, missed_gradients, names_of_buffers, numbers, same_bits

from deeprelax.kernels import RULES, Backend, ClockMemory, Flag, Hyper, Table, Tick
from deeprelax.kernels.abi import REALS, WIDE, DeviceScalars
from deeprelax.kernels.reference import Eager
from deeprelax.kernels.scalars import float32

pytest.importorskip("triton")
from deeprelax.kernels.triton.backend import Triton

SIZES = [1029, 0, 67]  # the kernels' block is 1024
CPU = torch.device("cpu")
DRAW = torch.default_generator


def flag() -> bool:
    return random.random() < 0.5


def random_hyper(rule: str, inner_steps: int) -> Hyper:
    flags = {Flag.NESTEROV: flag(), Flag.MAXIMIZE: flag()}
    reals = {"keep": 0.97, "momentum": random.choice([0.0, 0.9]), "weight_decay": random.choice([0.0, 0.03])}
    if rule not in ("heat", "elastic_sgd"):
        reals["alpha"] = 0.7
    if rule == "hj":
        flags[Flag.WARM_START] = flag()
    if rule == "outer":
        reals["alpha"] = random.choice([0.0, 0.7])
    if rule == "entropy_adamw":
        reals |= {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-8, "alpha": random.choice([0.0, 0.7])}
        reals["temperature"] = random.choice([0.0, 1e-3])
        flags[Flag.STOCHASTIC_ROUNDING] = flag()
    if rule in ("entropy_sgd", "elastic_sgd"):
        reals |= {"temperature": random.choice([0.0, 1e-3, 1e-3]), "inner_momentum": random.choice([0.0, 0.8])}
        own = (Flag.IMPLICIT, Flag.ABSORB_GAMMA, Flag.CARRY_INNER_MOMENTUM, Flag.STOCHASTIC_ROUNDING)
        flags |= {option: flag() for option in own}
    return Hyper(inner_steps=inner_steps, flags=sum(int(option) for option, on in flags.items() if on), **reals)


def changed(hyper: Hyper, on: int = 0, off: int = 0, **values: float) -> Hyper:
    """A copy with other flags and values."""
    new = Hyper.from_buffer_copy(hyper)
    for name, value in values.items():
        setattr(new, name, value)
    new.flags = (new.flags | on) & ~off
    return new


@dataclass
class Run:
    """One backend's own copy of everything that a step changes."""

    backend: Backend
    rule: str
    table: Table
    clock: ClockMemory
    buffers: dict[str, Tensor]

    def __post_init__(self) -> None:
        self.update = self.backend.bind(RULES[self.rule], self.table, self.buffers)

    def step(self, tick: Tick, grads: list[Tensor | None]) -> None:
        own = replace(tick, clock=self.clock)
        self.backend.tick(own)
        addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
        self.update.run_ticked(own, list(grads), addresses)


def new_clock(step: int = 0) -> ClockMemory:
    clock = ClockMemory(CPU)
    values = {"step": step, "fresh": 1, "seed": 0xFEDCBA9876543210, "replica": 0x89ABCDEF, "gamma": 0.3}
    for name, value in values.items():
        clock.set(name, value)
    return clock


def new_runs(rule: str, hyper: Hyper, dtype: torch.dtype, special: bool) -> list[Run]:
    """Eager and Triton, in the same state."""
    values = [numbers(size, dtype, DRAW, special) for size in SIZES]
    offsets = [random.choice([0, 0, 1, 8]) for _ in SIZES]
    step = random.choice([5, 2**32 - 2])
    kept: dict[str, Tensor] = {}
    runs = []
    for backend in (Eager(), Triton()):
        weights = [at_offset(v, offset) for v, offset in zip(values, offsets)]
        table = Table(weights, [3, 0, 11], starts=[2**34 + 8, 0, 4])
        if not kept:
            rounding = bool(hyper.flags & Flag.STOCHASTIC_ROUNDING) and dtype == torch.bfloat16
            names = names_of_buffers(RULES[rule], dtype, rounding)
            kept = {name: numbers(table.length, table.compute_dtype, DRAW, special) for name in names}
            if "missed" in kept:
                kept["missed"] = missed_gradients(len(SIZES))
        runs.append(Run(backend, rule, table, new_clock(step), {name: b.clone() for name, b in kept.items()}))
    return runs


def check(runs: list[Run], where: str) -> None:
    eager, triton = runs
    assert eager.clock.words.tolist() == triton.clock.words.tolist(), where
    for t, (a, b) in enumerate(zip(eager.table.weights, triton.table.weights)):
        assert same_bits(a, b), f"weight {t}, {where}"
    for name, reference in eager.buffers.items():
        assert same_bits(reference, triton.buffers[name]), f"{name}, {where}"


def new_tick(rule: str, hyper: Hyper, clock: ClockMemory, lr: Tensor, inner_lr: Tensor | None, *scaler: object) -> Tick:
    grad_scale, found_inf = scaler or (None, None)
    return Tick(RULES[rule], hyper, clock, lr, inner_lr, grad_scale, found_inf)  # type: ignore[arg-type]


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", list(RULES))
def test_two_cycles_with_random_options_give_the_reference_bits(rule: str, dtype: torch.dtype) -> None:
    """First, inner and last calls of L = 3, one of them skipped, then L = 1; gamma changed in mid-cycle, which counts
    from the next; gradients missing; a gamma and rates that schedulers change."""
    random.seed(f"{rule} {dtype}")
    torch.manual_seed(random.getrandbits(32))
    hyper = random_hyper(rule, 3)
    runs = new_runs(rule, hyper, dtype, special=flag())
    lr, inner_lr = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.07])
    if flag():
        lr, inner_lr = lr.float(), inner_lr.double()
    scaler, skipped = flag(), random.choice([0, 1, 2])
    grad_scale, found_inf = torch.tensor([65537.0]), torch.zeros(1)
    for step in range(6):
        grads = [at_offset(numbers(size, dtype, DRAW), random.choice([0, 0, 1])) for size in SIZES]
        kept = [None if random.random() < 0.3 else g for g in grads]
        found_inf.fill_(step == skipped)
        if step == 2:
            for run in runs:
                run.clock.value("gamma").mul_(1.5)
            lr.mul_(0.7)
        if step == 4:
            hyper = changed(hyper, inner_steps=1)
        source = (grad_scale, found_inf) if scaler or step == skipped else ()
        tick = new_tick(rule, hyper, runs[0].clock, lr, inner_lr, *source)
        for run in runs:
            run.step(tick, kept)
        check(runs, f"step {step} of {rule}, {dtype}")


@interpreted
def test_no_noise_is_drawn_while_its_scale_is_zero() -> None:
    """Adding a normal times 0 would make +0 of -0."""
    random.seed(0)
    off = int(Flag.MAXIMIZE | Flag.IMPLICIT | Flag.CARRY_INNER_MOMENTUM)
    hyper = changed(random_hyper("entropy_sgd", 3), off=off, temperature=0.1, weight_decay=0.0)
    runs = new_runs("entropy_sgd", hyper, torch.float32, special=False)
    for run in runs:
        for weight in run.table.weights:
            weight.fill_(-0.0)
    tick = new_tick("entropy_sgd", hyper, runs[0].clock, torch.tensor(0.1), torch.tensor(0.0))
    for run in runs:
        run.step(tick, [torch.zeros(size) for size in SIZES])
    check(runs, "the first step")
    assert runs[1].table.weights[0].signbit().all()


def every_hyper(rule: str) -> list[Hyper]:
    """With each option on and off that the clock's arithmetic knows."""
    chosen = []
    for absorb, carry, decay, maximize in itertools.product([False, True], repeat=4):
        flags = {Flag.MAXIMIZE: maximize}
        if rule == "entropy_sgd":
            flags |= {Flag.ABSORB_GAMMA: absorb, Flag.CARRY_INNER_MOMENTUM: carry}
        on, off = (sum(int(f) for f, set_ in flags.items() if set_ == wanted) for wanted in (True, False))
        chosen.append(changed(random_hyper(rule, 3), on, off, weight_decay=0.03 * decay))
    return chosen if rule == "entropy_sgd" else chosen[:4]


def derived(clock: ClockMemory) -> DeviceScalars:
    return DeviceScalars.from_address(clock.scalars.data_ptr())


@interpreted
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("rule", list(RULES))
def test_the_clock_and_every_scalar_are_those_of_the_host(rule: str, backend: str) -> None:
    """Bit for bit over ten ticks. ``inner_steps`` and gamma change in mid-cycle, which counts from the next cycle.

    "cuda" is csrc/clock.h, emulated.
    """
    random.seed(rule)
    for hyper in every_hyper(rule):
        if backend == "cuda":
            from deeprelax.kernels.cuda import Cuda

            tested: Backend = Cuda(pytest.importorskip("deeprelax._cuda"), emulated=True)
        else:
            tested = Triton()
        clocks = [new_clock(2**32 - 3), new_clock(2**32 - 3)]
        lr = torch.tensor([0.1], dtype=random.choice([torch.float32, torch.float64]))
        inner_lr = torch.tensor([0.07], dtype=random.choice([torch.float32, torch.float64]))
        scale, found_inf = torch.tensor([65537.0]), torch.zeros(1)
        for step in range(10):
            source = (scale, found_inf) if step % 3 != 0 else ()
            found_inf.fill_(step == 4)
            lr.mul_(0.9)
            for clock in clocks:
                if step in (2, 5):
                    clock.value("gamma").mul_(1.1)
            now = changed(hyper, inner_steps=3 if step < 5 else 1)
            tick = new_tick(rule, now, clocks[0], lr, inner_lr, *source)
            tick.on_host()
            tested.tick(replace(tick, clock=clocks[1]))
            assert clocks[1].words.tolist() == clocks[0].words.tolist(), f"step {step}"
            expected, found = clocks[0].host_scalars, derived(clocks[1])
            if expected is None:
                assert found.wide.flags == found.narrow.flags == Flag.SKIP
                continue
            for name in REALS:
                real = getattr(expected, name)
                assert (getattr(found.wide, name), getattr(found.narrow, name)) == (real, float32(real)), name
            for name in WIDE if RULES[rule].counts else ():
                assert getattr(found.wide, name) == getattr(found.narrow, name) == getattr(expected, name), name
            # csrc/options.h adds further bits, and leaves a warm start out where it says nothing.
            compared = 0xFFFF if expected.flags & Flag.FIRST else 0xFFFF & ~Flag.WARM_START
            for each in (found.wide, found.narrow):
                assert each.flags & compared == expected.flags & compared, f"step {step}"
                words = each.key0, each.key1, each.step
                assert words == (expected.key0, expected.key1, expected.step), f"step {step}"


def test_the_scalars_are_of_the_size_that_the_clock_has_room_for() -> None:
    assert ctypes.sizeof(DeviceScalars) <= 8 * ClockMemory(CPU).scalars.numel()
