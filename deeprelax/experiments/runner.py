"""One run, gradient by gradient; a run of Table 1 on a GPU replays a single CUDA graph for each.

The data lie on the device. An epoch's order of images is drawn on the host, so that it is the same for every device,
and copied into one tensor; a counter on the device points to the next batch, so that a captured step finds it. The
whole state goes into a checkpoint, from which a run resumes with the same bits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprelax import kernels
from deeprelax.experiments.evaluation import at_x, evaluate, recalibrate
from deeprelax.experiments.models import build
from deeprelax.experiments.runs import EVERY, WORKERS, Run

if TYPE_CHECKING:  # the data need numpy; this module only torch
    from deeprelax.experiments.data.datasets import Data

WARM_UP = 3  # calls before a capture, as torch's notes on CUDA graphs advise


def can_be_captured(run: Run, device: torch.device) -> bool:
    """Whether the optimizer's step can be part of a CUDA graph: torch's SGD can, ours if its backend can."""
    return run.optimizer == "sgd" or kernels.get("auto", device).capturable


def why_not_captured(run: Run, device: torch.device) -> str:
    """Why the steps of a run on a GPU do not replay a graph, and what to do; empty if they do, and on a CPU."""
    if device.type != "cuda" or can_be_captured(run, device):
        return ""
    backend = kernels.get("auto", device).name
    reasons = "; ".join(f"{name}: {kernels.why_not(name)}" for name in ("cuda", "triton") if kernels.why_not(name))
    return (
        f"its steps are not captured in a CUDA graph, and far slower than they could be: the {backend!r} backend asks "
        f"the host. {reasons or 'Unset DEEPRELAX_BACKEND'}"
    )


def rank_and_size() -> tuple[int, int]:
    """This process's rank among the workers and their number; (0, 1) without a process group."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if joined else (0, 1)


def make_optimizer(run: Run, model: nn.Module, backend: str = "auto", graph: bool = True) -> torch.optim.Optimizer:
    """The run's optimizer.

    Args:
        backend: of deeprelax's optimizers.
        graph: hold what changes from step to step in tensors, as a CUDA graph needs, if the optimizer can.
    """
    device = next(model.parameters()).device
    options = dict(run.options)
    if run.optimizer == "sgd":
        options["fused"] = True
        if graph:
            options["lr"] = torch.tensor(options["lr"], dtype=torch.float32, device=device)
    else:
        options["backend"] = backend
        options["capturable"] = graph and can_be_captured(run, device)
    if run.optimizer in ("heat", "entropy-sgd", *WORKERS):
        options["seed"] = run.seed
    optimizer = EVERY[run.optimizer](model.parameters(), **options)
    if graph and options.get("momentum") and run.optimizer == "sgd":
        # torch branches on the host when there is no momentum yet; from zero the first step is the same.
        for p in model.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


class Runner:
    """A run that can be advanced, evaluated, saved and resumed.

    Args:
        run: what to do.
        data: on the device to train on.
        backend: of deeprelax's optimizers.
        graph: replay a CUDA graph for each gradient on a GPU, where the optimizer can be captured.

    Attributes:
        done: gradients taken.
        total: gradients of the whole run.
        per_epoch: gradients of an effective epoch; what does not fill a batch is left out, a different part every time.

    Raises:
        ValueError: there are fewer images than a batch takes, the network does not fit them, or a setting is out of
            range.
    """

    def __init__(self, run: Run, data: Data, *, backend: str = "auto", graph: bool = True) -> None:
        images = len(data.train_inputs)
        if run.batch_size > images:
            raise ValueError(f"batches of {run.batch_size}: the training set has only {images} images")
        self.run = run
        self._device = data.train_inputs.device
        # Tensor cores want channels_last, and torch would convert every image and feature map for them.
        self._format = torch.channels_last if run.autocast or run.tf32 else torch.contiguous_format
        torch.manual_seed(run.seed)
        self.model = build(run.network, data.train_inputs.shape[1:]).to(self._device)
        self.model.to(memory_format=self._format)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(run, self.model, backend, graph)
        self._graph = graph
        rank, _ = rank_and_size()
        if rank:  # each worker draws its own dropout and batches
            torch.manual_seed(run.seed + rank)
        self._data = data
        self.per_epoch = images // run.batch_size
        self.total = run.epochs * self.per_epoch
        self.done = 0
        self._draws = torch.Generator().manual_seed(run.seed + 1_000_003 * rank)
        self._before_epoch = self._draws.get_state()
        self._order = torch.zeros(self.per_epoch, run.batch_size, dtype=torch.int64, device=self._device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._factor = 1.0
        self._step: Callable[[], Any] | None = None
        self.model.train()

    # Training.

    def advance(self, gradients: int) -> None:
        """Take that many gradients, at most as many as are left."""
        if self._step is None:
            self._step = self._captured() if self._is_captured else self._gradient
        for _ in range(min(gradients, self.total - self.done)):
            if self.done % self.per_epoch == 0:
                self._begin_epoch()
            self._set_rate(self.run.rate_factor(self.done / self.total))
            self._step()
            self.done += 1

    def _gradient(self) -> None:
        """Batch, forward, backward and step: what a CUDA graph holds. Nothing here may wait for the device."""
        chosen = self._order.index_select(0, self._cursor).squeeze(0)
        self._cursor.add_(1)
        inputs = self._data.train_inputs.index_select(0, chosen).contiguous(memory_format=self._format)
        targets = self._data.train_targets.index_select(0, chosen)
        # Backward then writes each gradient once instead of adding it to zeros. In a capture the gradients lie in the
        # graph's memory pool, where every replay writes them again, so that the addresses stay valid.
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = F.cross_entropy(self.model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.run.autocast:
            return contextlib.nullcontext()
        # A cached cast would be made in one replay and be stale in the next.
        return torch.autocast(self._device.type, dtype=torch.bfloat16, cache_enabled=False)

    def rehearse(self) -> None:
        """Take a few gradients and undo them, so that libraries are initialised and state is created."""
        before = copy.deepcopy(self.state())
        self._cursor.zero_()
        for _ in range(min(WARM_UP, self.per_epoch)):
            self._gradient()
        self.load_state(before)

    def _captured(self) -> Callable[[], Any]:
        """One gradient as a CUDA graph. Every gradient of a run is a replay, also the first after a resumption."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self.rehearse()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)  # the rehearsal's are not the graph's: free them before, not in it
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._gradient()
        return graph.replay

    def _begin_epoch(self) -> None:
        self._before_epoch = self._draws.get_state()
        self._draw_order(0)

    def _draw_order(self, cursor: int) -> None:
        images, size = len(self._data.train_inputs), self._order.numel()
        if self.run.with_replacement:
            order = torch.randint(images, (size,), generator=self._draws)
        else:
            order = torch.randperm(images, generator=self._draws)[:size]
        self._order.copy_(order.view_as(self._order))
        self._cursor.fill_(cursor)

    def _set_rate(self, factor: float) -> None:
        if factor != self._factor:
            self._factor = factor
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(self.rate)
                else:
                    group["lr"] = self.rate

    # Evaluation.

    def evaluate(self) -> tuple[float, float]:
        """Fraction of the validation images misclassified, and mean training loss in nats without dropout; at x, with
        batch norm's statistics gathered there. In float32, with TF32 on a GPU if the training is no more precise."""
        data = self._data
        with at_x(self.optimizer):
            recalibrate(self.model, data.train_inputs, self.run.batch_size)
            _, loss = evaluate(self.model, data.train_inputs, data.train_targets)
            error, _ = evaluate(self.model, data.validation_inputs, data.validation_targets)
        self.model.train()
        return error, loss

    @property
    def how(self) -> dict[str, Any]:
        """How it computes: the optimizer's backend, whether a graph is replayed, and the precision of evaluations."""
        own = self.run.optimizer != "sgd"
        return {
            "backend": kernels.get("auto", self._device).name if own else "torch",
            "captured": self._is_captured,
            "evaluation": "tf32" if self._device.type == "cuda" and _in_tf32(self.run) else "fp32",
        }

    @property
    def _is_captured(self) -> bool:
        return self._graph and self._device.type == "cuda" and can_be_captured(self.run, self._device)

    @property
    def rate(self) -> float:
        """The learning rate of the last gradient."""
        return float(self.run.options["lr"] * self._factor)

    @property
    def gamma(self) -> float | None:
        """γ as scoping has left it; None for SGD."""
        return getattr(self.optimizer, "gamma", None)

    # State.

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; tensors are those in use, not copies."""
        middle = self.done % self.per_epoch != 0
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "factor": self._factor,
            "draws": self._before_epoch if middle else self._draws.get_state(),
            "dropout": self._dropout_generator().get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a state of the same run, before the first gradient."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            # torch's SGD takes the loaded tensor itself, which lies where the checkpoint was read to.
            group["lr"] = group["lr"].to(self._device) if isinstance(group["lr"], Tensor) else group["lr"]
        self.done, self._factor = state["done"], state["factor"]
        self._draws.set_state(state["draws"].cpu())
        self._before_epoch = self._draws.get_state()
        if self.done % self.per_epoch:
            self._draw_order(self.done % self.per_epoch)
        self._dropout_generator().set_state(state["dropout"].cpu())

    def _dropout_generator(self) -> torch.Generator:
        if self._device.type != "cuda":
            return torch.default_generator
        index = self._device.index if self._device.index is not None else torch.cuda.current_device()
        return torch.cuda.default_generators[index]


def _in_tf32(run: Run) -> bool:
    """Whether float32 products are rounded to TF32; in a bf16 run this concerns the evaluations, which would otherwise
    take most of its time."""
    return run.tf32 or bool(run.autocast)


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """cuDNN takes the same algorithms every time, and the caller's generators are left alone."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    cuda = device.type == "cuda"
    # Graphs are captured on a stream of the current device.
    current = torch.cuda.device(device) if cuda else contextlib.nullcontext()
    try:
        with current, torch.random.fork_rng(devices=[device] if cuda else []):
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def numerics(run: Run, device: torch.device) -> Iterator[None]:
    """``reproducible``, in float32 or TF32 as the run says."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = _in_tf32(run)
    try:
        with reproducible(device):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
