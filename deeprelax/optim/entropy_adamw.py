"""EntropyAdamW: AdamW inside the two loops of Entropy-SGD."""

from __future__ import annotations

from typing import Any

import torch

from deeprelax.kernels import Backend
from deeprelax.kernels.scalars import ENTROPY_ADAMW
from deeprelax.optim.hyperparameters import BETAS, NOT_NEGATIVE, UNIT, Range
from deeprelax.optim.relaxation import ParamsT, Relaxation


class EntropyAdamW(Relaxation):
    r"""AdamW with an outer step every ``inner_steps`` gradients: Entropy-SGD's two loops.

    Every call consumes one gradient g, taken at the inner point y that the parameters hold:

        d = g + (y - x) / gamma
        m <- beta1 m + (1 - beta1) d;   v <- beta2 v + (1 - beta2) d²
        y <- (1 - lr weight_decay) y - lr m^ / (sqrt(v^) + eps) + sqrt(lr temperature) n,   n ~ N(0, I)
        z <- alpha z + (1 - alpha) y

    where m^ and v^ are m and v with AdamW's bias correction, and every L-th (``inner_steps``) also makes the outer
    update, with momentum, and starts the next cycle from it; m and v continue:

        b <- momentum b + (x - z);   x <- x - outer_lr (x - z + momentum b);   y = z = x

    The defaults are γ = ∞ (no pull toward x), α = 0 (z is the last y) and no noise: this is what Kallusky et al. 2025
    (arXiv 2510.15830) call SNOO, DiLoCo's outer Nesterov step on one worker. Without momentum it is Lookahead; with
    ``outer_lr=1`` as well, AdamW. With a finite γ, α > 0 and noise it is the Entropy-Adam of Chaudhari et al. 2017
    (arXiv 1611.01838). AdamW preconditions the inner chain and not its noise, so it samples no known density exactly,
    whatever the temperature.

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.AdamW``. Floating-point tensors (float64,
            float32, bfloat16, float16) of any shape; state is kept in float32 for the two narrow types.
        lr: η′, what AdamW's ``lr`` is, and what schedulers change; a number or a tensor. Default 1e-3, as AdamW's.
        betas: β₁ and β₂. Default (0.9, 0.95), which is usual for transformers.
        eps: added to the root of v. Default 1e-8, as AdamW's.
        weight_decay: λ, decoupled as in AdamW. Default 1e-2, as AdamW's.
        inner_steps: L, gradients per outer update. Default 20. A change counts from the next cycle on.
        gamma: γ₀. Default ∞: no pull, and the inner calls do not read x. A finite value counts from the next cycle on.
        alpha: weight of the old average in z. Default 0: z is y, and is not kept.
        temperature: β⁻¹. Default 0: no noise.
        scoping: γ shrinks by this fraction at every outer update. Default 0.
        outer_lr: η. Default 0.7, as DiLoCo's.
        momentum: of the outer update. Default 0.67, SNOO's smallest. 0: none is kept.
        nesterov: Nesterov's form of it. Default True.
        maximize: maximize the objective instead of minimizing it.
        capturable: as for ``EntropySGD``; lr and outer_lr are tensors then.
        flatten: move the parameters of each (group, device, dtype) into one flat buffer, each with its own storage.
        stochastic_rounding: bfloat16 parameters are rounded stochastically and no float32 y is kept.
        seed: of the noise; None takes ``torch.initial_seed()`` (under a process group, rank 0's).
        backend: "auto", a name of ``deeprelax.kernels.available()``, or a backend. All give the same bits.

    The state of a parameter is x, exp_avg, exp_avg_sq, the momentum's buffer, z where alpha is not 0, and ``missed``,
    an int64 tensor of shape (): the number of calls that came without its gradient, which AdamW's bias correction
    leaves out.

    Raises:
        ValueError: a hyper-parameter out of range, overlapping parameters.
        TypeError: an unsupported parameter.
        RuntimeError: the backend does not work here.
    """

    rule = ENTROPY_ADAMW
    ranges = {  # noqa: RUF012
        "betas": BETAS,
        "eps": NOT_NEGATIVE,
        "gamma": Range(lambda v: type(v) in (int, float) and v > 1e-30, "a number > 1e-30, or inf"),
        "alpha": UNIT,
        "temperature": NOT_NEGATIVE,
        "outer_lr": Range(NOT_NEGATIVE.holds, "a finite number >= 0, or a tensor of one"),
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        inner_steps: int = 20,
        gamma: float = float("inf"),
        alpha: float = 0.0,
        temperature: float = 0.0,
        scoping: float = 0.0,
        outer_lr: float | torch.Tensor = 0.7,
        momentum: float = 0.67,
        nesterov: bool = True,
        maximize: bool = False,
        capturable: bool = False,
        flatten: bool = False,
        stochastic_rounding: bool = False,
        seed: int | None = None,
        backend: str | Backend = "auto",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "alpha": alpha,
            "temperature": temperature,
            "scoping": scoping,
            "outer_lr": outer_lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(
            params,
            defaults,
            seed=seed,
            flatten=flatten,
            backend=backend,
            capturable=capturable,
            stochastic_rounding=stochastic_rounding,
        )
