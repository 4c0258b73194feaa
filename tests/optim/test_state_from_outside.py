"""What other code puts into ``opt.state``, or takes out of it, is what the next call uses."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import QUIET, make, parameters, run, same_bits, set_gradients, started, twins, values
from torch.nn import Parameter


def cloned(opt: Any, p: Parameter) -> dict[str, Any]:
    return {name: value.clone() for name, value in opt.state[p].items()}


def put_entry(opt: Any, params: list[Parameter]) -> None:
    for p in params:
        opt.state[p] = cloned(opt, p)


def put_tensors(opt: Any, params: list[Parameter]) -> None:
    for p in params:
        for name in list(opt.state[p]):
            opt.state[p][name] = opt.state[p][name].clone()


def update_entry(opt: Any, params: list[Parameter]) -> None:
    for p in params:
        opt.state[p].update(cloned(opt, p))


def put_all(opt: Any, params: list[Parameter]) -> None:
    opt.state = defaultdict(dict, {p: cloned(opt, p) for p in params})


def pop_and_put(opt: Any, params: list[Parameter]) -> None:
    for p in params:
        entry = opt.state.pop(p)
        opt.state[p] = {name: value.clone() for name, value in entry.items()}


def moved_by_lightning(opt: Any, params: list[Parameter]) -> None:
    """Its teardown makes new mappings of the types that it finds."""
    for p, entry in opt.state.items():
        opt.state[p] = type(entry)(OrderedDict((name, value.clone()) for name, value in entry.items()))


def moved_as_a_whole(opt: Any, params: list[Parameter]) -> None:
    entries = OrderedDict((p, cloned(opt, p)) for p in params)
    opt.state = type(opt.state)(opt.state.default_factory, entries)


PUT = [put_entry, put_tensors, update_entry, put_all, pop_and_put, moved_by_lightning, moved_as_a_whole]


@pytest.mark.parametrize("put", PUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replacing_the_state_by_a_copy_changes_nothing(name: str, put: Callable[..., None], dtype: torch.dtype):
    (opt, params), (other, others) = twins(name, dtype=dtype)
    for step in range(10):
        run(opt, params, range(step, step + 1))
        run(other, others, range(step, step + 1))
        put(other, others)
        assert same_bits(params, others)
    other.eval()
    opt.eval()
    assert same_bits(params, others)


@pytest.mark.parametrize("put", PUT)
def test_assigned_values_are_used(name: str, put: Callable[..., None]):
    """The state of another run, with its weights and clock, continues that run."""
    params, others = parameters(), parameters(seed=1)
    opt, other = make(name, params), make(name, others)
    run(opt, params, range(6))
    run(other, others, range(3))
    state = {q: cloned(opt, p) for p, q in zip(params, others)}
    for p, q in zip(params, others):
        q.data.copy_(p.data)
        for key, value in state[q].items():
            other.state[q][key] = value
    put(other, others)
    clock = {key: opt.param_groups[0][key] for key in opt.param_groups[0] if key != "params"}
    other.param_groups[0].update(clock)
    run(opt, params, range(6, 14))
    run(other, others, range(6, 14))
    assert same_bits(params, others)


def clear(opt: Any, params: list[Parameter]) -> None:
    opt.state.clear()


def replace(opt: Any, params: list[Parameter]) -> None:
    opt.state = defaultdict(dict)


def delete(opt: Any, params: list[Parameter]) -> None:
    for p in params:
        del opt.state[p]


def empty_entries(opt: Any, params: list[Parameter]) -> None:
    for p in params:
        opt.state[p].clear()


@pytest.mark.parametrize("remove", [clear, replace, delete, empty_entries])
def test_removed_state_is_initialised_again_with_momenta(name: str, remove: Callable[..., None]):
    opt, params = started(name, 8)
    remove(opt, params)
    opt.restart()
    others = [Parameter(p.detach().clone()) for p in params]
    fresh = make(name, others)
    fresh.param_groups[0].update({key: opt.param_groups[0][key] for key in ("gamma", "step")})
    fresh.state.clear()  # AdamW's bias correction begins at that step
    run(opt, params, range(8, 14))
    run(fresh, others, range(8, 14))
    assert same_bits(params, others)


def test_state_removed_in_mid_cycle_is_initialised_at_the_parameters(name: str):
    opt, params = started(name, 2)
    opt.state.clear()
    before = values(params)
    opt.eval()
    assert same_bits(params, before)
    opt.train()
    run(opt, params, range(2, 6))
    assert opt.phase == 2


def test_state_moved_to_the_replacement_of_a_parameter_is_used(name: str):
    """Pruning: half of a weight, with the half of its state."""
    params = [Parameter(torch.linspace(-1, 1, 8)), Parameter(torch.ones(3))]
    opt = make(name, params, **QUIET[name])
    whole = copy.deepcopy((params, opt))
    run(opt, params, range(2))
    run(whole[1], whole[0], range(2))
    half = Parameter(params[0].detach()[:4].clone())
    opt.state[half] = {
        key: value[:4].clone() if value.ndim else value for key, value in opt.state.pop(params[0]).items()
    }
    opt.param_groups[0]["params"][0] = half
    for step in range(2, 9):
        set_gradients(whole[0], step)
        half.grad, params[1].grad = whole[0][0].grad[:4].clone(), whole[0][1].grad.clone()
        opt.step()
        whole[1].step()
    assert torch.equal(half, whole[0][0][:4])
    assert set(opt.state) == {half, params[1]}


def test_an_assigned_tensor_of_another_shape_is_refused_by_name(name: str, unchanged: Any):
    params = parameters()
    opt = make(name, [(f"layer{i}", p) for i, p in enumerate(params)])
    run(opt, params, range(2))
    set_gradients(params, 2)
    before = values(params)
    kept = opt.state[params[0]]["x"]
    opt.state[params[0]]["x"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"layer0.* x .*\(2,\).*\(129,\)"):
        opt.step()
    assert same_bits(params, before)
    opt.state[params[0]]["x"] = kept
    opt.step()
    assert opt.phase == 3


def test_loading_its_own_state_dict_changes_nothing(name: str):
    (opt, params), (other, others) = twins(name)
    for step in range(10):
        run(opt, params, range(step, step + 1))
        run(other, others, range(step, step + 1))
        other.load_state_dict(other.state_dict())
    assert same_bits(params, others)
    for p, q in zip(params, others):
        assert same_bits(opt.state[p].values(), other.state[q].values())


def test_momenta_exist_from_construction_on_where_they_are_used(name: str):
    opt, params = started(name)
    expected = {buffer for _, buffer in opt.rule.optional}
    assert all(expected <= set(opt.state[p]) for p in params)
    assert all(expected <= set(entry) for entry in opt.state_dict()["state"].values())


def test_a_shallow_copy_leaves_the_original_alone(name: str):
    (opt, params), (other, others) = twins(name, 3)
    twin = copy.copy(opt)
    before = values(params)
    run(twin, params, range(3, 6))
    twin.param_groups[0]["lr"] = 7.0
    for p, value in zip(params, before):
        p.data.copy_(value)
    run(opt, params, range(3, 9))
    run(other, others, range(3, 9))
    assert same_bits(params, others)
    assert opt.param_groups[0]["lr"] != 7.0


def test_a_wrapper_that_copies_the_attributes_keeps_its_effect(name: str):
    """As Lightning's and Fabric's wrappers do."""
    (opt, params), (other, others) = twins(name)

    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.__dict__ = dict(optimizer.__dict__)
            self.__class__ = type("Wrapped", (Wrapper, type(optimizer)), {})

    wrapped: Any = Wrapper(opt)
    for step in range(9):
        run(wrapped if step % 2 else opt, params, range(step, step + 1))
        run(other, others, range(step, step + 1))
        assert wrapped.outer_step_happened == opt.outer_step_happened == other.outer_step_happened
    wrapped.eval()
    other.eval()
    assert same_bits(params, others)
    with pytest.raises(RuntimeError, match="eval mode"):
        opt.step()
    wrapped.restart()
    assert opt.phase == 0
    wrapped.state.clear()
    assert not opt.state
