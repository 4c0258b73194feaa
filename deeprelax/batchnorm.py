"""Batch norm's running statistics at x: during training they were gathered at the inner points."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_LOCK = threading.Lock()
_passes = 0  # under way, in all threads
_stance: Any = None  # of the compiler, during them


def recalibrate_batchnorm(model: nn.Module, loader: Iterable[Any]) -> AbstractContextManager[Any]:
    """Replace batch norm's running statistics by those of the weights that the model holds now, in one pass.

    Call it where the parameters hold x, before validation or saving:

        with opt.at_x(), recalibrate_batchnorm(model, loader):
            validate(model)

    As a context manager it puts the old statistics back at the end of the block; a plain call keeps the new ones.
    Each running mean and variance becomes the average over all batches, weighted by the number of values per channel.
    Every module but batch norm runs in eval mode (no dropout); afterwards each has its own mode again. A compiled model
    runs uncompiled. Under data parallelism each process averages over its own batches: give each the same ones, or use
    ``SyncBatchNorm``.

    Args:
        model: any module; without batch norm layers that track statistics nothing happens, and the loader is not read.
        loader: yields batches in a shuffled order: a tensor, a tuple or list that begins with the model's input, or a
            mapping of keyword arguments. Tensors are moved to the device of the statistics.

    Returns:
        A context manager whose exit restores the previous statistics.

    Raises:
        ValueError: the loader yields no batch. As after any error during the pass, the statistics are the old ones.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return contextlib.nullcontext()
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    undo = contextlib.ExitStack()
    undo.callback(_restore, before)
    try:
        _run(model, norms, loader)
    except BaseException:
        undo.close()
        raise
    return undo


@torch.no_grad()
def _restore(before: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in before:
        buffer.copy_(value)


@torch.no_grad()
def _run(model: nn.Module, norms: list[_BatchNorm], loader: Iterable[Any]) -> None:
    """One pass with batch norm alone in train mode."""
    device = norms[0].running_mean.device  # type: ignore[union-attr]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    seen: dict[nn.Module, int] = {}

    def weigh(norm: Any, args: tuple[Tensor, ...]) -> None:
        # The momentum that makes the running average a plain one. None, torch's own, would wait for the device.
        values = args[0].numel() // args[0].shape[1]
        seen[norm] = seen.get(norm, 0) + values
        norm.momentum = values / max(seen[norm], 1)

    hooks = [norm.register_forward_pre_hook(weigh) for norm in norms]
    batches = 0
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        with _uncompiled():
            for batch in loader:
                _forward(model, batch, device)
                batches += 1
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    if batches == 0:
        raise ValueError("the loader yields no batch, so there are no statistics; pass one that yields at least one")


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """A compiled module would miss the hooks. Without the compiler imported, nothing is compiled.

    The compiler's stance is the whole process's: the first of several threads sets it, the last one puts it back.
    """
    global _passes, _stance
    with _LOCK:
        if _stance is None and "torch._dynamo" in sys.modules:
            _stance = torch.compiler.set_stance("force_eager")  # RuntimeError inside a compiled function
        _passes += 1
    try:
        yield
    finally:
        with _LOCK:
            _passes -= 1
            if _passes == 0 and _stance is not None:
                _stance.__exit__(None, None, None)
                _stance = None


def _forward(model: nn.Module, batch: Any, device: torch.device) -> None:
    def moved(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    if isinstance(batch, Mapping):
        model(**{name: moved(value) for name, value in batch.items()})
    else:
        model(moved(batch[0] if isinstance(batch, tuple | list) else batch))
