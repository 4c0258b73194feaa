"""A part of a parameter is updated with the bits of the whole one: noise included, wherever its elements lie in it."""

from __future__ import annotations

import itertools
from array import array

import pytest
import torch
from test_backends_agree import EAGER, EMULATED
from torch import Tensor
from updates import CALLS, DTYPES, Call, Calls, at_offset, names_of_buffers, same_bits

from deeprelax.kernels import Backend, Flag, Table
from deeprelax.kernels.cpu import NativeCPU

_cpu = pytest.importorskip("deeprelax._cpu")
pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = 49, 37
# Rows and columns of each part: one range, also of several of the CPU kernels' tiles, the last of them short; runs that
# are whole Philox calls or not, and runs of one element.
PARTS = [
    (slice(0, 7), slice(0, 37)),
    (slice(7, 49), slice(0, 37)),
    (slice(0, 19), slice(0, 4)),
    (slice(3, 17), slice(5, 24)),
    (slice(0, 19), slice(36, 37)),
]
BACKENDS = {"eager": EAGER, "cpu in small chunks": NativeCPU(_cpu, chunk=64)}
BACKENDS |= {f"cpu, {each}": NativeCPU(_cpu, each) for each in _cpu.instruction_sets()}  # tiles of other groups
if EMULATED is not None:
    BACKENDS["cuda"] = EMULATED


def update(backend: Backend, call: Call, w: Tensor, g: Tensor, state: dict[str, Tensor], part: tuple[slice, slice]):
    """The part of the weight and of its state after the call, each of the part's shape."""
    inner = torch.zeros(SHAPE)[part]
    elements = torch.arange(w.numel()).reshape(SHAPE)[part]
    weight, grad = at_offset(w[part].flatten(), 1), g[part].flatten().clone()
    run = (inner.shape[1], SHAPE[1]) if inner.shape[1] < SHAPE[1] else None
    table = Table([weight], [3], [int(elements[0, 0])], [run])
    buffers = {name: table.new_buffer() for name in state}
    if "missed" in buffers:
        buffers["missed"] = torch.tensor([2])
    for name in state.keys() - {"missed"}:
        table.state(0, buffers[name])[:] = state[name][part].reshape(table.runs(0))
    backend.bind(call.rule, table, buffers).run(call.scalars, [grad], array("q", [grad.data_ptr()]))
    return [weight, *(table.state(0, b).flatten() for name, b in buffers.items() if name != "missed")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_a_part_of_a_parameter_gets_the_bits_of_the_whole(calls: Calls, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    everything = (slice(None), slice(None))
    noisy = [call for call in calls(dtype) if call.has(Flag.NOISE)] or list(calls(dtype))
    for call in noisy[5:64:29]:
        w, g = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(2))
        names = names_of_buffers(call.rule, dtype, call.has(Flag.STOCHASTIC_ROUNDING))
        state = {n: torch.randn(SHAPE, generator=generator, dtype=torch.float64).square() for n in names}
        state = {n: s.to(torch.promote_types(dtype, torch.float32)) for n, s in state.items()}
        whole = [t.reshape(SHAPE) for t in update(EAGER, call, w, g, state, everything)]
        for (name, backend), part in itertools.product(BACKENDS.items(), PARTS):
            for a, b in zip(whole, update(backend, call, w, g, state, part), strict=True):
                assert same_bits(a[part].flatten(), b), (name, call, part)
