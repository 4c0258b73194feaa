"""skorch: validation, scores, checkpoints and predictions at x."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback


class EvalPoint(Callback):  # type: ignore[misc]
    """The net holds x outside training batches:

        NeuralNetClassifier(Network, optimizer=deeprelax.HJ, callbacks=[EvalPoint(), Checkpoint(...)])

    skorch never calls an optimizer's ``eval()`` and ``train()``. This callback puts the inner point into the parameters
    before a training batch, and x before a validation batch and at the end of an epoch. List it before the callbacks
    that save or score. The saved optimizer holds the inner point, so that ``load_params`` and ``partial_fit`` continue
    with the bits of a run that was not interrupted.
    """

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **_: Any) -> None:
        """The inner point for training, x for validation."""
        if training:
            net.optimizer_.train()
        else:
            net.optimizer_.eval()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """x for whatever comes between two epochs, and after the last."""
        net.optimizer_.eval()
