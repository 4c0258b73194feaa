"""The Triton kernels return the bits of the eager reference, in Triton's interpreter.

The interpreter is chosen when triton is imported, and other tests need the compiler: so these tests run in a process
of their own, which the first test starts.
"""

import importlib.util
import itertools
import random
from array import array

import pytest
import torch
from interpreter import INTERPRETED, at_offset, interpreted, numbers, run_interpreted, same_bits
from torch import Tensor
from updates import BOOLS, Call, call, corrected, missed_gradients, names_of_buffers, near_weights, random_runs

from deeprelax.kernels import RULES, Draw, Flag, Table, noise
from deeprelax.kernels.reference import Eager
from deeprelax.kernels.scalars import float32

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
PHASES = [(True, True), (True, False), (False, False), (False, True)]
SIZES = [0, 1, 3, 4, 5, 67, 1024, 1029, 2050]  # the kernels' block is 1024
STARTS = {
    "at 0": [0],
    "in whole Philox calls": [0, 4, 2**34 + 8, 2**40 + 4],
    "inside Philox calls": [0, 3, 2**34 + 5, 2**33 + 2, 7],
}

if not INTERPRETED:

    @pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
    def test_triton_returns_the_bits_of_the_eager_reference() -> None:
        run_interpreted(__file__)


else:
    import triton
    import triton.language as tl

    from deeprelax.kernels.device_table import Upload
    from deeprelax.kernels.triton import noise as triton_noise
    from deeprelax.kernels.triton.backend import Triton

    @triton.jit
    def draw_kernel(
        out,
        key0,
        key1,
        step,
        index,
        start,
        COUNT: tl.constexpr,
        PER_THREAD: tl.constexpr,
    ):
        drawn = triton_noise.normal(triton_noise.Draw(key0, key1, step, PER_THREAD), index, start, COUNT)
        tl.store(out + tl.arange(0, COUNT), drawn)


def flag() -> bool:
    return random.random() < 0.5


LANGEVIN = ("entropy_sgd", "elastic_sgd")


def random_call(rule: str, first: bool, last: bool, stochastic_rounding: bool) -> Call:
    flags = {
        Flag.FIRST: first,
        Flag.LAST: last,
        Flag.MAXIMIZE: flag(),
        Flag.NESTEROV: flag(),
        Flag.IMPLICIT: rule in LANGEVIN and flag(),
        Flag.FRESH_VELOCITY: rule in LANGEVIN and flag(),
        Flag.STOCHASTIC_ROUNDING: RULES[rule].keeps_y and stochastic_rounding,
        Flag.PULL: rule == "entropy_adamw" and flag(),
        Flag.AVERAGE: rule in ("entropy_adamw", "outer") and flag(),
        Flag.WARM_START: rule == "hj" and flag(),
        Flag.TAKE_PARAM: rule in ("heat", "elastic_sgd") and flag(),
    }
    reals = {
        "momentum": random.choice([0.0, 0.9]),
        "weight_decay": random.choice([0.0, 0.03]),
        "inv_scale": random.choice([1.0, float32(1 / 65537)]),
    }
    if rule != "heat":
        reals |= {"alpha": 0.7, "one_minus_alpha": 0.3}
    if rule == "hj":
        reals["gamma"] = 0.37
    if rule == "heat":
        reals["noise_scale"] = 0.21
    if rule in LANGEVIN:
        reals |= {"inner_lr": 0.11, "inv_gamma": 1.3, "pull": 0.17, "denominator": 1.17}
        reals |= {"noise_scale": random.choice([0.0, 0.05]), "inner_momentum": random.choice([0.0, 0.8])}
    draw = Draw(random.getrandbits(64), random.getrandbits(32), random.choice([5, 7]))
    if rule == "entropy_adamw":
        reals |= corrected(0.11, (0.8, 0.95), draw.step) | {
            "inv_gamma": 1.3,
            "noise_scale": random.choice([0.0, 0.05]),
        }
    return call(rule, flags, **reals).with_draw(draw)


def compare(call: Call, dtype: torch.dtype, sizes: list[int], starts: list[int]) -> None:
    """Runs both backends from one state; parameters, buffers and their padding must agree."""
    special = flag()
    offsets = [random.choice([0, 0, 1, 8]) for _ in sizes]
    values = [numbers(size, dtype, special) for size in sizes]
    grads = [
        None if random.random() < 0.25 else at_offset(numbers(size, dtype, special), random.choice([0, 0, 0, 1]))
        for size in sizes
    ]
    starts = [random.choice(starts) for _ in sizes]
    runs = [random_runs(size, random.Random(random.random())) for size in sizes]
    indices = random.sample(range(1000), len(sizes))
    kept: dict[str, Tensor] = {}
    results = []
    for backend in (Eager(), Triton()):
        weights = [at_offset(v, o) for v, o in zip(values, offsets, strict=True)]
        table = Table(weights, indices, starts, runs)
        if not kept:
            names = names_of_buffers(call.rule, dtype, call.has(Flag.STOCHASTIC_ROUNDING))
            kept = {name: numbers(table.length, table.compute_dtype, special) for name in names}
            if "missed" in kept:
                kept["missed"] = missed_gradients(len(sizes))
            near_weights(table, kept["x"], 1 + 2.0**-13)
        buffers = {name: b.clone() for name, b in kept.items()}
        addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
        backend.bind(call.rule, table, buffers).run(call.scalars, list(grads), addresses)
        results.append({f"weight {t}": w for t, w in enumerate(weights)} | buffers)
    for name, reference in results[0].items():
        assert same_bits(reference, results[1][name]), f"{name} of {call}, sizes {sizes}, starts {starts}, runs {runs}"


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("phase", PHASES, ids=lambda p: "first" * p[0] + "last" * p[1] or "inner")
@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_gives_the_bits_of_the_reference_with_random_flags(
    rule: str, phase: tuple[bool, bool], dtype: torch.dtype
) -> None:
    random.seed(f"{rule} {phase} {dtype}")
    torch.manual_seed(random.getrandbits(32))
    for repeat in range(4 if rule in ("entropy_sgd", "hj") else 2):
        rounding = dtype == torch.bfloat16 and repeat % 2 == 1
        compare(random_call(rule, *phase, rounding), dtype, random.sample(SIZES, 3), STARTS["in whole Philox calls"])


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_every_size_and_start_gives_the_bits_of_the_reference(starts: list[int], dtype: torch.dtype) -> None:
    random.seed(f"{starts} {dtype}")
    call = random_call("entropy_sgd", False, False, dtype == torch.bfloat16)
    compare(call.changed(noise_scale=0.05), dtype, SIZES, starts)
    compare(random_call("heat", False, False, False), dtype, SIZES, starts)


@interpreted
@pytest.mark.parametrize("flags", itertools.product(BOOLS, repeat=3), ids=lambda f: "".join("-+"[flag] for flag in f))
def test_inner_momentum_without_gradients_gives_the_reference_bits(flags: tuple[bool, bool, bool]) -> None:
    first, last, fresh = flags
    random.seed(str(flags))
    velocity = {"on" if fresh else "off": Flag.FRESH_VELOCITY}
    call = random_call("entropy_sgd", first, last, False).changed(inner_momentum=0.8, **velocity)
    compare(call, torch.bfloat16, [1, 5, 70, 9, 8, 3], [0])


@interpreted
@pytest.mark.parametrize("start", [0, 4, 2**34 + 4096])
@pytest.mark.parametrize("per_thread", [4, 8])
def test_normals_are_those_of_the_reference(per_thread: int, start: int) -> None:
    draw = Draw(0x1234567890ABCDEF, 2**31 - 7, 3)
    out = torch.empty(32768)
    key0, key1 = (key - 2**32 if key >= 2**31 else key for key in draw.key)
    draw_kernel[(1,)](out, key0, key1, draw.step, 11, start, 32768, per_thread)
    assert same_bits(noise.normal(draw, 11, start, (32768,), "cpu"), out)


@interpreted
def test_addresses_are_copied_to_the_device_only_when_they_change() -> None:
    upload = Upload(2, torch.int64, torch.device("cpu"))
    values = array("q", [1, 2])
    first = upload(values)
    assert upload(array("q", [1, 2])) is first
    values[0] = 3  # the caller's own array
    assert upload(values).tolist() == [3, 2]


@interpreted
def test_the_next_call_of_a_kind_makes_and_copies_nothing_again() -> None:
    """What grows with the number of tensors is made once, but for comparing their addresses."""
    weights = [torch.zeros(5) for _ in range(3)]
    table = Table(weights, [0, 1, 2])
    call = random_call("hj", False, False, False)
    buffers = {name: table.new_buffer() for name in names_of_buffers(call.rule, torch.float32, False)}
    update, addresses = Triton().bind(call.rule, table, buffers), array("q", [w.data_ptr() for w in weights])
    first = update.launch(call.changed(gamma=0.1).scalars, addresses)
    second = update.launch(call.changed(gamma=0.2).scalars, addresses[:])
    assert all(first.arguments[k] is second.arguments[k] for k in ("chunks", "tensors", "grads"))
    assert first.options is second.options
    assert (first.arguments["scalars"].gamma, second.arguments["scalars"].gamma) == (0.1, 0.2)
