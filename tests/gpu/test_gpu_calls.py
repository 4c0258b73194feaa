"""Every kind of call on a GPU returns the bits of the reference on the CPU."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, backend_named
from updates import CALLS, DTYPES, SIZES, Call, Calls, Case, same_bits

from deeprelax.kernels.reference import Eager

# Of how many calls one is made: Triton compiles a kernel for each of most, eager makes hundreds of launches.
EVERY = {"cuda": 1, "triton": 17, "eager": 11}
CHUNK = 4096
LARGE = [33, 4 * CHUNK + 5, 3 * CHUNK, 1]
pytestmark = [pytest.mark.parametrize("dtype", DTYPES, ids=str), pytest.mark.parametrize("calls", CALLS)]


def check(
    backend: str, call: Call, dtype: torch.dtype, seed: int, sizes: list[int], special: bool, offset: int
) -> None:
    case = Case.make(call, dtype, seed, sizes, special, offset)
    expected = case.run(Eager(), call)
    found = case.run(backend_named(backend), call, DEVICE)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert same_bits(a, b), (i, call)


@pytest.mark.parametrize("backend", list(EVERY))
def test_every_call_gives_the_bits_of_the_reference_on_the_cpu(backend: str, calls: Calls, dtype: torch.dtype) -> None:
    """Gradients and weights are unaligned in three of four, some have no gradient, chunks of all kinds start at any
    place of a Philox call, and one call in three is on NaNs, infinities and denormals too."""
    for seed, call in list(enumerate(calls(dtype)))[:: EVERY[backend]]:
        check(backend, call, dtype, seed, SIZES, special=seed % 3 == 0, offset=seed % 4)


@pytest.mark.parametrize("backend", list(EVERY))
@pytest.mark.parametrize("offset", [0, 1, 2, 5])
def test_many_chunks_at_any_offset_give_the_bits_of_the_reference(
    backend: str, offset: int, calls: Calls, dtype: torch.dtype
) -> None:
    made = list(calls(dtype))[31::51]
    assert made
    for call in made:
        check(backend, call, dtype, 2, LARGE, special=False, offset=offset)
