"""The Trainer of transformers: what it saves is x."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from deeprelax.optim.relaxation import Relaxation


def unwrapped(optimizer: Any) -> Relaxation:
    """The optimizer inside accelerate's and other wrappers, each of which keeps it as ``.optimizer``.

    Raises:
        TypeError: it is not one of deeprelax.
    """
    inner = optimizer
    while not isinstance(inner, Relaxation) and isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Relaxation):
        raise TypeError(
            f"EvalPointCallback needs an optimizer of deeprelax; the Trainer has {type(inner).__name__}: pass "
            "optimizers=(opt, None) or optimizer_cls_and_kwargs=(deeprelax.HJ, {...}) to it, or leave the callback out"
        )
    return inner


class _ShowX:
    """Before ``model.state_dict()``: x. Copies and pickles of the model carry one that does nothing."""

    def __init__(self, optimizer: Relaxation | None = None) -> None:
        self._optimizer = optimizer

    def __call__(self, *_: Any) -> None:
        if self._optimizer is not None:
            self._optimizer.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        return _ShowX, ()


class EvalPointCallback(TrainerCallback):  # type: ignore[misc]
    """Every checkpoint, the best model and the model after training hold x::

        trainer = Trainer(model, args, optimizers=(opt, None), callbacks=[EvalPointCallback()], ...)

    The Trainer itself puts x into the parameters for evaluation and prediction, and the inner point back before the
    next gradient, but saves whatever they hold. With this callback ``model.state_dict()`` shows x first, whoever calls
    it during training: the Trainer, another callback, a checkpoint on SIGTERM. The saved optimizer then holds the inner
    point, and a resumed run continues with the bits of one that was not interrupted. The order of callbacks does not
    matter. When training ends the parameters hold x, or the best checkpoint's weights with ``load_best_model_at_end``.

    Raises:
        TypeError: when training begins, if the Trainer's optimizer is not one of deeprelax.
    """

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()  # type: ignore[no-untyped-call]
            self._hook = None

    def on_train_begin(self, *_: Any, model: nn.Module, optimizer: Any, **kwargs: Any) -> None:
        self._remove_hook()  # of a run that an error ended
        self._hook = model.register_state_dict_pre_hook(_ShowX(unwrapped(optimizer)))

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any, **kwargs: Any) -> None:
        # Somebody may have saved the model between the backward pass and the step.
        optimizer.train()

    def on_epoch_end(self, *_: Any, optimizer: Any, **kwargs: Any) -> None:
        # Also when training stops within an epoch, and before the best model is loaded into the parameters.
        optimizer.eval()

    def on_train_end(self, *_: Any, optimizer: Any, **kwargs: Any) -> None:
        optimizer.eval()
        self._remove_hook()
