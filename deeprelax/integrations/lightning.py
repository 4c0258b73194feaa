"""Lightning's Trainer: validation, test, prediction, checkpoints, averages and the end of fit at x."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision

from deeprelax.integrations.saving import StateDictHook
from deeprelax.optim.relaxation import Relaxation


class EvalPoint(Callback):
    """The model holds x outside training steps, and every checkpoint does:

        trainer = Trainer(callbacks=[EvalPoint(), ...])

    Lightning never calls an optimizer's ``eval()`` and ``train()``. This callback puts x into the parameters for
    validation, whenever ``state_dict()`` of the module is asked for, at the end of every epoch and of fit, and the
    inner point back before a training batch. The saved optimizer holds the inner point, so a resumed run continues with
    the bits of one that was not interrupted. All optimizers of deeprelax in the module are supported, under automatic
    and manual optimization. It moves itself to the front of the trainer's callbacks, so that the others see x:
    ``StochasticWeightAveraging`` and ``WeightAveraging`` average x. With the latter it exchanges the points at every
    batch.

    Raises:
        RuntimeError: before training, for ``capturable=True`` with ``gradient_clip_val`` under mixed precision, which
            Lightning refuses.
    """

    def __init__(self) -> None:
        self._hook = StateDictHook()

    @staticmethod
    def _optimizers(trainer: Trainer) -> list[Relaxation]:
        return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, Relaxation)]

    def _show_x(self, trainer: Trainer) -> None:
        for optimizer in self._optimizers(trainer):
            optimizer.eval()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Come first. The weights of an earlier fit are x before a checkpoint is loaded over them."""
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]
        self._show_x(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be clipped; make the module show x when it is saved."""
        for optimizer in self._optimizers(trainer):
            if (
                optimizer._step_supports_amp_scaling
                and trainer.gradient_clip_val
                and isinstance(trainer.precision_plugin, MixedPrecision)
            ):
                raise RuntimeError(
                    f"Lightning cannot clip the gradients of {type(optimizer).__name__}(capturable=True) under mixed "
                    "precision, because its step unscales them on the device: construct it with capturable=False, or "
                    "leave gradient_clip_val out and override configure_gradient_clipping with "
                    "torch.nn.utils.clip_grad_norm_, after scaler.unscale_(optimizer) under 16-mixed"
                )
        self._hook.put(pl_module, self._optimizers(trainer))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """The inner point. Where ``StochasticWeightAveraging`` has put its average into the parameters for an epoch
        that gathers batch norm statistics, the average is x, and the step at its end has nothing to do."""
        for optimizer in self._optimizers(trainer):
            if trainer.fit_loop._skip_backward:
                optimizer.zero_grad()
                optimizer.restart()
                Relaxation.train(optimizer)  # Heat's own would draw an inner point
            else:
                optimizer.train()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """An average over steps is of x."""
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            self._show_x(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model stays at x."""
        self._show_x(trainer)
        self._hook.remove()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation at x."""
        self._show_x(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Callbacks see x between two epochs."""
        self._show_x(trainer)
