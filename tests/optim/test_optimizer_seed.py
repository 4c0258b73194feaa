"""Where the noise's seed comes from, in one process and in several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import make, parameters, run, same_bits, started, values
from workers import processes

NAMES = ["EntropySGD", "Heat"]
pytestmark = pytest.mark.parametrize("name", NAMES)


def all_kinds(rank: int) -> dict[tuple[str, str], Any]:
    """Two ranks with different seeds take the same gradients; "train first": Heat's train() draws before a step."""
    torch.manual_seed(100 + rank)
    early = {name: started(name, seed=None) for name in NAMES}
    dist.init_process_group("gloo", init_method=f"file://{Path.cwd()}/store", rank=rank, world_size=2)
    results = {}
    for name in NAMES:
        for kind in ("before the group", "after the group", "train first", "own seed", "loaded", "no gradient"):
            opt, params = started(name, seed=5 + rank if kind == "own seed" else None)
            if kind == "before the group":  # the first step comes after the group is there
                opt, params = early[name]
            if kind == "loaded":
                opt.load_state_dict(make(name, parameters(), seed=40 + rank).state_dict())
            if kind == "train first":
                opt.train()
            if kind == "no gradient" and rank == 1:  # it agrees on the seed all the same
                opt.step()
            elif kind == "no gradient":
                run(opt, params, range(1))
                opt, params = started(name, seed=opt.param_groups[0]["seed"])
            run(opt, params, range(3))
            results[name, kind] = (values(params), opt.param_groups[0]["seed"])
    if rank == 0:  # no other rank takes part
        for name in NAMES:
            opt, params = started(name, seed=3)
            opt.eval()
            opt.train()
            run(opt, params, range(2))
            results[name, "alone"] = (values(params), 3)
    dist.barrier()
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What two ranks of a gloo group ended with, by (optimizer, kind)."""
    return processes(2, "all_kinds", tmp_path_factory.mktemp("ranks"), program="test_optimizer_seed", GROUP="0")


@pytest.mark.parametrize("kind", ["before the group", "after the group", "train first", "loaded", "no gradient"])
def test_all_ranks_draw_rank_0s_noise(name: str, kind: str, ranks: list[dict[tuple[str, str], Any]]):
    (first, first_seed), (second, second_seed) = (results[name, kind] for results in ranks)
    expected = 40 if kind == "loaded" else 100
    assert (first_seed, second_seed) == (expected, expected)
    assert same_bits(first, second)


def test_an_explicit_seed_stays_and_waits_for_no_other_rank(name: str, ranks: list[dict[Any, Any]]):
    (first, first_seed), (second, second_seed) = (results[name, "own seed"] for results in ranks)
    assert (first_seed, second_seed) == (5, 6)
    assert not same_bits(first, second)
    assert (name, "alone") in ranks[0]


def test_no_seed_takes_torchs_initial_seed_and_draws_nothing(name: str):
    torch.manual_seed(1234)
    params, same, other = parameters(), parameters(), parameters()
    state = torch.get_rng_state()
    opt = make(name, params, seed=None)
    run(opt, params, range(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert opt.param_groups[0]["seed"] == 1234
    run(make(name, same, seed=1234), same, range(5))
    run(make(name, other, seed=1235), other, range(5))
    assert same_bits(params, same)
    assert not same_bits(params, other)


def test_every_bit_of_the_seed_counts_and_negative_ones_wrap(name: str):
    results = []
    for seed in (0, 1, 1 << 31, 1 << 32, 1 << 63, 2**64 - 1, -1):
        params = parameters()
        run(make(name, params, seed=seed), params, range(2))
        results.append(params)
    pairs = [(i, j) for i in range(7) for j in range(i) if same_bits(results[i], results[j])]
    assert pairs == [(6, 5)]


def test_an_explicit_seed_applies_to_late_groups_as_well(name: str):
    params, late = parameters(), parameters(seed=1)
    opt = make(name, params, seed=11)
    opt.add_param_group({"params": late})
    together = make(name, [{"params": (a := parameters())}, {"params": (b := parameters(seed=1))}], seed=11)
    run(opt, [*params, *late], range(5))
    run(together, [*a, *b], range(5))
    assert same_bits([*params, *late], [*a, *b])
