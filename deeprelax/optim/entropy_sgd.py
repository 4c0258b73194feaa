"""Entropy-SGD: section 6.1 of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deeprelax.kernels import Backend
from deeprelax.kernels.scalars import ENTROPY_SGD
from deeprelax.optim.hyperparameters import BOOL, NOT_NEGATIVE, UNIT, Range, check_nesterov
from deeprelax.optim.relaxation import ParamsT, Relaxation

# Hyper-parameters of the Langevin steps.
LANGEVIN = {
    "inner_lr": NOT_NEGATIVE,
    "temperature": NOT_NEGATIVE,
    "gamma": Range(
        lambda v: type(v) in (int, float) and 1e-30 < v < float("inf"), "a number > 1e-30, because 1/gamma is a float32"
    ),
    "coupling": Range(lambda v: v in ("explicit", "implicit"), "'explicit' or 'implicit'"),
    "absorb_gamma": BOOL,
    "inner_momentum": NOT_NEGATIVE,
    "carry_inner_momentum": BOOL,
}


class EntropySGD(Relaxation):
    r"""Descends on local entropy, the loss smoothed by the viscous Hamilton-Jacobi equation.

    Every call consumes one gradient g, taken at the inner point y that the parameters hold:

        y <- y - inner_lr (g + (y - x) / gamma) + sqrt(inner_lr temperature) n,   n ~ N(0, I)
        z <- alpha z + (1 - alpha) y

    and every L-th (``inner_steps``) also makes the outer update and starts the next cycle from it:

        x <- x - (lr / gamma) (x - z);   y = z = x;   gamma <- gamma (1 - scoping)

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.SGD``. Floating-point tensors (float64,
            float32, bfloat16, float16) of any shape; state is kept in float32 for the two narrow types.
        lr: η, a number or a tensor. Default 10.0, which is γ₀: the first outer steps put x at z. Without
            ``absorb_gamma`` the outer step is lr/γ, and lr ≤ γ keeps x an average of x and z: set both, and lower lr
            with γ in a long run. On a quadratic of curvature λ the outer step is stable while lr λ / (1 + γ λ) < 2, for
            every λ while lr < 2 γ; with constant lr the paper's scoping leaves that after 700 outer updates, and a
            warning says so.
        inner_lr: η′. Default 0.1 (section 6.4).
        inner_steps: L, gradients per outer update. Default 20 (Remark 15). A change counts from the next cycle on.
        gamma: γ₀; a larger one smooths more. The group's value is the running γ; a value written to it counts from the
            next cycle on. Stability of the explicit coupling needs inner_lr / γ < 2. Default 10.0, the upper end of the
            paper's range (section 6.4; measured: docs/recipes.md and docs/comparison.md).
        alpha: weight of the old average in z. Default 0.75 (section 6.4).
        temperature: β⁻¹ of section 6.1. With the paper's dW (not √2 dW) in eq. 4 the chain samples
            exp(-2 (f + |x - y|²/2γ) / temperature): ρ₁^∞ of Lemma 3 exactly takes ``temperature=2``, and temperature
            T gives ∇u of viscosity δ = T/2, u = -δ log(G_{δγ} * e^{-f/δ}). Default 2e-8, the authors' program's
            (measured: docs/recipes.md).
        scoping: γ shrinks by this fraction at every outer update. Default 1e-3 (section 6.4).
        coupling: "explicit", as printed, or "implicit": y <- (y - η′g + (η′/γ) x + noise) / (1 + η′/γ), which is
            stable for every γ.
        absorb_gamma: x <- x - lr (x - z), as in the authors' program, instead of lr/γ.
        momentum: of the outer update, as ``torch.optim.SGD``'s, acting on (x - z)/γ. Default 0.
        inner_momentum: of the inner update, acting on g + weight decay + (y - x)/γ; the noise stays outside.
        carry_inner_momentum: keep the inner velocity across outer updates instead of starting again.
        nesterov: Nesterov's form of both momenta.
        weight_decay: adds weight_decay · y to g.
        maximize: maximize the objective instead of minimizing it.
        capturable: keep lr, inner_lr, γ and the clock on the device, as tensors of one element, so that a CUDA graph
            of one ``step()`` replays the whole cycle under a scheduler, and ``torch.amp.GradScaler`` works without
            a host-device synchronisation. Same bits. Write to a group's tensors with ``fill_``; other hyper-parameters
            are those of the capture. All parameters on one device. No warning says when inner_lr/γ or lr/γ
            reaches 2, because reading γ would synchronise: scoping takes log(γ₀/γ)/scoping outer updates from γ₀ to γ.
        flatten: move the parameters of each (group, device, dtype) into one flat buffer, each with its own storage.
        stochastic_rounding: bfloat16 parameters are rounded stochastically and no float32 y is kept.
        seed: of the noise; None takes ``torch.initial_seed()`` (under a process group, rank 0's). Two optimizers with
            one seed draw the same noise.
        backend: "auto", a name of ``deeprelax.kernels.available()``, or a backend. All give the same bits.

    Raises:
        ValueError: a hyper-parameter out of range, overlapping parameters.
        TypeError: an unsupported parameter.
        RuntimeError: the backend does not work here.
    """

    rule = ENTROPY_SGD
    ranges = {**LANGEVIN, "alpha": UNIT}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 10.0,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 20,
        gamma: float = 10.0,
        alpha: float = 0.75,
        temperature: float = 2e-8,
        scoping: float = 1e-3,
        coupling: str = "explicit",
        absorb_gamma: bool = False,
        momentum: float = 0.0,
        inner_momentum: float = 0.0,
        carry_inner_momentum: bool = False,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
        flatten: bool = False,
        stochastic_rounding: bool = False,
        seed: int | None = None,
        backend: str | Backend = "auto",
    ) -> None:
        check_nesterov(nesterov, momentum=momentum, inner_momentum=inner_momentum)
        defaults = {
            "lr": lr,
            "inner_lr": inner_lr,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "alpha": alpha,
            "temperature": temperature,
            "scoping": scoping,
            "coupling": coupling,
            "absorb_gamma": absorb_gamma,
            "momentum": momentum,
            "inner_momentum": inner_momentum,
            "carry_inner_momentum": carry_inner_momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
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

    def _notice(self, group: Mapping[str, Any]) -> None:
        warn_of_coupling(self, group)

    def _notice_gamma(self, group: Mapping[str, Any], gamma: float, next_gamma: float) -> None:
        warn_of_outer_step(self, group, gamma, next_gamma)


def warn_of_coupling(opt: Relaxation, group: Mapping[str, Any]) -> None:
    """Warn once if the explicit coupling is unstable."""
    if group["coupling"] == "explicit" and group["inner_lr"] >= 2 * group["gamma"]:
        opt._shared.warn_once(
            "coupling",
            f"inner_lr / gamma = {group['inner_lr'] / group['gamma']:.3g} (inner_lr {group['inner_lr']:.3g}, gamma "
            f"{group['gamma']:.3g}): the explicit coupling is unstable from 2 on; scoping gets there in a long "
            "run. Use coupling='implicit', a smaller inner_lr or a larger gamma",
        )


def warn_of_outer_step(opt: Relaxation, group: Mapping[str, Any], gamma: float, next_gamma: float) -> None:
    """Warn once if scoping has made the outer step too large."""
    lr = float(group["lr"])
    if not group["absorb_gamma"] and lr < 2 * gamma and lr >= 2 * next_gamma:
        opt._shared.warn_once(
            "outer step",
            f"gamma has come down to {next_gamma:.3g}, and lr / gamma to 2 (lr {lr:.3g}): from here on the outer "
            "step can overshoot where the loss is steep. Lower lr along with gamma (a scheduler), set "
            "absorb_gamma=True, or scoping=0",
        )
