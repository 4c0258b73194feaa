"""``deeprelax train``'s runs: the curve of validation error and training loss, and the time of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from deeprelax.experiments.evaluation import evaluate, recalibrate
from deeprelax.experiments.runner import Runner, rank_and_size, reproducible
from deeprelax.experiments.runs import Run
from deeprelax.optim.relaxation import Relaxation

if TYPE_CHECKING:  # the data need numpy; this module only torch
    from deeprelax.experiments.data.datasets import Data


class DivergedError(ValueError):
    """The training loss is no longer a finite number."""


@dataclass
class Result:
    """A run's curve, one value per effective epoch, evaluated at x.

    Attributes:
        validation_error: fractions of the validation images that are misclassified.
        training_loss: mean cross-entropy over the training set, in nats, without dropout.
        seconds: the whole run, evaluations included.
        step_ms: milliseconds per ``step()``, without forward and backward pass; the median.
        worker_error: of several workers, each one's own validation error at the end, not at their centre.
    """

    run: Run
    validation_error: list[float] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    step_ms: float = 0.0
    worker_error: list[float] = field(default_factory=list)


def check(run: Run, data: Data, backend: str = "auto") -> None:
    """Check a run before it starts.

    Raises:
        ValueError: a setting is out of range, the model does not fit the images, or there are fewer gradients than
            one outer update takes.
        RuntimeError: the backend does not work here.
    """
    count = len(data.train_inputs)
    if not 2 <= run.batch_size <= count:
        raise ValueError(f"batch size {run.batch_size}: 2 to {count} are possible, {data.name}'s training images")
    with reproducible(data.train_inputs.device):
        runner = Runner(run, data, backend=backend, graph=False)
    length = runner.optimizer.param_groups[0].get("inner_steps", 1)
    if runner.total < length:
        raise ValueError(
            f"{runner.total} gradients ({run.epochs} epochs of {runner.per_epoch} batches of {run.batch_size}) end "
            f"before the first outer update, which takes L = {length}: the weights would not move; raise --epochs to "
            f"{-(-length // runner.per_epoch)}, or lower --batch-size or --inner-steps"
        )


def train(
    run: Run,
    data: Data,
    *,
    backend: str = "auto",
    on_progress: Callable[[int, int, float | None], object] = lambda done, total, error: None,
) -> tuple[Result, torch.nn.Module]:
    """Train one network.

    Args:
        run: what to do.
        data: on the device to train on.
        backend: of deeprelax's optimizers.
        on_progress: called after every gradient and every evaluation with the gradients taken, their number in the
            whole run, and the last validation error.

    Returns:
        The result and the network, with the weights x.

    Raises:
        ValueError, RuntimeError: as ``check``.
        DivergedError: the training loss is no longer a finite number.
    """
    check(run, data, backend)
    device = data.train_inputs.device
    start = time.perf_counter()
    with reproducible(device):
        runner = Runner(run, data, backend=backend, graph=False)
        timer = StepTimer(runner.optimizer, device)
        result = Result(run)
        _, workers = rank_and_size()
        error = None
        while runner.done < runner.total:
            runner.advance(1)
            on_progress(runner.done, runner.total, error)
            if runner.done % runner.per_epoch:
                continue
            if workers > 1 and runner.done == runner.total:
                result.worker_error = errors_of_workers(runner.model, data, run.batch_size)
            error, loss = runner.evaluate()
            if not loss < float("inf"):
                raise DivergedError(
                    f"{run.optimizer} diverged in effective epoch {runner.done // runner.per_epoch} of seed "
                    f"{run.seed}: its training loss is {loss}; try a smaller lr than {run.options['lr']}"
                )
            result.validation_error.append(error)
            result.training_loss.append(loss)
            result.seconds = time.perf_counter() - start
            result.step_ms = timer.median_ms()
            on_progress(runner.done, runner.total, error)
        if isinstance(runner.optimizer, Relaxation):
            runner.optimizer.eval()
    return result, runner.model


def errors_of_workers(model: torch.nn.Module, data: Data, batch_size: int) -> list[float]:
    """Each worker's validation error at its own weights."""
    recalibrate(model, data.train_inputs, batch_size)
    own, _ = evaluate(model, data.validation_inputs, data.validation_targets)
    found: list[float] = [0.0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


class StepTimer:
    """Times an optimizer's steps: by the host's clock on a CPU, by events on a GPU, without synchronising with it."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[Any] = []
        self._times: list[float] = []
        optimizer.register_step_pre_hook(self._mark)
        optimizer.register_step_post_hook(self._mark)

    def _mark(self, *_: object) -> None:
        if self._gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def median_ms(self) -> float:
        """Milliseconds; on a GPU this waits for the device."""
        if self._gpu:
            torch.cuda.synchronize()
        for before, after in zip(self._marks[::2], self._marks[1::2]):
            self._times.append(before.elapsed_time(after) if self._gpu else 1000 * (after - before))
        self._marks.clear()
        return sorted(self._times)[len(self._times) // 2]
