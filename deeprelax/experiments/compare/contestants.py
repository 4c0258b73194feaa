"""The optimizers that are compared, each with a grid of its rate and of one more value."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import deeprelax

Make = Callable[[Sequence[Tensor], float, float], list[Optimizer]]


@dataclass(frozen=True)
class Contestant:
    """One optimizer.

    Attributes:
        make: from parameters, the rate and the other value; several optimizers share the parameters among them.
        rates: of the search.
        other: the name of the other value.
        others: of the search.
        decays: whether the rate falls linearly to 0 in the course of a run.
    """

    make: Make
    rates: tuple[float, ...]
    other: str
    others: tuple[float, ...]
    decays: bool = True

    def grid(self) -> Iterator[tuple[float, float]]:
        """Every pair of a rate and another value."""
        return itertools.product(self.rates, self.others)


def matrices(params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices, for which Muon is made, and the other parameters."""
    return [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]


def muon(params: Sequence[Tensor], rate: float, beta2: float = 0.95) -> list[Optimizer]:
    """Muon for matrices, and AdamW at a tenth of the rate for the rest."""
    own, rest = matrices(params)
    made: list[Optimizer] = [torch.optim.Muon(own, lr=rate)] if own else []
    return made + ([torch.optim.AdamW(rest, lr=rate / 10, betas=(0.9, beta2))] if rest else [])


def outer_muon(params: Sequence[Tensor], rate: float, momentum: float) -> list[Optimizer]:
    """An outer loop around each of these."""
    return [deeprelax.OuterLoop(inner, momentum=momentum) for inner in muon(params, rate)]


def schedule_free(params: Sequence[Tensor], rate: float, beta2: float) -> list[Optimizer]:
    """Schedule-free AdamW (Defazio et al. 2024), with a tenth of a small run as warm-up."""
    from schedulefree import AdamWScheduleFree

    opt = AdamWScheduleFree(params, lr=rate, betas=(0.9, beta2), warmup_steps=40)
    opt.train()
    return [opt]


CONTESTANTS: dict[str, Contestant] = {
    "SGD, Nesterov": Contestant(
        lambda params, rate, momentum: [torch.optim.SGD(params, rate, momentum, nesterov=True)],
        (0.02, 0.06, 0.2), "momentum", (0.9, 0.98),
    ),
    "AdamW": Contestant(
        lambda params, rate, beta2: [torch.optim.AdamW(params, rate, (0.9, beta2))],
        (1e-3, 3e-3, 1e-2), "beta2", (0.95, 0.999),
    ),
    "schedule-free AdamW": Contestant(schedule_free, (1e-3, 3e-3, 1e-2), "beta2", (0.95, 0.999), decays=False),
    "Muon": Contestant(muon, (0.01, 0.03, 0.1), "beta2", (0.95, 0.999)),
    "HJ": Contestant(
        lambda params, rate, gamma: [deeprelax.HJ(params, rate, gamma=gamma)], (0.3, 1.0, 3.0), "gamma", (0.1, 1.0)
    ),
    "EntropySGD": Contestant(
        lambda params, rate, gamma: [
            deeprelax.EntropySGD(
                params, gamma, gamma=gamma, inner_lr=rate, inner_momentum=0.9, nesterov=True, seed=0
            )
        ],
        (0.02, 0.06, 0.2), "gamma = lr", (1.0, 10.0),
    ),
    "EntropyAdamW": Contestant(
        lambda params, rate, momentum: [deeprelax.EntropyAdamW(params, rate, momentum=momentum)],
        (1e-3, 3e-3, 1e-2), "momentum", (0.67, 0.9),
    ),
    "OuterLoop(Muon)": Contestant(outer_muon, (0.01, 0.03, 0.1), "momentum", (0.67, 0.9)),
}  # fmt: skip


# With the classes' defaults, at constant rates: what a user tries first.
_MAKE: dict[str, Make] = {
    "HJ()": lambda params, *_: [deeprelax.HJ(params)],
    "EntropySGD()": lambda params, *_: [deeprelax.EntropySGD(params, seed=0)],
    "Heat()": lambda params, *_: [deeprelax.Heat(params, seed=0)],
    "EntropyAdamW()": lambda params, *_: [deeprelax.EntropyAdamW(params)],
    "AdamW()": lambda params, *_: [torch.optim.AdamW(params)],
}
DEFAULTS = {name: Contestant(make, (0.0,), "", (0.0,), decays=False) for name, make in _MAKE.items()}
EVERY = CONTESTANTS | DEFAULTS


def parameters(model: nn.Module) -> list[Tensor]:
    """The parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]
