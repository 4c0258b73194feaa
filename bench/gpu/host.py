"""Host time of ``step()`` over that of ``torch.optim.SGD(fused=True)``: python bench/gpu/host.py --backend cuda

Gradients stay where they are, or lie elsewhere at each step, as after ``zero_grad(set_to_none=True)``. A step begins
with an idle device, and does not wait for it at the end.
"""

from __future__ import annotations

import torch
from common import GPU, OUT, RULES, Rows, arguments, spread, synchronize
from torch import Tensor

from deeprelax.benchmark import throughput
from deeprelax.benchmark.baselines import PEERS
from deeprelax.benchmark.shapes import parameters
from deeprelax.benchmark.timing import Step

TENSORS, ELEMENTS, ROUNDS = 300, 1024, 300
SGD = "torch.optim.SGD(fused=True)"


def before(params: list[Tensor], new: bool) -> Step:
    """What comes before a step: new gradients, and waiting for the device."""
    change = throughput.exchange(params, [torch.randn_like(p) for p in params]) if new else lambda: None

    def prepare() -> None:
        change()
        synchronize(params[0].device)

    return prepare


def measure(rows: Rows, backend: str) -> None:
    """All optimizers, capturable and not, and SGD, with the gradients of the step before and with new ones."""
    steps: dict[str, Step] = {}
    prepare: dict[str, Step] = {}
    rules = {rule.name: rule for rule in RULES}
    names = [(name, capturable, new) for name in rules for capturable in (False, True) for new in (False, True)]
    names += [(SGD, False, new) for new in (False, True)]
    for name, capturable, new in names:
        with rows.attempt(f"{name} [{backend}{', capturable' * capturable}]"):
            params = parameters([(ELEMENTS,)] * TENSORS, rows.device)
            opt = rules[name].make(params, backend, capturable=capturable) if name in rules else PEERS[SGD](params)
            opt.step()
            key = f"{name} {capturable} {new}"
            steps[key], prepare[key] = opt.step, before(params, new)
    times = throughput.measure(steps, ROUNDS, prepare)
    for name, capturable, new in names:
        if (key := f"{name} {capturable} {new}") in times:
            common = {"name": name, "backend": backend, "capturable": capturable, "new_gradients": new}
            by_sgd = throughput.ratio(times, key, f"{SGD} False {new}")
            rows.add(**common, tensors=TENSORS, us=spread([1e6 * t for t in times[key]]), by_sgd=by_sgd)


def main() -> None:
    given = arguments(str(__doc__))
    measure(Rows(OUT, "host", GPU), given.backend)


if __name__ == "__main__":
    main()
