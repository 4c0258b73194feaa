"""One training run: a network, an optimizer, a seed, and the curve of validation error and training loss."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deeprelax
from deeprelax.experiments.evaluation import at_x, evaluate, recalibrate
from deeprelax.experiments.models import build

if TYPE_CHECKING:  # the data need numpy; this module only torch
    from deeprelax.experiments.data.datasets import Data

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "heat": deeprelax.Heat,
    "entropy-sgd": deeprelax.EntropySGD,
    "hj": deeprelax.HJ,
}
# With several workers under torchrun.
WORKERS: dict[str, type[torch.optim.Optimizer]] = {"elastic-sgd": deeprelax.ElasticSGD, "parle": deeprelax.Parle}
EVERY = OPTIMIZERS | WORKERS


class DivergedError(ValueError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class Settings:
    """What a run does; with the data and a seed it determines every bit of the result on one machine.

    Attributes:
        optimizer: a key of ``EVERY``.
        options: arguments of the optimizer.
        model: a key of ``models.MODELS``.
        epochs: effective epochs: gradient evaluations over batches per epoch, the same for every optimizer.
        batch_size: images per gradient.
        drops: effective epochs after which ``lr`` is multiplied by ``factor``. Section 6.4 scales SGD's schedule by
            L; counted in effective epochs, as the authors' runs have it, it falls at the same place for all.
        factor: see ``drops``.
    """

    optimizer: str
    options: dict[str, Any]
    model: str
    epochs: int
    batch_size: int
    drops: tuple[int, ...] = ()
    factor: float = 0.2


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

    optimizer: str
    seed: int
    validation_error: list[float] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    step_ms: float = 0.0
    worker_error: list[float] = field(default_factory=list)


def rank_and_size() -> tuple[int, int]:
    """Of this process among the workers; (0, 1) without a process group."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)


def make_optimizer(settings: Settings, model: nn.Module, seed: int, backend: str = "auto") -> torch.optim.Optimizer:
    """The run's optimizer; ``backend`` and ``seed`` are for those of deeprelax."""
    options = dict(settings.options)
    if settings.optimizer == "sgd":
        options["fused"] = True
    else:
        options["backend"] = backend
    if settings.optimizer in ("heat", "entropy-sgd", *WORKERS):
        options["seed"] = seed
    return EVERY[settings.optimizer](model.parameters(), **options)


def check(settings: Settings, data: Data, backend: str = "auto") -> None:
    """Everything about a run that can be refused before it starts.

    Raises:
        ValueError: a setting is out of range, the model does not fit the images, or there are fewer gradients than
            one outer update takes.
        RuntimeError: the backend does not work here.
    """
    count = len(data.train_inputs)
    if not 2 <= settings.batch_size <= count:
        raise ValueError(f"batch size {settings.batch_size}: 2 to {count} are possible, {data.name}'s training images")
    with torch.random.fork_rng(devices=[]):
        model = build(settings.model, data.train_inputs.shape[1:]).to(data.train_inputs.device)
    length = make_optimizer(settings, model, 0, backend).param_groups[0].get("inner_steps", 1)
    total = gradients(settings, data)
    if total < length:
        batches = count // settings.batch_size
        raise ValueError(
            f"{total} gradients ({settings.epochs} epochs of {batches} batches of {settings.batch_size}) end before "
            f"the first outer update, which takes L = {length}: the weights would not move; raise --epochs to "
            f"{-(-length // batches)}, or lower --batch-size or --inner-steps"
        )


def gradients(settings: Settings, data: Data) -> int:
    """How many a run takes; images that do not fill a batch are left out."""
    return settings.epochs * (len(data.train_inputs) // settings.batch_size)


def train(
    settings: Settings,
    data: Data,
    seed: int,
    *,
    backend: str = "auto",
    on_epoch: Callable[[Result], None] = lambda result: None,
    on_gradient: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Result, nn.Module]:
    """Train one network.

    Args:
        settings: what to do.
        data: on the device to train on.
        seed: of the weights, the batches, dropout and the optimizer's noise.
        backend: of deeprelax's optimizers.
        on_epoch: called after every effective epoch with the result so far.
        on_gradient: called after every gradient with their number so far and in the whole run.

    Returns:
        The result and the network, with the weights x.

    Raises:
        ValueError, RuntimeError: as ``check``.
        DivergedError: the training loss is no longer a finite number.
    """
    check(settings, data, backend)
    device = data.train_inputs.device
    start = time.perf_counter()
    with deterministic(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build(settings.model, data.train_inputs.shape[1:]).to(device)
        optimizer = make_optimizer(settings, model, seed, backend)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(settings.drops), settings.factor)
        rank, size = rank_and_size()
        if rank:  # workers drop out, and draw batches, each their own
            torch.manual_seed(seed + rank)
        batches = torch.Generator().manual_seed(seed + 1_000_003 * rank)
        timer = StepTimer(device)
        result = Result(settings.optimizer, seed)
        done, total = 0, gradients(settings, data)
        for epoch in range(settings.epochs):
            model.train()
            for inputs, targets in _batches(data, settings.batch_size, batches):
                F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
                with timer:
                    optimizer.step()
                optimizer.zero_grad()
                done += 1
                on_gradient(done, total)
            scheduler.step()
            if size > 1 and epoch + 1 == settings.epochs:
                result.worker_error = everyones_error(model, data, settings.batch_size)
            with at_x(optimizer, stay=epoch + 1 == settings.epochs):
                recalibrate(model, data.train_inputs, settings.batch_size)
                _, loss = evaluate(model, data.train_inputs, data.train_targets)
                error, _ = evaluate(model, data.validation_inputs, data.validation_targets)
            if not loss < float("inf"):
                raise DivergedError(
                    f"{settings.optimizer} diverged in effective epoch {epoch + 1} of seed {seed}: its training loss "
                    f"is {loss}; try a smaller lr than {settings.options['lr']}"
                )
            result.validation_error.append(error)
            result.training_loss.append(loss)
            result.seconds = time.perf_counter() - start
            result.step_ms = timer.median_ms()
            on_epoch(result)
    return result, model


def everyones_error(model: nn.Module, data: Data, batch_size: int) -> list[float]:
    """Each worker's validation error at its own weights."""
    recalibrate(model, data.train_inputs, batch_size)
    own, _ = evaluate(model, data.validation_inputs, data.validation_targets)
    found: list[float] = [0.0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def _batches(data: Data, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One effective epoch: whole batches drawn without replacement. What is left over differs from epoch to epoch."""
    order = torch.randperm(len(data.train_inputs), generator=generator).to(data.train_inputs.device)
    for chosen in torch.split(order[: len(order) // size * size], size):
        yield data.train_inputs[chosen], data.train_targets[chosen]


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """cuDNN takes the same algorithm every time."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


class StepTimer:
    """Times what it encloses: with the clock on a CPU, with the device's events on a GPU, which it never waits for."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[Any] = []
        self._times: list[float] = []

    def __enter__(self) -> None:
        self._mark()

    def __exit__(self, *_: object) -> None:
        self._mark()

    def _mark(self) -> None:
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
