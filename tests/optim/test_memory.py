"""Weights are updated and gradients read in place, in any layout; overlaps are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import OPTIMIZERS, QUIET, bits, make, parameters, run, same_bits, set_gradients, started, values
from torch import Tensor
from torch.nn import Parameter

import deeprelax


def layouts() -> dict[str, Tensor]:
    """Tensors of one shape, (2, 4, 3, 3), in several layouts."""
    plain = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    wide = torch.zeros(2, 4, 3, 6)
    wide[..., ::2] = plain
    long = torch.zeros(100)
    long[5:77] = plain.flatten()
    return {
        "contiguous": plain.clone(),
        "channels_last": plain.clone().contiguous(memory_format=torch.channels_last),
        "transposed": plain.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "with gaps": wide[..., ::2],
        "part of a larger storage": long[5:77].view(2, 4, 3, 3),
    }


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize(
    ("name", "layout", "gradient"),
    [  # the optimizers in turn: what depends on layouts is the same code for all
        (OPTIMIZERS[(i + j) % len(OPTIMIZERS)], layout, gradient)
        for i, layout in enumerate(layouts())
        for j, gradient in enumerate([*layouts(), "unaligned", "expanded"])
    ],
)
def test_the_update_does_not_depend_on_the_layout_of_weight_or_gradient(name: str, layout: str, gradient: str):
    quiet = QUIET[name]

    def after(p: Parameter, kind: str) -> Parameter:
        opt = make(name, [p], **quiet)
        for step in range(5):
            draw = torch.Generator().manual_seed(step)
            g = torch.randn(2, 4, 3, 3, generator=draw) if gradient != "expanded" else torch.tensor(step - 1.5)
            g = g.expand(2, 4, 3, 3)
            if kind == "unaligned":
                memory = torch.zeros(80)
                p.grad = memory[1:73].view(2, 4, 3, 3).copy_(g)
            elif kind in ("contiguous", "expanded"):
                p.grad = g if kind == "expanded" else g.contiguous()
            else:
                p.grad = layouts()[kind].copy_(g)
            opt.step()
        return p

    weight = layouts()[layout]
    p = after(Parameter(weight), gradient)
    assert p.stride() == weight.stride()
    assert p.data_ptr() == weight.data_ptr(), "the parameter is updated where it is"
    assert same_bits(
        [p], [after(Parameter(layouts()["contiguous"]), "contiguous" if gradient != "expanded" else gradient)]
    )


def test_gaps_between_a_parameters_elements_are_left_alone(name: str):
    base = torch.arange(40.0).view(5, 8)
    between = base[:, 1::2].clone()
    p = Parameter(base[:, ::2])
    run(make(name, [p]), [p], range(5))
    assert torch.equal(base[:, 1::2], between)
    assert not torch.equal(base[:, ::2], torch.arange(40.0).view(5, 8)[:, ::2])


@pytest.mark.usefixtures("addresses")
def test_gradients_are_left_as_they_are(name: str):
    opt, params = started(name)
    for step in range(5):
        set_gradients(params, step)
        params[1].grad = params[1].grad.contiguous()
        held = [p.grad for p in params]
        before = values(held)
        opt.step()
        assert all(p.grad is g for p, g in zip(params, held))
        assert same_bits(held, before)
        assert [g.stride() for g in held] == [g.stride() for g in before]


@pytest.mark.usefixtures("addresses")
def test_a_gradient_with_torchs_negative_bit_is_read_with_its_sign(name: str):
    first, second = Parameter(torch.ones(5)), Parameter(torch.ones(5))
    one, two = make(name, [first]), make(name, [second])
    for step in range(5):
        g = torch.arange(5.0) + step
        first.grad, second.grad = torch._neg_view(g), -g
        one.step()
        two.step()
    assert same_bits([first], [second])


def overlapping() -> dict[str, dict[str, Tensor]]:
    """Tensors of which the first and the last share memory."""
    base, matrix, wide = torch.zeros(12), torch.zeros(4, 10), torch.zeros(4)
    return {
        "ranges": {"left": base[:6], "other": torch.zeros(3), "right": base[5:]},
        "strided": {"even": base[::2], "third": base[::3]},
        "one encloses the other, and a third lies between": {
            "columns": matrix[:, :2],
            "row": matrix[0, 4:6],
            "cell": matrix[3, 1],
        },
        "of two dtypes": {"wide": wide, "upper": wide.view(torch.bfloat16)[1::2]},
    }


@pytest.mark.parametrize("kind", overlapping())
def test_overlapping_parameters_are_refused_with_both_names(kind: str):
    named = [(key, Parameter(t)) for key, t in overlapping()[kind].items()]
    (first, _), (last, _) = named[0], named[-1]
    with pytest.raises(ValueError, match=rf"{first}.*{last}|{last}.*{first}"):
        make("HJ", named)
    opt = make("HJ", [{"params": named[:-1]}])
    with pytest.raises(ValueError, match=rf"{first}.*{last}|{last}.*{first}"):
        opt.add_param_group({"params": named[-1:]})
    assert len(opt.param_groups) == 1
    run(opt, [p for _, p in named[:-1]], range(5))


@pytest.mark.parametrize("flatten", [False, True])
def test_an_expanded_parameter_is_refused_by_name(flatten: bool):
    with pytest.raises(ValueError, match="stretched"):
        make("HJ", [("stretched", Parameter(torch.zeros(1).expand(4)))], flatten=flatten)


def test_disjoint_parameters_in_one_storage_are_supported(name: str):
    base = torch.zeros(2, 20)
    interleaved = [Parameter(base[0, ::2]), Parameter(base[0, 1::2]), Parameter(base[1, :9]), Parameter(base[1, 9:])]
    apart = [Parameter(p.detach().clone()) for p in interleaved]
    run(make(name, interleaved), interleaved, range(6))
    run(make(name, apart), apart, range(6))
    assert same_bits(interleaved, apart)
    assert interleaved[0].data_ptr() == base.data_ptr()


def test_empty_and_zero_dimensional_parameters_are_supported(name: str):
    params = [Parameter(torch.ones(0)), Parameter(torch.tensor(2.0)), Parameter(torch.ones(3, 0, 2))]
    opt = make(name, params)
    run(opt, params, range(6))
    assert params[1].item() != 2.0
    opt.eval()
    opt.train()
    only_empty = [Parameter(torch.ones(0))]
    opt = make(name, only_empty)
    run(opt, only_empty, range(6))
    assert opt.phase == 2


@pytest.mark.parametrize("gaps", [False, True])
def test_a_backward_through_a_graph_from_before_the_step_is_an_error(name: str, gaps: bool):
    base = torch.ones(4, 2)
    p = Parameter(base[:, 0] if gaps else base[:, 0].clone())
    opt = make(name, [p])
    for phase in range(5):
        stale = (p * p).sum()
        p.grad = torch.ones_like(p)
        opt.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.backward()
        assert opt.phase == (phase + 1) % 4


def test_autograd_notices_the_writes_of_eval_and_train(name: str):
    p = Parameter(torch.ones(4))
    opt = make(name, [p])
    run(opt, [p], range(2))
    for switch in (opt.eval, opt.train):
        stale = (p * p).sum()
        switch()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.backward()


def test_state_is_exactly_what_section_4_counts():
    sizes = {"EntropySGD": 2, "HJ": 2, "Heat": 2, "EntropyAdamW": 5}  # with its count and the outer momentum
    for name, buffers in sizes.items():
        for dtype, more in ((torch.float32, 0), (torch.float64, 0), (torch.bfloat16, name.startswith("Entropy"))):
            p = Parameter(torch.ones(10, dtype=dtype))
            entry = getattr(deeprelax, name)([p]).state[p]
            assert len(entry) == buffers + more
            assert {t.dtype for n, t in entry.items() if n != "missed"} == {
                torch.float64 if dtype == torch.float64 else torch.float32
            }


@pytest.mark.usefixtures("addresses")
def test_nothing_is_allocated_per_step(name: str):
    params = [Parameter(torch.randn(1000)) for _ in range(3)]
    opt: Any = make(name, params, backend="auto")
    run(opt, params, range(5))
    pointers = [t.data_ptr() for entry in opt.state.values() for t in entry.values()]
    if "cpu" not in deeprelax.kernels.available():
        return
    for step in range(5):
        set_gradients(params, step)
        with torch.profiler.profile(profile_memory=True) as profile:
            opt.step()
        allocated = sum(max(e.self_cpu_memory_usage, 0) for e in profile.key_averages())
        assert allocated < 1000 or (name == "ElasticSGD" and opt.outer_step_happened)  # the exchange's buffer
    assert [t.data_ptr() for entry in opt.state.values() for t in entry.values()] == pointers
    assert bits(copy.deepcopy(params[0])).numel() == 1000


def test_a_default_device_does_not_move_the_optimizers_tables(name: str):
    params, reference = parameters(), parameters()
    gradients = [torch.randn_like(p) for p in params]
    with torch.device("meta"):  # as torch.set_default_device("cuda") does for a model on the CPU
        opt = make(name, params)
    other = make(name, reference)
    for step in range(5):
        for p, q, g in zip(params, reference, gradients):
            p.grad, q.grad = g * step, g * step
        with torch.device("meta"):
            opt.step()
            opt.eval()
            opt.train()
            opt.state_dict()
        other.step()
    assert same_bits(params, reference)


def test_the_default_dtype_does_not_matter(name: str):
    params, reference = parameters(), parameters()
    gradients = [torch.randn_like(p) for p in params]
    for weights, dtype in ((params, torch.float64), (reference, torch.float32)):
        torch.set_default_dtype(dtype)
        try:
            opt = make(name, weights, backend="eager")
            for p, g in zip(weights, gradients):
                p.grad = g.clone()
            for _ in range(3):
                opt.step()
        finally:
            torch.set_default_dtype(torch.float32)
    assert same_bits(params, reference)


@pytest.mark.parametrize("name", ["EntropySGD", "EntropyAdamW"])
def test_large_state_is_staggered_in_memory_and_small_state_is_not(name: str):
    """Streams at equal places modulo a large power of two meet in one bank of the memory."""
    for size, apart in ((2**22, 2**14), (2**10, 0)):
        opt = make(name, [Parameter(torch.zeros(size))], backend="cpu")
        (bucket,) = opt._shared.plans[0].buckets
        buffers = {key: b for key, b in bucket.buffers.items() if key != "missed"}
        begins = [b.storage_offset() * 4 for b in buffers.values()]
        assert begins == [apart * (k + 1) for k in range(len(buffers))]
        assert all(bucket.views[key][0].data_ptr() == b.data_ptr() for key, b in buffers.items())
