"""What all training libraries share: the optimizers inside their wrappers, and x whenever a model is saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from deeprelax.optim.relaxation import Relaxation


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer inside accelerate's and other wrappers, each of which keeps it as ``.optimizer``."""
    while not isinstance(optimizer, Relaxation) and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer  # type: ignore[no-any-return]


class ShowX:
    """Before ``model.state_dict()``: x. Copies and pickles of the model carry one that does nothing.

    Args:
        optimizers: put x into the parameters by ``eval()``, where the next gradient finds it unless ``train()`` comes
            first.
    """

    def __init__(self, optimizers: Iterable[Any] = ()) -> None:
        self._optimizers = list(optimizers)

    def __call__(self, *_: Any) -> None:
        """Put x into the parameters."""
        for optimizer in self._optimizers:
            optimizer.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShowX, ()


class StateDictHook:
    """``ShowX`` on one model at a time."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None

    def put(self, model: nn.Module, optimizers: Iterable[Any]) -> None:
        """From now on this model shows x when its ``state_dict()`` is asked for."""
        self.remove()
        self._handle = model.register_state_dict_pre_hook(ShowX(optimizers))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """No model does any more."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
