"""Heat, smoothing by the heat equation: section 6.3 of the paper."""

from __future__ import annotations

import torch

from deeprelax.kernels import Backend, Draw
from deeprelax.kernels.noise import MASK32, normal
from deeprelax.kernels.scalars import HEAT, noise_scale
from deeprelax.optim.bucket import Bucket
from deeprelax.optim.compiled import outside_graphs
from deeprelax.optim.groups import ready
from deeprelax.optim.hyperparameters import check_nesterov
from deeprelax.optim.relaxation import ParamsT, Relaxation


class Heat(Relaxation):
    r"""Descends on the loss convolved with a Gaussian of variance γ: the average gradient around x.

    Every call consumes one gradient g, taken at x + w, w ~ N(0, γI), which the parameters hold:

        s <- s + g

    and every L-th (``inner_steps``) also makes the outer update and starts the next cycle from it:

        x <- x - (lr / L) s;   s = 0;   gamma <- gamma (1 - scoping)

    The parameters hold x + w from the end of one step to the next; only the very first gradient of a run is taken at
    x itself, unless ``train()`` was called before it.

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.SGD``. Floating-point tensors (float64,
            float32, bfloat16, float16) of any shape; state is kept in float32 for the two narrow types.
        lr: η, a number or a tensor. Default 0.5 (measured: docs/recipes.md). An outer update comes once in L gradients:
            expect a larger value than SGD's.
        inner_steps: L, gradients per outer update. Default 5 (Remark 15). A change counts from the next cycle on.
        gamma: γ₀, the variance of w. The group's value is the running γ; a value written to it counts from the next
            cycle on. Default 1e-4, the smallest of the paper's range (measured likewise).
        scoping: γ shrinks by this fraction at every outer update. Default 1e-3 (section 6.4).
        momentum: of the outer update, as ``torch.optim.SGD``'s, acting on s/L. Default 0.
        nesterov: Nesterov's form of it.
        weight_decay: adds weight_decay · (x + w) to g.
        maximize: maximize the objective instead of minimizing it.
        capturable: keep lr, γ and the clock on the device, as tensors of one element, so that a CUDA graph of one
            ``step()`` replays the whole cycle under a scheduler, and ``torch.amp.GradScaler`` works without
            a host-device synchronisation. Same bits. Write to a group's tensors with ``fill_``; other hyper-parameters
            are those of the capture. All parameters on one device.
        flatten: move the parameters of each (group, device, dtype) into one flat buffer, each with its own storage.
        seed: of the noise; None takes ``torch.initial_seed()`` (under a process group, rank 0's). Two optimizers with
            one seed draw the same noise.
        backend: "auto", a name of ``deeprelax.kernels.available()``, or a backend. All give the same bits.

    Raises:
        ValueError: a hyper-parameter out of range, overlapping parameters.
        TypeError: an unsupported parameter.
        RuntimeError: the backend does not work here.
    """

    rule = HEAT
    params_hold_x = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 0.5,
        *,
        inner_steps: int = 5,
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        capturable: bool = False,
        flatten: bool = False,
        seed: int | None = None,
        backend: str | Backend = "auto",
    ) -> None:
        check_nesterov(nesterov, momentum=momentum)
        defaults = {
            "lr": lr,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, seed=seed, flatten=flatten, backend=backend, capturable=capturable)

    @outside_graphs
    @torch.no_grad()
    def train(self, *modules: torch.nn.Module) -> None:
        """Put the inner point x + w back; before the very first gradient, draw one.

        With ``seed=None`` and a process group the ranks agree on a seed before they draw, so all of them must call it.

        Args:
            modules: as for ``eval()``.
        """
        super().train(*modules)
        fresh = [(plan, numbers) for plan in ready(self) if (numbers := plan.clock.numbers())["fresh"]]
        if fresh and self._shared.seed_pending:
            self._agree_on_seed()
        for plan, numbers in fresh:
            seed = plan.clock.numbers()["seed"]
            scale, draw = noise_scale(numbers["gamma"]), Draw(seed, numbers["step"] & MASK32)
            for bucket in plan.buckets:
                bucket.refresh_x()
                self._perturb(bucket, scale, draw)
                bucket.note_versions()
            plan.clock.set(fresh=False)

    def _perturb(self, bucket: Bucket, scale: float, draw: Draw) -> None:
        """The parameters become x + w."""
        table, w = bucket.table, bucket.buffers["x"].clone()
        for t, (index, start, stride) in enumerate(zip(table.indices, table.starts, table.strides)):
            n = normal(draw, index, start, table.runs(t), table.device, stride)
            table.state(t, w).add_(n.to(w.dtype) * scale)
            bucket.put(t, bucket.part(w, t))
