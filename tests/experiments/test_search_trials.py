"""A search continues from its best trial: outward at an edge, otherwise finer; every optimizer has as many trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprelax import environment
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import search_trials, store
from deeprelax.experiments.table1.protocol import OPTIMIZERS
from deeprelax.experiments.table1.search_trials import FINER, FURTHER, SGD_TRIALS, TRIALS, Trial, after

BAD = (0.9, 1.0)


def best_at(tried: tuple[Trial, ...], best: Trial) -> list[tuple[float, float]]:
    return [(0.1, 1.0) if trial == best else BAD for trial in tried]


@pytest.mark.parametrize(
    ("tried", "best", "then"),
    [
        (TRIALS, (3.0, 1.0, False), (9.0, 1.0, False)),
        (TRIALS, (0.3, 1.0, False), (0.3 / 3, 1.0, False)),
        (TRIALS, (1.0, 10.0, False), (1.0, 100.0, False)),
        (TRIALS, (1.0, 0.1, False), (1.0, 0.1 * 0.1, False)),
        (TRIALS, (1.0, 1.0, True), (FINER, 1.0, True)),
        (SGD_TRIALS, (0.1, 1.0, False), (0.1 / 3, 1.0, False)),
        (SGD_TRIALS, (0.3, 1.0, True), (0.3 * FINER, 1.0, True)),
    ],
)
def test_the_search_moves_outward_at_an_edge_and_otherwise_refines(
    tried: tuple[Trial, ...], best: Trial, then: Trial
) -> None:
    assert after(tried, best_at(tried, best)) == pytest.approx(then)


def test_only_a_step_outward_that_is_better_is_followed() -> None:
    tried = (*TRIALS, (9.0, 1.0, False))
    assert after(tried, best_at(tried, (9.0, 1.0, False))) == (27.0, 1.0, False)
    assert after(tried, best_at(tried, (3.0, 1.0, False))) == (3 * FINER, 1.0, False)


def test_if_all_trials_diverged_the_rate_falls() -> None:
    assert after(TRIALS, [(float("inf"), float("inf"))] * 6) == (0.3 / 3, 1.0, False)


def write(run: Run, folder: Path) -> None:
    """Better with a greater learning rate."""
    path = store.path_of(run, folder)
    path.parent.mkdir(exist_ok=True)
    record = {name: 1.0 for name in store.RECORD} | {"validation_error": 0.5 / (1 + run.options["lr"])}
    lines = [{"run": run.settings(), "machine": environment.describe(), "data": "d"}, record, {"ended": "finished"}]
    store.write_lines(path, lines)


def test_every_optimizer_gets_the_same_number_of_further_trials(tmp_path: Path) -> None:
    runs = search_trials.plan("paper", ["lenet"], OPTIMIZERS, 1)
    for number in range(len(TRIALS), len(TRIALS) + FURTHER):
        for run in runs:
            write(run, tmp_path)
        runs = search_trials.further("paper", ["lenet"], OPTIMIZERS, 1, number, tmp_path)
        again = search_trials.further("paper", ["lenet"], OPTIMIZERS, 1, number, tmp_path)
        assert runs == again
        assert [run.optimizer for run in runs] == list(OPTIMIZERS)
        assert {run.variant for run in runs} == {f"trial{number}"}
        for run in runs:
            recipe = search_trials.run_of("paper", "lenet", run.optimizer, 1, 0, TRIALS[0])
            assert run.options["lr"] == pytest.approx(recipe.options["lr"] * 3.0 ** (number - 4))
