"""The optimizers under a name in timm's ``create_optimizer_v2``."""

from __future__ import annotations

from timm.optim._optim_factory import OptimInfo, default_registry

from deeprelax.optim.entropy_sgd import EntropySGD
from deeprelax.optim.heat import Heat
from deeprelax.optim.hj import HJ

NAMES = {"hj": HJ, "entropysgd": EntropySGD, "heat": Heat}


def register() -> None:
    """Make ``timm.optim.create_optimizer_v2(model, "hj")`` work, also "entropysgd" and "heat".

    timm's groups for weight decay and layer decay, its schedulers, ``NativeScaler`` and ``CheckpointSaver`` are used as
    with its own optimizers. Further hyper-parameters are keywords (``inner_steps=5``). timm's ``momentum``, 0.9 unless
    given, is meant for SGD and not passed on; set a group's ``momentum`` after construction.

    Averages (``ModelEmaV3``) and saved models should be of x: update and save inside ``with optimizer.at_x():``, the
    average when ``optimizer.outer_step_happened``.

    Calling it again changes nothing.
    """
    for name, optimizer in NAMES.items():
        description = f"{optimizer.__name__} of deeprelax: smooths the loss and descends on the smoothed loss"
        default_registry.register(OptimInfo(name, optimizer, description, has_eps=False, has_momentum=False))
