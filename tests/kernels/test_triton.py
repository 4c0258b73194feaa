"""The Triton kernels return the bits of the eager reference, in Triton's interpreter."""

import os
import random
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
import torch
from interpreter import INTERPRETED, interpreted
from updates import (
    CALLS,
    DTYPES,
    Call,
    Calls,
    Case,
    at_offset,
    entropy_sgd_calls,
    heat_calls,
    names_of_buffers,
    same_bits,
)

from deeprelax.kernels import Draw, Flag, Table, noise
from deeprelax.kernels.reference import Eager

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from deeprelax.kernels.device_table import Upload  # noqa: E402
from deeprelax.kernels.triton import noise as triton_noise  # noqa: E402
from deeprelax.kernels.triton.backend import Triton  # noqa: E402

SIZES = [0, 1, 3, 4, 5, 67, 1024, 1029, 2050]  # the kernels' block is 1024
STARTS = {
    "at 0": [0],
    "in whole Philox calls": [0, 4, 2**34 + 8, 2**40 + 4],
    "inside Philox calls": [0, 3, 2**34 + 5, 2**33 + 2, 7],
}

if not INTERPRETED:

    def test_the_triton_kernels_pass_their_tests_in_the_interpreter() -> None:
        """The tests marked ``interpreted``, in all files."""
        files = [path for path in Path(__file__).parent.glob("test_triton*.py") if "@interpreted" in path.read_text()]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            *map(str, files),
        ]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@triton.jit
def draw_kernel(out, key0, key1, step, index, start, COUNT: tl.constexpr, PER_THREAD: tl.constexpr):
    drawn = triton_noise.normal(triton_noise.Draw(key0, key1, step, PER_THREAD), index, start, COUNT)
    tl.store(out + tl.arange(0, COUNT), drawn)


def check(call: Call, dtype: torch.dtype, seed: int, sizes: list[int], starts: list[int]) -> None:
    """Weights, gradients, both or none are unaligned; weights, buffers and their padding must agree."""
    draw = random.Random(seed)
    starts = [draw.choice(starts) for _ in sizes]
    case = Case.make(call, dtype, seed, sizes, special=draw.random() < 0.5, starts=starts)
    case.weights = [at_offset(w, draw.choice([0, 0, 1, 8])) for w in case.weights]
    case.grads = [None if g is None else at_offset(g, draw.choice([0, 0, 0, 1])) for g in case.grads]
    for i, (a, b) in enumerate(zip(case.run(Eager(), call), case.run(Triton(), call), strict=True)):
        assert same_bits(a, b), (i, call, sizes, starts, case.runs)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_every_rule_gives_the_bits_of_the_reference(calls: Calls, dtype: torch.dtype) -> None:
    """Some calls of every phase, different ones for each dtype."""
    every = list(enumerate(calls(dtype)))
    for seed, call in every[DTYPES.index(dtype) :: len(every) // 5 | 1]:
        check(call, dtype, seed, random.Random(seed).sample(SIZES, 3), STARTS["in whole Philox calls"])


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_every_size_and_start_gives_the_bits_of_the_reference(starts: list[int], dtype: torch.dtype) -> None:
    for calls in (entropy_sgd_calls, heat_calls):
        call = next(c for c in calls(dtype) if c.has(Flag.NOISE) and not c.has(Flag.FIRST | Flag.LAST))
        check(call, dtype, 0, SIZES, starts)


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
    call = next(CALLS[1](torch.float32))
    assert call.rule.name == "hj"
    buffers = {name: table.new_buffer() for name in names_of_buffers(call.rule, torch.float32, False)}
    update, addresses = Triton().bind(call.rule, table, buffers), array("q", [w.data_ptr() for w in weights])
    first = update.launch(call.changed(gamma=0.1).scalars, addresses)
    second = update.launch(call.changed(gamma=0.2).scalars, addresses[:])
    assert all(first.arguments[k] is second.arguments[k] for k in ("chunks", "tensors", "grads"))
    assert first.options is second.options
    assert (first.arguments["scalars"].gamma, second.arguments["scalars"].gamma) == (0.1, 0.2)
