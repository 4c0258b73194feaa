"""The rows of Table 1 stay stable to their end: scoping lowers γ all the while, and short runs cannot show it."""

from __future__ import annotations

import pytest
import torch

import deeprelax
from deeprelax.experiments.runs import Run
from deeprelax.experiments.table1 import protocol
from deeprelax.experiments.table1.protocol import PRESETS

CURVATURES = (0.1, 1.0, 3.0)
CYCLES = 60


def moments(run: Run) -> list[tuple[float, float]]:
    """(η, γ) at the start, just before the rate falls and at the end, where η/γ and 1/γ are largest."""
    per_epoch = protocol.TRAINING_IMAGES[run.model] // run.batch_size
    cycles = run.epochs * per_epoch / run.options["inner_steps"]
    found = []
    for done in (0.0, *(fraction - 1e-9 for fraction, _ in run.drops), 1.0 - 1e-9):
        gamma = run.options["gamma"] * (1 - run.options["scoping"]) ** (cycles * done)
        found.append((run.options["lr"] * run.rate_factor(done), gamma))
    return found


def grows(run: Run, lr: float, gamma: float) -> float:
    """The greatest factor by which x is further from the minimum of a parabola after 60 outer steps than at first."""
    options = {**run.options, "lr": lr, "gamma": gamma, "scoping": 0.0, "temperature": 0.0, "weight_decay": 0.0}
    x = torch.nn.Parameter(torch.ones(len(CURVATURES), dtype=torch.float64))
    curvature = torch.tensor(CURVATURES, dtype=torch.float64)
    optimizer = deeprelax.EntropySGD([x], **options)
    for _ in range(CYCLES * run.options["inner_steps"]):
        x.grad = curvature * x.detach()
        optimizer.step()
    optimizer.eval()
    return float(x.detach().abs().max())


@pytest.mark.parametrize("model", protocol.MODELS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.filterwarnings("ignore:.*gamma")
def test_entropy_sgd_is_stable_throughout_its_row(preset: str, model: str) -> None:
    run = protocol.run(preset, model, "entropy-sgd", 0)
    for lr, gamma in moments(run):
        assert grows(run, lr, gamma) <= 1.0, (lr, gamma)


@pytest.mark.parametrize("model", protocol.MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_entropy_sgd_keeps_within_the_bounds_that_its_warnings_name(preset: str, model: str) -> None:
    """η'/γ below 2, and η/γ as well; where LeNet's rate first falls the latter is past 2 for 8 of its 1,872 steps."""
    run = protocol.run(preset, model, "entropy-sgd", 0)
    for lr, gamma in moments(run):
        assert run.options["inner_lr"] < 2 * gamma
        assert run.options.get("absorb_gamma") or lr / gamma < 2.03
