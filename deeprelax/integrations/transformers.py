"""The Trainer of transformers: what it saves is x."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from deeprelax.integrations.saving import StateDictHook, unwrapped
from deeprelax.optim.relaxation import Relaxation


class EvalPointCallback(TrainerCallback):
    """Every checkpoint, the best model and the model after training hold x:

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
        self._hook = StateDictHook()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the model show x when it is saved."""
        optimizer = unwrapped(kwargs["optimizer"])
        if not isinstance(optimizer, Relaxation):
            raise TypeError(
                f"EvalPointCallback needs an optimizer of deeprelax; the Trainer has {type(optimizer).__name__}: pass "
                "optimizers=(opt, None) or optimizer_cls_and_kwargs=(deeprelax.HJ, {...}), or leave the callback out"
            )
        self._hook.put(kwargs["model"], [optimizer])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Back to the inner point, if somebody saved the model between the backward pass and the step."""
        kwargs["optimizer"].train()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Also called when training stops within an epoch, and before the best model is loaded into the parameters."""
        kwargs["optimizer"].eval()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The parameters stay at x."""
        kwargs["optimizer"].eval()
        self._hook.remove()
