"""``recalibrate_batchnorm``: statistics of the weights that the model holds now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import make, same_bits
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from deeprelax import recalibrate_batchnorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[2].running_mean.fill_(7)
    return model


def batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(n, 6, generator=draw) for n in (8, 8, 3)]


def statistics(model: nn.Module) -> list[Tensor]:
    return [b.clone() for b in model.buffers()]


def expected(model: nn.Sequential, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Averages weighted by the batches' sizes, dropout off."""
    maps = [model[0](each) for each in inputs]
    sizes = torch.tensor([float(len(each)) for each in inputs])
    variances = torch.stack([each.var(0) for each in maps])
    return torch.cat(maps).mean(0), (variances * sizes[:, None]).sum(0) / sizes.sum()


def test_statistics_are_averages_weighted_by_batch_size_without_dropout():
    model = network()
    recalibrate_batchnorm(model, batches())
    mean, var = expected(model, batches())
    torch.testing.assert_close(model[2].running_mean, mean)
    torch.testing.assert_close(model[2].running_var, var)


def test_modes_momenta_gradients_and_the_random_generator_are_left_alone():
    model = network()
    model[3].eval()
    state = torch.get_rng_state()
    recalibrate_batchnorm(model, batches())
    assert [m.training for m in model.modules()] == [True, True, True, True, False, True]
    assert model[2].momentum == 0.1
    assert not model[2]._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_as_a_context_manager_it_restores_the_old_statistics():
    model = network()
    model(batches()[0])
    before = statistics(model)
    with recalibrate_batchnorm(model, batches()):
        assert not torch.equal(model[2].running_mean, before[0])
        assert model[2].num_batches_tracked == 3
    assert same_bits(statistics(model), before)


def test_an_error_in_the_pass_or_an_empty_loader_changes_nothing():
    def broken() -> Iterator[Tensor]:
        yield batches()[0]
        raise OSError("the disk is gone")

    model = network()
    before = statistics(model)
    with pytest.raises(OSError, match="gone"):
        recalibrate_batchnorm(model, broken())
    with pytest.raises(ValueError, match="yields no batch"):
        recalibrate_batchnorm(model, [])
    assert same_bits(statistics(model), before)
    assert all(m.training for m in model.modules())


def test_a_model_without_batch_norm_does_not_read_the_loader():
    with recalibrate_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), iter([0])):
        pass


class Keywords(nn.Module):
    """Called as a Trainer calls a model; in each call the norm gets two inputs of different length."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, *, first: Tensor, second: Tensor, name: str) -> None:
        self.norm(first)
        self.norm(second)


def test_a_mapping_is_keywords_and_a_shared_norm_averages_its_uses():
    model, (a, b, c) = Keywords(), batches()
    recalibrate_batchnorm(model, [{"first": a, "second": c, "name": "x"}, {"first": b, "second": c, "name": "x"}])
    torch.testing.assert_close(model.norm.running_mean, torch.cat([a, c, b, c]).mean(0))


@pytest.mark.parametrize("wrap", [lambda b: (b, 0), lambda b: [b, 0]])
def test_the_first_item_of_a_tuple_or_list_is_the_input(wrap: Any):
    model, other = network(), network()
    recalibrate_batchnorm(model, map(wrap, batches()))
    recalibrate_batchnorm(other, batches())
    assert same_bits(statistics(model), statistics(other))


def test_a_compiled_model_gets_the_same_statistics():
    model, other = network(), network()
    compiled = torch.compile(model, backend="eager")
    compiled(batches()[0])
    with torch.no_grad():
        model[2].running_mean.fill_(7)
    recalibrate_batchnorm(compiled, batches())
    recalibrate_batchnorm(other, batches())
    assert same_bits(statistics(model)[:2], statistics(other)[:2])


@pytest.mark.usefixtures("nothing_compiled")
def test_passes_in_two_threads_leave_the_compiler_on():
    """The pass that began first ends first: the other still runs uncompiled, and the compiler is on after both."""
    began, ended = threading.Event(), threading.Event()
    model, other, count = network(), network(), CompileCounter()
    compiled = torch.compile(model, backend=count)

    def outlasts() -> Iterator[Tensor]:
        began.set()
        assert ended.wait(60)
        yield from batches()

    def ends_first() -> Iterator[Tensor]:
        yield from batches()
        assert began.wait(60)

    with ThreadPoolExecutor() as threads:
        first = threads.submit(recalibrate_batchnorm, other, ends_first())
        first.add_done_callback(lambda _: ended.set())
        second = threads.submit(recalibrate_batchnorm, compiled, outlasts())
    assert (first.exception(), second.exception(), count.frame_count) == (None, None, 0)
    assert same_bits(statistics(model), statistics(other))
    compiled(batches()[0])
    assert count.frame_count == 1


@pytest.mark.usefixtures("nothing_compiled")
def test_a_pass_that_cannot_begin_leaves_the_compiler_on():
    """torch refuses one inside a compiled function."""
    model, count = network(), CompileCounter()
    compiled = torch.compile(model, backend=count)
    before = statistics(model)
    with pytest.raises(RuntimeError, match=r"torch\.compile region"):
        torch.compile(lambda: recalibrate_batchnorm(model, batches()), backend="eager")()
    assert same_bits(statistics(model), before)
    recalibrate_batchnorm(model, batches())
    compiled(batches()[0])
    assert count.frame_count == 1


def test_looking_at_x_with_new_statistics_leaves_no_trace(name: str):
    finals = []
    for look in (True, False):
        model = network()
        opt = make(name, model.parameters())
        for step in range(6):
            torch.manual_seed(step)
            model(batches()[step % 3]).square().sum().backward()
            opt.step()
            opt.zero_grad()
            if look:
                with opt.at_x(), recalibrate_batchnorm(model, batches()):
                    mean, _ = expected(model, batches())
                    torch.testing.assert_close(model[2].running_mean, mean)
        finals.append([*model.parameters(), *model.buffers()])
    assert same_bits(*finals)
