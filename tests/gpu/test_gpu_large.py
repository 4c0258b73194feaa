"""One tensor of more than 2^31 elements: 64-bit offsets everywhere."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator

import pytest
import torch
from on_gpu import BACKENDS, EMULATED, MEMORY, backend_named
from test_backends_agree import same_bits
from torch import Tensor

from deeprelax.kernels import Call, Eager, EntropySGDCall, HJCall, Outer, Stream, Table

ELEMENTS = 20_011 if EMULATED else 2**31 + 4099
BOUNDARY = ELEMENTS // 2 if EMULATED else 2**31
REACH = 3000  # elements on each side that are compared
NEEDS = 26 * 2**30  # bytes: weights and gradients of two each, two buffers of four, and the slices
OUTER = Outer(step=0.31, scale=1.7, lr=0.13, momentum=0.0, nesterov=False)


def hj_call(first: bool, last: bool) -> HJCall:
    return HJCall(first, last, False, 0.37, 0.7, 0.3, 0.0, False, False, OUTER)


def entropy_sgd_call(first: bool, last: bool) -> EntropySGDCall:
    return EntropySGDCall(
        first=first,
        last=last,
        inner_lr=0.11,
        inv_gamma=1.3,
        pull=0.17,
        denominator=1.17,
        alpha=0.7,
        one_minus_alpha=0.3,
        noise_scale=0.05,
        weight_decay=0.0,
        maximize=False,
        implicit=False,
        inner_momentum=0.0,
        inner_nesterov=False,
        fresh_velocity=False,
        stochastic_rounding=True,
        outer=OUTER,
        stream=Stream(7, 0, 5),
    )


def places() -> list[slice]:
    """The two ends, and both sides of element 2^31, at wherever a Philox call has its first element and elsewhere."""
    return [
        slice(0, REACH),
        slice(BOUNDARY - REACH - 1, BOUNDARY + REACH),
        slice(ELEMENTS - REACH, ELEMENTS),
    ]


@pytest.fixture
def held() -> Iterator[list[Tensor]]:
    """For the large tensors, whose memory is the next test's as soon as this one ends."""
    tensors: list[Tensor] = []
    yield tensors
    release(tensors)


def release(tensors: list[Tensor]) -> None:
    """Free their memory, also while a failed test's traceback or a table still holds the tensors themselves."""
    for t in tensors:
        t.untyped_storage().resize_(0)
    tensors.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # other processes test beside this one


@pytest.mark.parametrize("calls", [hj_call, entropy_sgd_call])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_of_more_than_2_to_31_elements_has_its_own_bits_everywhere(
    backend: str, calls: object, held: list[Tensor]
) -> None:
    """Element by element like the reference on slices of it, each told where it starts: noise too."""
    found = backend_named(backend)
    device = torch.device("cpu" if EMULATED else "cuda")
    if not EMULATED:
        free, _ = torch.cuda.mem_get_info()
        if free < NEEDS:
            pytest.skip(f"{MEMORY}: {free / 2**30:.0f} GiB are free, and this takes {NEEDS / 2**30:.0f}")
    weights = torch.randn(ELEMENTS, device=device, dtype=torch.bfloat16)
    grads = torch.randn(ELEMENTS, device=device, dtype=torch.bfloat16)
    held += [weights, grads]
    table = Table([weights], [3])
    example: Call = calls(True, False)  # type: ignore[operator]
    names = ["x", "p"] if isinstance(example, HJCall) else ["x", "z"]
    buffers = {name: table.new_buffer() for name in names}
    held += buffers.values()
    parts = [Part(weights, grads, names, at) for at in places()]
    for first, last in ((True, False), (False, False), (False, True)):
        call: Call = calls(first, last)  # type: ignore[operator]
        found.run(call, table, [grads], array("q", [grads.data_ptr()]), buffers)
        for part in parts:
            part.run(call)
            part.check(weights, buffers, last)


class Part:
    """The reference on a slice."""

    def __init__(self, weights: Tensor, grads: Tensor, names: list[str], at: slice) -> None:
        self.at = at
        self.weight, self.grad = (t[at].clone().cpu() for t in (weights, grads))
        self.table = Table([self.weight], [3], starts=[at.start])
        self.buffers = {name: self.table.new_buffer() for name in names}

    def run(self, call: Call) -> None:
        Eager().run(call, self.table, [self.grad], None, self.buffers)

    def check(self, weights: Tensor, buffers: dict[str, Tensor], last: bool) -> None:
        size = self.weight.numel()
        assert same_bits(self.weight, weights[self.at].cpu()), self.at
        for name, buffer in buffers.items():
            if name == "x" or not last:  # the last call of a cycle leaves the averages as they are
                assert same_bits(self.buffers[name][:size], buffer[self.at].cpu()), (self.at, name)
