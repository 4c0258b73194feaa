"""``deeprelax bench`` on made-up times: what is timed, and what the README's promises are judged by."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deeprelax.benchmark import throughput
from deeprelax.benchmark.shapes import Workload

SECONDS = {
    "torch.optim.SGD(fused=True)": 2,
    "torch.optim.SGD(momentum, fused=True)": 3,
    "torch.optim.AdamW(fused=True)": 5,
    "EntropySGD": 7,
    "EntropySGD, noise": 11,
    "HJ": 13,
    "EntropyAdamW": 17,
    throughput.OUTER_PASS: 19,
    "C++ loop, streams of EntropySGD": 23,
    "C++ loop, streams of HJ and Heat": 29,
    "EntropySGD, noise, eager torch": 99,
}


def test_neither_the_first_call_nor_what_comes_before_one_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], [100.0, 1.0, 2.0]
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def step() -> None:
        now[0] += calls.pop(0)

    def before() -> None:
        now[0] += 50.0

    assert throughput.measure({"a": step}, 2, {"a": before}) == {"a": [1.0, 2.0]}


@pytest.mark.parametrize(("instructions", "large", "resnet"), [("avx512", 1.0, 0.95), ("avx2", 1.1, 1.1)])
def test_every_promise_is_judged_by_the_ratio_that_it_names(
    instructions: str, large: float, resnet: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "instruction_sets", lambda: (instructions, []))
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {"one": ((2**20,),), "many": ((2**19,),) * 2, "30": ((16,),) * 30}
    found = {
        t.pop("promise"): tuple(t.values())
        for name in shapes
        for t in throughput.targets(Workload(name, shapes[name]), {k: [float(s)] for k, s in SECONDS.items()})
    }
    loop, host = "bandwidth relative to a plain C++ loop", "host time of step() relative to fused SGD, 30"
    assert found == {
        "EntropySGD with noise: time relative to fused AdamW, one": (11 / 5, large, False, False),
        "HJ: time relative to fused SGD with momentum, one": (13 / 3, 1.0, False, False),
        f"EntropySGD: {loop}": (23 / 7, 0.9, True, True),
        f"HJ: {loop}": (29 / 13, 0.9, True, True),
        f"{throughput.OUTER_PASS}: {loop}": (29 / 19, 0.9, True, True),
        "EntropySGD: time per byte relative to fused SGD": (7 / 2 * 12 / 24, 1.0, False, False),
        "EntropyAdamW: time relative to fused AdamW": (17 / 5, 1.0, False, False),
        "EntropySGD with noise: times faster than eager torch with randn_like": (99 / 11, 9.0, True, True),
        "EntropySGD with noise: time relative to fused AdamW, many": (11 / 5, resnet, False, False),
        "HJ: time relative to fused SGD with momentum, many": (13 / 3, 1.0, False, False),
        f"EntropySGD: {host}": (7 / 2, throughput.HOST[30], False, False),
        f"HJ: {host}": (13 / 2, throughput.HOST[30], False, False),
    }
