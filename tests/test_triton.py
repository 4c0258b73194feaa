"""The Triton kernels return the bits of the eager reference, in Triton's interpreter.

The interpreter is chosen when triton is imported, and other tests need the compiler: so these tests run in a process
of their own, which the first test starts.
"""

import importlib.util
import itertools
import random
from array import array
from dataclasses import replace

import pytest
import torch
from interpreter import INTERPRETED, at_offset, interpreted, numbers, run_interpreted, same_bits
from torch import Tensor

from deeprelax.kernels import Eager, EntropySGDCall, HeatCall, HJCall, Outer, Stream, Table, noise
from deeprelax.kernels.settings import float32

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

    from deeprelax.kernels import triton_noise
    from deeprelax.kernels.device_table import Upload
    from deeprelax.kernels.triton_backend import Triton

    @triton.jit
    def draw(
        out,
        key0,
        key1,
        step,
        index,
        start,
        COUNT: tl.constexpr,
        PER_THREAD: tl.constexpr,
        WHOLE_CALLS: tl.constexpr,
    ):
        drawn = triton_noise.normal(triton_noise.Stream(key0, key1, step, PER_THREAD, WHOLE_CALLS), index, start, COUNT)
        tl.store(out + tl.arange(0, COUNT), drawn)


def flag() -> bool:
    return random.random() < 0.5


def random_outer() -> Outer:
    return Outer(step=0.31, scale=1.7, lr=0.13, momentum=random.choice([0.0, 0.9]), nesterov=flag())


def random_call(rule: type, first: bool, last: bool, stochastic_rounding: bool) -> EntropySGDCall | HJCall | HeatCall:
    weight_decay, maximize, outer = random.choice([0.0, 0.03]), flag(), random_outer()
    inv_scale = random.choice([1.0, float32(1 / 65537)])
    stream = Stream(random.getrandbits(64), random.getrandbits(32), random.choice([0, 5]))
    if rule is HJCall:
        return HJCall(first, last, flag(), 0.37, 0.7, 0.3, weight_decay, maximize, flag(), outer, inv_scale)
    if rule is HeatCall:
        return HeatCall(first, last, flag(), 0.21, weight_decay, maximize, outer, stream, inv_scale)
    return EntropySGDCall(
        first,
        last,
        inner_lr=0.11,
        inv_gamma=1.3,
        pull=0.17,
        denominator=1.17,
        alpha=0.7,
        one_minus_alpha=0.3,
        noise_scale=random.choice([0.0, 0.05]),
        weight_decay=weight_decay,
        maximize=maximize,
        implicit=flag(),
        inner_momentum=random.choice([0.0, 0.8]),
        inner_nesterov=flag(),
        fresh_velocity=flag(),
        stochastic_rounding=stochastic_rounding,
        outer=outer,
        stream=stream,
        inv_scale=inv_scale,
    )


def compare(call: EntropySGDCall | HJCall | HeatCall, dtype: torch.dtype, sizes: list[int], starts: list[int]) -> None:
    """Runs both backends from one state; parameters, buffers and their padding must agree."""
    special = flag()
    offsets = [random.choice([0, 0, 1, 8]) for _ in sizes]
    values = [numbers(size, dtype, special) for size in sizes]
    grads = [
        None if random.random() < 0.25 else at_offset(numbers(size, dtype, special), random.choice([0, 0, 0, 1]))
        for size in sizes
    ]
    starts = [random.choice(starts) for _ in sizes]
    indices = random.sample(range(1000), len(sizes))
    kept: dict[str, Tensor] = {}
    results = []
    for backend in (Eager(), Triton()):
        weights = [at_offset(v, o) for v, o in zip(values, offsets, strict=True)]
        table = Table(weights, indices, starts=starts)
        if not kept:
            kept = {name: numbers(table.length, table.compute_dtype, special) for name in call.buffers}
            for t, v in enumerate(values):  # some of x still rounds to the weight
                rounds = slice(table.offsets[t], table.offsets[t] + v.numel() // 2)
                kept["x"][rounds] = v[: v.numel() // 2].to(table.compute_dtype) * (1 + 2.0**-13)
            rounding = isinstance(call, EntropySGDCall) and call.stochastic_rounding
            if dtype in (torch.float64, torch.float32) or (rounding and dtype == torch.bfloat16):
                kept.pop("y", None)
        buffers = {name: b.clone() for name, b in kept.items()}
        addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
        backend.run(call, table, list(grads), addresses, buffers)
        results.append({f"weight {t}": w for t, w in enumerate(weights)} | buffers)
    for name, reference in results[0].items():
        assert same_bits(reference, results[1][name]), f"{name} of {call}, sizes {sizes}, starts {starts}"


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("phase", PHASES, ids=lambda p: "first" * p[0] + "last" * p[1] or "inner")
@pytest.mark.parametrize("rule", [EntropySGDCall, HJCall, HeatCall], ids=lambda r: r.rule)
def test_every_rule_with_random_flags(rule: type, phase: tuple[bool, bool], dtype: torch.dtype) -> None:
    random.seed(f"{rule.rule} {phase} {dtype}")
    torch.manual_seed(random.getrandbits(32))
    for repeat in range(2 if rule is HeatCall else 4):
        rounding = dtype == torch.bfloat16 and repeat % 2 == 1
        compare(random_call(rule, *phase, rounding), dtype, random.sample(SIZES, 3), STARTS["in whole Philox calls"])


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_every_size_and_start(starts: list[int], dtype: torch.dtype) -> None:
    random.seed(f"{starts} {dtype}")
    call = random_call(EntropySGDCall, False, False, dtype == torch.bfloat16)
    assert isinstance(call, EntropySGDCall)
    compare(replace(call, noise_scale=0.05), dtype, SIZES, starts)
    compare(random_call(HeatCall, False, False, False), dtype, SIZES, starts)


@interpreted
@pytest.mark.parametrize(
    "flags", itertools.product([False, True], repeat=3), ids=lambda f: "".join("-+"[flag] for flag in f)
)
def test_inner_momentum_without_gradients(flags: tuple[bool, bool, bool]) -> None:
    first, last, fresh = flags
    random.seed(str(flags))
    call = random_call(EntropySGDCall, first, last, False)
    assert isinstance(call, EntropySGDCall)
    compare(replace(call, inner_momentum=0.8, fresh_velocity=fresh), torch.bfloat16, [1, 5, 70, 9, 8, 3], [0])


@interpreted
@pytest.mark.parametrize("start", [0, 4, 2**34 + 4096, 2**34 + 3])
@pytest.mark.parametrize("per_thread", [4, 8])
def test_normals_are_those_of_the_reference(per_thread: int, start: int) -> None:
    stream = Stream(0x1234567890ABCDEF, 2**31 - 7, 3)
    out = torch.empty(32768)
    key0, key1 = (key - 2**32 if key >= 2**31 else key for key in stream.key)
    draw[(1,)](out, key0, key1, stream.step, 11, start, 32768, per_thread, start % 4 == 0)
    assert same_bits(noise.normal(stream, 11, start, 32768, "cpu"), out)


@interpreted
def test_addresses_are_copied_to_the_device_only_when_they_change() -> None:
    upload = Upload(2, torch.int64, torch.device("cpu"))
    values = array("q", [1, 2])
    first = upload(values)
    assert upload(array("q", [1, 2])) is first
    values[0] = 3  # the caller's own array
    assert upload(values).tolist() == [3, 2]


@interpreted
def test_the_next_call_of_a_kind_makes_and_copies_nothing_anew() -> None:
    """What grows with the number of tensors is made once, but for comparing their addresses."""
    weights = [torch.zeros(5) for _ in range(3)]
    table = Table(weights, [0, 1, 2])
    call = random_call(HJCall, False, False, False)
    buffers = {name: table.new_buffer() for name in call.buffers}
    backend, addresses = Triton(), array("q", [w.data_ptr() for w in weights])
    assert isinstance(call, HJCall)
    first = backend.launch(replace(call, gamma=0.1), table, addresses, buffers)
    second = backend.launch(replace(call, gamma=0.2), table, addresses[:], buffers)
    assert all(first.arguments[k] is second.arguments[k] for k in ("chunks", "tensors", "weights", "grads"))
    assert first.options is second.options
    assert (first.arguments["scalars"].gamma, second.arguments["scalars"].gamma) == (0.1, 0.2)
