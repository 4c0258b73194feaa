"""Optimizers of a part of the model: ZeRO's partitions, one for each parameter; and an overflow on one rank only."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make, parameters, run, same_bits, set_gradients, values
from scenarios import advance, resumed_from, zero_run
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import Parameter
from workers import processes

import deeprelax

pytestmark = pytest.mark.usefixtures("one_thread")


def correlation(a: Tensor, b: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes save their states."""
    return tmp_path_factory.mktemp("partitions")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    """What two processes over gloo made of ZeRO, of the first FSDP, and of an overflow on one of them."""
    return processes(2, "partitions", folder, timeout=200)


def test_zero_draws_one_optimizers_noise_and_resumes_exactly(ranks: list[Any], folder: Path) -> None:
    """With a group and a ``noise_index`` for each parameter; on as many ranks, on three, and in one process."""
    params, opt = zero_run(deeprelax.EntropySGD)
    advance(params, opt, range(11))
    for found in ranks:
        assert same_bits(found["zero"]["end"], params)
        assert same_bits(found["zero resumed"], params)
        assert 0 < found["zero"]["parts"] < 3
    for resumed in processes(3, "zero_resumed", folder):
        assert same_bits(resumed, params)
    assert same_bits(resumed_from(folder / "zero.pt", deeprelax.EntropySGD), params)


def test_the_state_of_the_first_fsdp_resumes_exactly_with_an_empty_shard(ranks: list[Any]) -> None:
    for kind in ("EntropySGD", "EntropyAdamW"):
        assert any(p.numel() == 0 for rank in ranks for p in rank["fsdp1"][kind][0])
        assert all(same_bits(*rank["fsdp1"][kind]) for rank in ranks)


def test_an_overflow_on_one_rank_is_skipped_by_all_and_leaves_no_trace(ranks: list[Any]) -> None:
    for kind in ("HJ", "ElasticSGD"):
        for found in (rank["overflow"] for rank in ranks):
            weights, phases = found[kind, True]
            expected, counted = found[kind, False]
            assert same_bits(weights, expected)
            assert phases == [*counted[:4], counted[3], *counted[4:]]
    assert same_bits(*(rank["overflow"]["HJ", True][0] for rank in ranks))


def each_its_own(name: str, params: list[Parameter], seeds: Any) -> list[Any]:
    """An optimizer for each parameter."""
    own = [{"seed": seed} if name != "HJ" else {} for seed in seeds]
    return [make(name, [p], **changes) for p, changes in zip(params, own, strict=True)]


def test_steps_in_backward_hooks_are_those_after_the_backward_pass(name: str) -> None:
    ends = []
    for hooked in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        params = list(model.parameters())
        opts = dict(zip(params, each_its_own(name, params, range(4))))

        def step(p: Tensor, opts: dict[Tensor, Any] = opts) -> None:
            opts[p].step()
            opts[p].zero_grad()

        for p in params if hooked else ():
            p.register_post_accumulate_grad_hook(step)
        for batch in range(9):
            inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(batch))
            model(inputs).square().mean().backward()
            assert all((p.grad is None) == hooked for p in params)
            for p in () if hooked else params:
                step(p)
        assert {opt.phase for opt in opts.values()} == {1}
        ends.append(values(params))
    assert same_bits(*ends)


def test_an_optimizer_of_one_parameter_gives_a_groups_bits_without_noise(name: str) -> None:
    together, apart = parameters(), parameters()
    quiet = {"Heat": {"gamma": 1e-30}, "HJ": {}}.get(name, {"temperature": 0.0})
    opt, alone = make(name, together, **quiet), [make(name, [p], **quiet) for p in apart]
    run(opt, together, range(9))
    for step in range(9):
        set_gradients(apart, step)
        for one in alone:
            one.step()
    assert same_bits(together, apart)


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)])
def test_optimizers_of_one_seed_share_their_noise_and_others_do_not(seeds: tuple[int, int]) -> None:
    params = [Parameter(torch.zeros(1000)) for _ in range(2)]
    for p, seed in zip(params, seeds):
        p.grad = torch.zeros(1000)
        deeprelax.EntropySGD([p], lr=1.0, temperature=1.0, seed=seed).step()
    if seeds[0] == seeds[1]:
        assert same_bits([params[0]], [params[1]])
    else:
        assert correlation(params[0].detach(), params[1].detach()) < 0.15


def test_optimizers_of_parts_with_a_noise_index_have_the_bits_of_one(name: str) -> None:
    """Each has one seed and a parameter, or a piece of one, as a flat partition has it."""
    torch.manual_seed(0)
    whole = [Parameter(torch.randn(7)), Parameter(torch.randn(151))]
    first, second = (p.detach() for p in whole)
    pieces = [Parameter(t.clone()) for t in (first, second[:70], second[70:73], second[73:])]
    places = [[(0, 0)], [(1, 0)], [(1, 70)], [(1, 73)]]
    opt = make(name, whole)
    parts = [make(name, [{"params": [p], "noise_index": place}]) for p, place in zip(pieces, places, strict=True)]
    for step in range(9):
        set_gradients(whole, step)
        grads = [whole[0].grad, *whole[1].grad.split((70, 3, 78))]  # type: ignore[union-attr]
        opt.step()
        for p, part, grad in zip(pieces, parts, grads, strict=True):
            p.grad = grad.clone()
            part.step()
    assert same_bits([whole[0], *whole[1].split((70, 3, 78))], pieces)


def test_a_noise_index_counts_from_the_next_step_and_is_not_saved() -> None:
    noise = []
    for changed in (False, True):
        p = Parameter(torch.zeros(1000))
        opt = deeprelax.EntropySGD([{"params": [p], "noise_index": [[4, 0]]}], temperature=1.0, seed=3)
        p.grad = torch.zeros(1000)
        opt.step()
        before = p.detach().clone()
        if changed:
            opt.param_groups[0]["noise_index"][0][1] = 1
        opt.step()
        noise.append(p.detach() - before)
        assert opt.state_dict()["param_groups"][0]["noise_index"] == 0
        opt.load_state_dict(opt.state_dict())
        assert copy.deepcopy(opt).param_groups[0]["noise_index"] == [[4, int(changed)]]
    assert correlation(*noise) < 0.15
    assert correlation(noise[0][1:], noise[1][:-1]) > 0.9


def test_flattened_checkpoints_load_with_a_noise_index() -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    found = []
    for places in (None, [(7, 0), (9, 5)]):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        group = {"params": model.parameters()} | ({"noise_index": places} if places else {})
        opt = deeprelax.EntropySGD([group], temperature=1.0, seed=3)
        run(opt, list(model.parameters()), range(2))
        saved = get_optimizer_state_dict(model, opt, options=options)
        before = copy.deepcopy(opt.state_dict())
        run(opt, list(model.parameters()), range(2))
        set_optimizer_state_dict(model, opt, saved, options=options)
        assert opt.state_dict()["param_groups"] == before["param_groups"]
        assert opt.param_groups[0].get("noise_index") == places
        found.append(saved)
    assert set(found[1]) - set(found[0]) == {f"param_groups.{name}.noise_index" for name in ("weight", "bias")}


@pytest.mark.parametrize(
    "wrong", [[], [(0, 0)], [0, 1], [(0, 0), (1, -1)], [(0, 0), (1.0, 0)], [(0, 0), (2**32, 0)], 3]
)
def test_a_noise_index_that_does_not_fit_is_refused(wrong: Any) -> None:
    params = parameters()[:2]
    with pytest.raises(ValueError, match="for each of the group's 2 parameters"):
        deeprelax.Heat([{"params": params, "noise_index": wrong}])
    opt = deeprelax.Heat(params, seed=1)
    run(opt, params, range(2))
    opt.param_groups[0]["noise_index"] = wrong
    before = values(params)
    with pytest.raises(ValueError, match="for each of the group's 2 parameters"):
        opt.step()
    assert same_bits(params, before)
    del opt.param_groups[0]["noise_index"]
    opt.step()
    assert opt.phase == 3
