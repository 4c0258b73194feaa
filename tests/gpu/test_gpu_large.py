"""One tensor of more than 2^31 elements: 64-bit offsets everywhere."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator

import pytest
import torch
from on_gpu import BACKENDS, EMULATED, MEMORY, backend_named
from torch import Tensor
from updates import same_bits

from deeprelax.kernels import CycleState, Flag, Hyper, Rule, Scalars, Table
from deeprelax.kernels.reference import Eager
from deeprelax.kernels.scalars import ENTROPY_SGD, HJ

ELEMENTS = 20_011 if EMULATED else 2**31 + 4099
BOUNDARY = ELEMENTS // 2 if EMULATED else 2**31
REACH = 3000  # elements on each side that are compared
pytestmark = pytest.mark.xdist_group("large")  # each takes a third of a GPU's memory
NEEDS = 26 * 2**30  # bytes: weights and gradients of two each, two buffers of four, and the slices


def scalars(rule: Rule, first: bool, last: bool) -> Scalars:
    """The scalars of a call at a place in the cycle, with noise and stochastic rounding if the rule has them."""
    hyper = Hyper(inner_steps=3, keep=1.0, alpha=0.7, temperature=0.05, flags=int(Flag.STOCHASTIC_ROUNDING))
    phase = 0 if first else 2 if last else 1
    cycle = CycleState(0.31, 0.11, 0.77, 0.77, step=5, phase=phase, cycle_steps=3, fresh=False, seed=7)
    return rule.scalars(hyper, cycle)


def places() -> list[slice]:
    """The two ends, and both sides of element 2^31, at the first element of a Philox call and elsewhere."""
    return [
        slice(0, REACH),
        slice(BOUNDARY - REACH - 1, BOUNDARY + REACH),
        slice(ELEMENTS - REACH, ELEMENTS),
    ]


@pytest.fixture
def held() -> Iterator[list[Tensor]]:
    """Holds the large tensors; their memory is free for the next test as soon as this one ends."""
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
        torch.cuda.empty_cache()  # other processes test at the same time


@pytest.mark.parametrize("rule", [HJ, ENTROPY_SGD], ids=lambda rule: rule.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_beyond_2_to_31_elements_is_right_everywhere(backend: str, rule: Rule, held: list[Tensor]) -> None:
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
    names = ["x", rule.acc]
    buffers = {name: table.new_buffer() for name in names}
    held += buffers.values()
    update = found.bind(rule, table, buffers)
    parts = [Part(rule, weights, grads, names, place) for place in places()]
    for first, last in ((True, False), (False, False), (False, True)):
        call = scalars(rule, first, last)
        update.run(call, [grads], array("q", [grads.data_ptr()]))
        for part in parts:
            part.run(call)
            part.check(weights, buffers, last)


class Part:
    """The reference on a slice."""

    def __init__(self, rule: Rule, weights: Tensor, grads: Tensor, names: list[str], place: slice) -> None:
        self.place = place
        self.weight, self.grad = (t[place].clone().cpu() for t in (weights, grads))
        self.table = Table([self.weight], [3], starts=[place.start])
        self.buffers = {name: self.table.new_buffer() for name in names}
        self.update = Eager().bind(rule, self.table, self.buffers)

    def run(self, call: Scalars) -> None:
        self.update.run(call, [self.grad], array("q", [0]))

    def check(self, weights: Tensor, buffers: dict[str, Tensor], last: bool) -> None:
        state = slice(self.table.offsets[0], self.table.offsets[0] + self.weight.numel())
        assert same_bits(self.weight, weights[self.place].cpu()), self.place
        for name, buffer in buffers.items():
            if name == "x" or not last:  # the last call of a cycle leaves the averages as they are
                assert same_bits(self.buffers[name][state], buffer[self.place].cpu()), (self.place, name)
