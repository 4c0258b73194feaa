"""What is measured of a network: its error and loss at x, with batch norm's statistics gathered there."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprelax.batchnorm import recalibrate_batchnorm
from deeprelax.optim.outer_loop import OuterLoop
from deeprelax.optim.relaxation import Relaxation

EVALUATION_BATCH = 1024


@contextlib.contextmanager
def at_x(*optimizers: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the weights hold the point at which each optimizer is evaluated."""
    with contextlib.ExitStack() as stack:
        for optimizer in optimizers:
            if isinstance(optimizer, Relaxation | OuterLoop):
                stack.enter_context(optimizer.at_x())
            elif hasattr(optimizer, "eval"):  # schedule-free
                optimizer.eval()
                stack.callback(optimizer.train)  # type: ignore[attr-defined]
        yield


@functools.lru_cache(maxsize=4)
def recalibration_order(images: int, device: torch.device) -> Tensor:
    """The one order in which ``recalibrate`` goes through a training set of that size, on the device."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(0)).to(device)


def recalibrate(model: nn.Module, inputs: Tensor, batch_size: int) -> None:
    """Batch norm's statistics at the present weights, from whole batches of the training set.

    The paper's authors do this before every evaluation. The images come in one fixed shuffled order, since files may
    hold them class by class, and a batch of one class has the statistics of that class. Needs no host-device
    synchronisation.
    """
    order = recalibration_order(len(inputs), inputs.device)
    chosen = torch.split(order[: len(order) // batch_size * batch_size], batch_size)
    recalibrate_batchnorm(model, (inputs.index_select(0, each) for each in chosen))


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Fraction misclassified and mean cross-entropy in nats, in eval mode."""
    model.eval()
    wrong = torch.zeros((), device=inputs.device)
    loss = torch.zeros((), device=inputs.device, dtype=torch.float64)
    for x, target in zip(torch.split(inputs, EVALUATION_BATCH), torch.split(targets, EVALUATION_BATCH)):
        logits = model(x)
        wrong += (logits.argmax(1) != target).sum()
        loss += F.cross_entropy(logits, target, reduction="sum")
    return wrong.item() / len(inputs), loss.item() / len(inputs)
