"""Parle: Entropy-SGD on each worker, tied to the workers' mean (Chaudhari et al. 2017, arXiv 1707.00424)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deeprelax.kernels import Backend
from deeprelax.kernels.scalars import ENTROPY_SGD
from deeprelax.optim.compiled import outside_graphs
from deeprelax.optim.elastic_sgd import exchange_of, is_captured, join, ready_buckets, shared_by_all
from deeprelax.optim.entropy_sgd import LANGEVIN, warn_of_coupling, warn_of_outer_step
from deeprelax.optim.hyperparameters import UNIT, Range, check_nesterov
from deeprelax.optim.relaxation import ParamsT, Relaxation
from deeprelax.optim.replicas import Exchange, replicas_of

ABOVE_0 = Range(lambda v: type(v) in (int, float) and v > 0, "a number > 0, or inf")


class Parle(Relaxation):
    r"""Workers that each run Entropy-SGD, and are tied to their mean x̄ at every outer update:

        y <- y - inner_lr (g + (y - xᵃ) / gamma) + sqrt(inner_lr temperature) n;   z <- alpha z + (1 - alpha) y
        xᵃ <- xᵃ - (lr / gamma) (xᵃ - z) - (lr / rho) (xᵃ - x̄);   y = z = xᵃ
        gamma <- max(gamma_min, gamma (1 - scoping));   rho <- max(rho_min, rho (1 - scoping))

    where xᵃ and x̄ are those of the cycle's beginning: with ``overlap`` the exchange runs while the cycle is computed,
    with bit-identical results. With one worker, or rho = inf, so are those of ``EntropySGD``, except for ``gamma_min``.

    Every worker draws its own batches, and gradients must not be averaged over the workers. All workers must make their
    steps, ``eval()``, ``train()`` and ``finish()`` together. ``eval()`` puts x̄ into the parameters.

    Args:
        params: parameters, named parameters or groups, as for ``torch.optim.SGD``; on one device.
        lr: η. Default 0.1: once rho is ``rho_min`` = 0.1, lr / rho is 1, which puts xᵃ at x̄.
        inner_lr: η′. Default 0.1, Parle's.
        inner_steps: L. Default 25, Parle's.
        gamma, gamma_min: γ₀ and the value at which scoping ends. Defaults 100 and 1, Parle's.
        rho, rho_min: ρ₀ of the tie to the mean, and the value at which scoping ends. Defaults 1 and 0.1, Parle's.
            inf: no tie.
        alpha: weight of the old average in z. Default 0, Parle's: z is the last iterate.
        temperature: β⁻¹. Default 0, Parle's.
        scoping: γ and ρ shrink by this fraction at every outer update. Default 1e-3 (section 6.4); Parle's is one over
            twice the number of batches in an epoch.
        absorb_gamma: x <- x - lr (x - z) - (lr / rho) (x - x̄). Default True: with Parle's γ, lr/γ would hardly move x.
        coupling, momentum, inner_momentum, carry_inner_momentum, nesterov, weight_decay, maximize, flatten,
            stochastic_rounding, seed, backend: as for ``EntropySGD``; ``momentum`` acts on x - z.
        capturable, replicas, deterministic: as for ``ElasticSGD``.
        overlap: exchange while the next cycle is computed; the results are bit-identical.

    Raises:
        ValueError: a hyper-parameter out of range; several processes and no process group; at the first step, workers
            that differ, with what differs.
        TypeError: an unsupported parameter or ``replicas``.
        RuntimeError: at an outer step, on every worker: one has stopped, has finished, or is at another step.
    """

    rule = ENTROPY_SGD
    ranges = {**LANGEVIN, "alpha": UNIT, "gamma_min": ABOVE_0, "rho": ABOVE_0, "rho_min": ABOVE_0}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 25,
        gamma: float = 100.0,
        gamma_min: float = 1.0,
        rho: float = 1.0,
        rho_min: float = 0.1,
        alpha: float = 0.0,
        temperature: float = 0.0,
        scoping: float = 1e-3,
        coupling: str = "explicit",
        absorb_gamma: bool = True,
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
        replicas: Any = None,
        deterministic: bool = False,
        overlap: bool = False,
    ) -> None:
        check_nesterov(nesterov, momentum=momentum, inner_momentum=inner_momentum)
        defaults = {
            **{"lr": lr, "inner_lr": inner_lr, "inner_steps": inner_steps, "gamma": gamma, "gamma_min": gamma_min},
            **{"rho": rho, "rho_min": rho_min, "alpha": alpha, "temperature": temperature, "scoping": scoping},
            **{"coupling": coupling, "absorb_gamma": absorb_gamma, "momentum": momentum, "nesterov": nesterov},
            **{"inner_momentum": inner_momentum, "carry_inner_momentum": carry_inner_momentum},
            **{"weight_decay": weight_decay, "maximize": maximize},
        }
        super().__init__(
            params,
            defaults,
            seed=seed,
            flatten=flatten,
            backend=backend,
            capturable=capturable,
            stochastic_rounding=stochastic_rounding,
            exchange=Exchange(replicas_of(replicas, deterministic), overlap),
        )

    def _notice(self, group: Mapping[str, Any]) -> None:
        warn_of_coupling(self, group)

    def _notice_gamma(self, group: Mapping[str, Any], gamma: float, next_gamma: float) -> None:
        warn_of_outer_step(self, group, gamma, max(next_gamma, group["gamma_min"]))

    @property
    def _tied(self) -> bool:
        return not exchange_of(self).alone and any(group["rho"] < math.inf for group in self.param_groups)

    def _step(self) -> None:
        exchange = exchange_of(self)
        if not exchange.joined:
            join(self, exchange)
        captured = is_captured(self)
        if not captured and self._tied and not exchange.pending and self.phase == 0:
            self._send()
        super()._step()
        if not captured and self.outer_step_happened:
            self._end_cycle()

    @outside_graphs
    def exchange(self) -> None:
        """After each L-th replay of a captured step: tie this worker to the mean, and send its x."""
        self._end_cycle()
        if self._tied:
            self._send()

    def _send(self, finishing: bool = False) -> None:
        """Send x at the beginning of a cycle."""
        buckets = [bucket for _, bucket in ready_buckets(self)]
        for bucket in buckets:
            bucket.refresh_x()
        starts = [bucket.buffers["x"].clone() for bucket in buckets]
        exchange_of(self).begin(starts, finishing=finishing)

    @torch.no_grad()
    def _end_cycle(self) -> None:
        """Apply the tie to the mean, and update γ and ρ."""
        exchange = exchange_of(self)
        if exchange.pending:
            for (plan, bucket), start, mean in zip(ready_buckets(self), exchange.sent, exchange.end() or ()):
                group = plan.group
                if group["rho"] == math.inf:
                    continue
                if not bucket.is_wide:
                    bucket.refresh_x()  # of such weights the last call leaves x in the parameters alone
                if exchange.joining:
                    bucket.buffers["x"].copy_(mean)
                else:
                    bucket.buffers["x"] -= (start - mean) * (float(group["lr"]) / group["rho"])
                bucket.put_x()
                bucket.forget_versions()
        for plan in self._shared.plans:
            now = plan.clock.numbers()
            rho = max(now["rho"] * (1 - now["scoping"]), now["rho_min"])
            plan.clock.set(gamma=max(now["gamma"], now["gamma_min"]), rho=rho)

    @outside_graphs
    @torch.no_grad()
    def finish(self) -> bool:
        """End the running cycle early, as ``EntropySGD.finish``. Every worker must call it.

        Returns:
            Whether there was anything to finish.

        Raises:
            RuntimeError: in eval mode; the other workers have more gradients.
        """
        finished = super().finish()
        if finished:
            self._end_cycle()
        if self._tied:
            self._send(finishing=True)
            exchange_of(self).end()
        return finished

    # Evaluation is at the mean.

    def _show_x(self) -> None:
        if exchange_of(self).alone:
            super()._show_x()
            return
        buckets = ready_buckets(self)
        for plan, bucket in buckets:
            if plan.group["fresh"] or plan.group["phase"] == 0:
                bucket.refresh_x()
            bucket.show_x(self.state, bucket.foreign_writes())
        exchange = Exchange(exchange_of(self).replicas)  # that of the cycle may be pending
        exchange.begin([bucket.buffers["x"].clone() for _, bucket in buckets], aside=True)
        for (_, bucket), mean in zip(buckets, exchange.end() or ()):
            for t in range(len(bucket.params)):
                bucket.put(t, bucket.part(mean, t))
            bucket.note_versions()

    @outside_graphs
    def state_dict(self) -> dict[str, Any]:
        """This worker's state, as ``EntropySGD.state_dict``. In eval mode the mean's, from which any number of workers
        resumes, each at the mean."""
        saved, exchange = super().state_dict(), exchange_of(self)
        if not exchange.alone and not self.param_groups[0]["training"]:
            params = [p.detach() for group in self.param_groups for p in group["params"]]
            for k, entry in saved["state"].items():
                held = {name: params[k].to(t.dtype) for name, t in entry.items() if name in ("x", "y", "z")}
                entry.update({name: p.clone() for name, p in held.items()})
        return shared_by_all(saved, exchange)
