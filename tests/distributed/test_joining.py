"""A worker that joins others takes over their state at its first exchange and begins at the centre."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from simulation import OPTIONS, gradient, parameters
from torch import Tensor
from workers import Thread, threads

import deeprelax
from deeprelax.optim.elastic_sgd import ready_buckets

pytestmark = pytest.mark.usefixtures("one_thread")


class Joining:
    """Replicas of a worker that does not take part in its first mean, whose result is given."""

    rank, size = 2, 3

    def __init__(self, saved: dict[str, Any], mean: Tensor) -> None:
        self.saved, self.mean, self.joining, self.sent = saved, mean, False, torch.empty(0)

    def join(self, opt: Any) -> None:
        self.opt = opt

    def mean_(self, flat: Tensor) -> None:
        self.sent, self.joining = flat.clone(), self.sent.numel() == 0
        if self.joining:
            self.opt.load_state_dict(self.saved)
            flat.copy_(self.mean)


def first_exchange(kind: str, dtype: torch.dtype, evaluating: bool) -> tuple[dict[str, Any], Tensor, Any, Any]:
    """Of two workers' fifth exchange: worker 0's state in it and the mean, then its optimizer and parameters."""

    def work(worker: Thread) -> Any:
        params = [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters()]
        opt: Any = getattr(deeprelax, kind)(params, **OPTIONS[kind], replicas=worker)
        seen: list[tuple[dict[str, Any], Tensor]] = []
        real = worker.mean_

        def mean_(flat: Tensor) -> None:
            real(flat)
            seen.append((copy.deepcopy(opt.state_dict()), flat.clone()))

        for number in range(15):
            if number == 14:
                worker.mean_ = mean_  # type: ignore[method-assign]
            for k, p in enumerate(params):
                p.grad = gradient(p.detach().float(), worker.rank, number, k).to(dtype)
            opt.step()
        if evaluating:
            opt.eval()
        return *seen[-1], opt, params

    found: Any = threads(2, work)[0]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ElasticSGD", "Parle"])
def test_a_worker_that_joins_begins_at_the_centre(kind: str, dtype: torch.dtype) -> None:
    saved, mean, theirs, others = first_exchange(kind, dtype, evaluating=False)
    params = [torch.nn.Parameter(torch.zeros_like(p)) for p in others]
    replicas = Joining(saved, mean)
    opt: Any = getattr(deeprelax, kind)(params, **OPTIONS[kind], replicas=replicas)
    for number in range(6):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
        if number == 2:
            assert replicas.joining
            now = {name: value for name, value in opt.param_groups[0].items() if name != "params"}
            assert now == {name: value for name, value in theirs.param_groups[0].items() if name != "params"}
            ((_, bucket),) = ready_buckets(opt)
            for k, p in enumerate(params):
                x = opt.state_dict()["state"][k]["x"]
                if kind == "ElasticSGD":
                    assert torch.equal(x, theirs.state[others[k]]["x"])
                else:
                    assert torch.equal(x, bucket.part(mean, k))
                assert torch.equal(p.detach(), x.to(dtype))
    assert not replicas.joining
    assert replicas.sent[-2:].tolist() == [5, 25]  # the sixth exchange, as the others' next


def test_a_worker_that_joins_an_evaluation_is_told_so() -> None:
    saved, mean, _, others = first_exchange("Parle", torch.float32, evaluating=True)
    params = [torch.nn.Parameter(torch.zeros_like(p)) for p in others]
    opt = deeprelax.Parle(params, **OPTIONS["Parle"], replicas=Joining(saved, mean))
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    opt.step()
    with pytest.raises(RuntimeError, match="evaluating: start this one again"):
        opt.step()
