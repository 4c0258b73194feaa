"""Where the noise's seed comes from, in one process and in several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make, parameters, run, same_bits

pytestmark = pytest.mark.parametrize("name", ["EntropySGD", "Heat"])

# Two ranks with different seeds take the same gradients; "train first": Heat's train() draws before the first step.
RANK = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from conftest import make, parameters, run, started, values
rank, store, out = int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(100 + rank)
early = {name: (make(name, params := parameters(), seed=None), params) for name in ("EntropySGD", "Heat")}
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
results = {}
for name in early:
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
            opt, params = make(name, params := parameters(), seed=opt.param_groups[0]["seed"]), params
        run(opt, params, range(3))
        results[name, kind] = (values(params), opt.param_groups[0]["seed"])
if rank == 0:  # no other rank takes part
    for name in early:
        opt = make(name, params := parameters(), seed=3)
        opt.eval()
        opt.train()
        run(opt, params, range(2))
        results[name, "alone"] = (values(params), 3)
torch.save(results, out)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What two ranks of a gloo group ended with, by (optimizer, kind)."""
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"rank-{rank}.pt" for rank in range(2)]
    common = [sys.executable, "-W", "ignore", "-c", RANK, str(Path(__file__).parent.parent)]
    processes = [
        subprocess.Popen([*common, str(rank), str(folder / "store"), str(out)], stderr=subprocess.PIPE, text=True)
        for rank, out in enumerate(outs)
    ]
    try:
        errors = [process.communicate(timeout=90)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-3000:]
    return [torch.load(out) for out in outs]


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
