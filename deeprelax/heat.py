"""Heat, smoothing by the heat equation: section 6.3 of the paper."""

from __future__ import annotations

from typing import Any

import torch

from deeprelax.kernels import Stream, memory_order
from deeprelax.kernels.eager import take_x
from deeprelax.kernels.noise import MASK32, normal
from deeprelax.kernels.settings import HeatSettings, noise_scale
from deeprelax.parameter_sets import ParamsT
from deeprelax.relaxation import Relaxation


class Heat(Relaxation):
    r"""Descends on the loss convolved with a Gaussian of variance γ: the average gradient around x.

    Every call consumes one gradient g, taken at x + w, w ~ N(0, γI), which the parameters hold::

        s <- s + g

    and every L-th (``inner_steps``) also makes the outer update and starts the next cycle from it::

        x <- x - (lr / L) s;   s = 0;   gamma <- gamma (1 - scoping)

    The parameters hold x + w from the end of one step to the next; only the very first gradient of a run is taken at
    x itself, unless ``train()`` was called before it.

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.SGD``. Floating-point tensors (float64,
            float32, bfloat16, float16) of any shape; state is kept in float32 for the two narrow types.
        lr: η, a number or a tensor. Default 0.5, measured (bench/choose_defaults.py: digits, 20 effective epochs): it
            gives 1.7 % validation error, 0.1 gives 3.0 % and 1.0 gives 1.0 %; without batch norm 6.6 %, and the others
            21 % and 23 %. An outer update comes once in L gradients: expect a larger value than SGD's.
        inner_steps: L, gradients per outer update. Default 5 (Remark 15). A change counts from the next cycle on.
        gamma: γ₀, the variance of w. The group's value is the running γ, and may be written to. Default 1e-4, the
            smallest of the paper's range, measured likewise: 1.7 %, against 1.1 % at 1e-5 and 2.0 % at 1e-3.
        scoping: γ shrinks by this fraction at every outer update. Default 1e-3 (section 6.4).
        gamma_schedule: "scoping", or "adaptive": γ grows while the norm of γ∇u falls fast and shrinks otherwise
            (``deeprelax.schedules.adaptive_gamma``), judged by the last two outer updates, between 1e-3 and 10 (a γ
            that is smaller to begin with only grows); scoping is not used then. The norm is read to the host once a
            cycle; no momentum and no ``capturable``.
        momentum: of the outer update, as ``torch.optim.SGD``'s, acting on s/L. Default 0.
        nesterov: Nesterov's form of it.
        weight_decay: adds weight_decay · (x + w) to g.
        maximize: climb instead.
        capturable: keep lr, γ and the clock on the device, as tensors of one element, so that a CUDA graph of one
            ``step()`` replays the whole cycle under a scheduler, and ``torch.amp.GradScaler`` is served without
            waiting for the device. Same bits. Write to a group's tensors with ``fill_``; other hyper-parameters are
            those of the capture. All parameters on one device.
        flatten: move the parameters of each (group, device, dtype) into one flat buffer, each with its own storage.
        seed: of the noise; None takes ``torch.initial_seed()`` (under a process group, rank 0's). Two optimizers with
            one seed draw the same noise.
        backend: "auto" or a name of ``deeprelax.kernels.available()``. All give the same bits.

    Raises:
        ValueError: a hyper-parameter out of range, overlapping parameters.
        TypeError: a parameter that no kernel can serve.
        RuntimeError: the backend does not work here.
    """

    _kept = ("x", "s")

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.5,
        *,
        inner_steps: int = 5,
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        gamma_schedule: str = "scoping",
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
        flatten: bool = False,
        seed: int | None = None,
        backend: str = "auto",
    ) -> None:
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs momentum; it is 0")
        defaults = {
            "lr": lr,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "gamma_schedule": gamma_schedule,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, seed=seed, flatten=flatten, backend=backend, capturable=capturable)

    def _check(self, group: dict[str, Any]) -> None:
        """Nothing beyond what all share."""

    def _x_is_in_params(self, group: dict[str, Any]) -> bool:
        return bool(group["fresh"])

    def _settings(self, group: dict[str, Any]) -> HeatSettings:
        return HeatSettings(
            **self._shared_settings(group),
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def train(self) -> None:
        """Put the inner point x + w back; before the very first gradient, draw one."""
        super().train()
        if any(group["fresh"] for group in self.param_groups):
            self._agree_on_seed()
        for i, sets in enumerate(self._sets):
            group = self._numbers(i)
            if not group["fresh"]:
                continue
            scale, stream = noise_scale(group["gamma"]), Stream(group["seed"], group["step"] & MASK32)
            for params in sets:
                for p, index in zip(params.params, params.table.indices):
                    self._perturb(p, index, scale, stream)
            self._set_group(i, fresh=False)

    def _perturb(self, p: torch.Tensor, index: int, scale: float, stream: Stream) -> None:
        """x takes up the parameter, and the parameter becomes x + w."""
        x = self.state[p]["x"]
        x.copy_(take_x(x, p))
        n = normal(stream, index, 0, p.numel(), p.device).to(x.dtype)
        w = torch.empty_like(x)
        memory_order(w).copy_(memory_order(x) + n * scale)
        p.copy_(w)
