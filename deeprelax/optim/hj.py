"""HJ, the non-viscous Hamilton-Jacobi equation: section 6.2 of the paper."""

from __future__ import annotations

import torch

from deeprelax.kernels import Backend
from deeprelax.kernels.scalars import HJ as RULE
from deeprelax.optim.hyperparameters import BOOL, UNIT, check_nesterov
from deeprelax.optim.relaxation import ParamsT, Relaxation


class HJ(Relaxation):
    r"""Descends on the loss smoothed by the non-viscous Hamilton-Jacobi equation: an approximate proximal point step.

    Every call consumes one gradient g, taken at x - γp, which the parameters hold:

        p <- alpha p + (1 - alpha) g

    and every L-th (``inner_steps``) also makes the outer update and starts the next cycle from it:

        x <- x - lr p;   p = 0;   gamma <- gamma (1 - scoping)

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.SGD``. Floating-point tensors (float64,
            float32, bfloat16, float16) of any shape; state is kept in float32 for the two narrow types.
        lr: η, a number or a tensor. Default 1.0 (measured: docs/recipes.md). With α = 0.75 and L = 5, p is 0.76 of the
            gradient, and an outer update comes once in L gradients: expect a larger value than SGD's.
        inner_steps: L, gradients per outer update. Default 5 (Remark 15). A change counts from the next cycle on.
        gamma: γ₀. The group's value is the running γ; a value written to it counts from the next cycle on. The
            fixed point iteration behind p converges where γ|∇²f| < 1 (Remark 6). Default 1.0 (measured likewise).
        alpha: weight of the old p. Default 0.75 (section 6.4).
        scoping: γ shrinks by this fraction at every outer update. Default 1e-3 (section 6.4).
        warm_start: the first call of a cycle sets p <- g, undamped, as the authors' program starts; it counts among
            the L.
        momentum: of the outer update, as ``torch.optim.SGD``'s, acting on p. Default 0.
        nesterov: Nesterov's form of it.
        weight_decay: adds weight_decay · (x - γp) to g.
        maximize: maximize the objective instead of minimizing it.
        capturable: keep lr, γ and the clock on the device, as tensors of one element, so that a CUDA graph of one
            ``step()`` replays the whole cycle under a scheduler, and ``torch.amp.GradScaler`` works without
            a host-device synchronisation. Same bits. Write to a group's tensors with ``fill_``; other hyper-parameters
            are those of the capture. All parameters on one device.
        flatten: move the parameters of each (group, device, dtype) into one flat buffer, each with its own storage.
        backend: "auto", a name of ``deeprelax.kernels.available()``, or a backend. All give the same bits.

    Raises:
        ValueError: a hyper-parameter out of range, overlapping parameters.
        TypeError: an unsupported parameter.
        RuntimeError: the backend does not work here.
    """

    rule = RULE
    ranges = {"alpha": UNIT, "warm_start": BOOL}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1.0,
        *,
        inner_steps: int = 5,
        gamma: float = 1.0,
        alpha: float = 0.75,
        scoping: float = 1e-3,
        warm_start: bool = False,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
        flatten: bool = False,
        backend: str | Backend = "auto",
    ) -> None:
        check_nesterov(nesterov, momentum=momentum)
        defaults = {
            "lr": lr,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "alpha": alpha,
            "scoping": scoping,
            "warm_start": warm_start,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, seed=0, flatten=flatten, backend=backend, capturable=capturable)
