"""A profile says where the time went: each kind of call by itself, kernels and host apart, the bytes that move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from deeprelax.benchmark import profile_report, profiler
from deeprelax.benchmark.profiler import OPTIMIZERS, Plan, figures, profile, sample
from deeprelax.benchmark.shapes import typed
from deeprelax.benchmark.timing import Sample
from deeprelax.benchmark.trace import kernels_in, kernels_launched, write_trace

SMALL = typed("64x3,128,64")


@pytest.fixture(params=OPTIMIZERS)
def name(request: pytest.FixtureRequest) -> str:
    """Each optimizer that is profiled."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "COPY_BYTES", {"cpu": 2**16, "cuda": 2**16})


# What is timed.


@pytest.mark.parametrize(
    ("length", "kinds"),
    [(1, {"only": 1}), (2, {"first": 1, "last": 1}), (5, {"first": 1, "inner": 3, "last": 1})],
)
def test_every_kind_of_call_counts_as_often_as_it_comes_in_a_cycle(length: int, kinds: dict[str, int]) -> None:
    plan = Plan(SMALL, "HJ", inner_steps=length)
    assert plan.kinds == kinds
    assert list(plan.kinds) == list(kinds)
    opt: Any = plan.make()
    for kind in (*kinds, *kinds):
        assert (opt.phase == 0) == (kind in ("first", "only"))
        opt.step()
        assert opt.outer_step_happened == (kind in ("last", "only"))


def test_the_default_cycle_is_the_optimizers() -> None:
    lengths = {"EntropySGD": 20, "HJ": 5, "Heat": 5, "EntropyAdamW": 20}
    assert {name: Plan(SMALL, name).length for name in OPTIMIZERS} == lengths


class PhaseTimer:
    """Samples say which phase the optimizer was in, and how many steps anybody had made before."""

    def __init__(self, opt: Any) -> None:
        self.opt, self.steps = opt, 0

    def timed(self, step: Any, samples: list[Sample]) -> Any:
        def call() -> None:
            samples.append(Sample(self.opt.phase, 0.0, self.steps, 0))
            self.steps += 1
            step()

        return call


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("others", [["copy"], ["a", "b", "c", "copy"]])
def test_every_round_times_each_kind_and_each_of_the_others_once(length: int, others: list[str]) -> None:
    plan = Plan(SMALL, "HJ", inner_steps=length)
    opt: Any = plan.make()
    kinds, rounds = list(plan.kinds), 7
    samples = sample(opt.step, kinds, dict.fromkeys(others, lambda: None), PhaseTimer(opt), rounds)
    assert list(samples) == [*kinds, *others]
    each = len(samples)
    for name, values in samples.items():
        assert [s.cost // each for s in values] == list(range(1, rounds + 1))  # round 0 warms up
        if name in kinds:
            assert {s.kernel for s in values} == {kinds.index(name)}


# What is made of them.


def shown(result: dict[str, Any]) -> str:
    """What is printed of a profile."""
    console = Console(width=120)
    with console.capture() as printed:
        profile_report.show(result, console)
    return printed.get()


def made_up(device: str) -> tuple[Plan, dict[str, list[Sample]]]:
    """Two rounds, the second twice as slow in everything; a copy moves 2^17 bytes."""
    plan = Plan(typed("1000"), "HJ", inner_steps=5, device=torch.device(device), rounds=2)

    def samples(kernel: float, host: float) -> list[Sample]:
        cost = kernel if device == "cuda" else kernel + host
        return [Sample(k * kernel, k * host, k * cost, 1, device == "cuda") for k in (1, 2)]

    costs = {"first": (2e-5, 1e-5), "inner": (1e-5, 1e-5), "last": (4e-5, 1e-5), "copy": (0.0, 4e-5)}
    if device == "cuda":
        costs["copy"] = (4e-5, 0.0)
    costs["torch.optim.AdamW(fused=True)"] = (5e-5, 0.0)
    return plan, {name: samples(*values) for name, values in costs.items()}


def test_averages_weight_kinds_by_frequency_and_bandwidth_is_of_a_round() -> None:
    plan, samples = made_up("cpu")
    found = figures(plan, samples, dict.fromkeys(plan.kinds, 1))
    average, inner = found["average"], found["calls"][1]
    assert average["kernel_us"] == pytest.approx(1.5 * (20 + 3 * 10 + 40) / 5)
    assert average["host_us"] == pytest.approx(1.5 * 10)
    assert average["cost_us"] == pytest.approx(average["kernel_us"] + average["host_us"])
    assert average["bytes_per_element"] == (20 + 3 * 20 + 16) / 5
    assert inner["bytes"] == 20 * 1000
    assert inner["gb_per_s"] == pytest.approx(20 * 1000 / 1.5e-5 / 1e9)
    copy_bandwidth = 2 * 2**16 / 4e-5
    assert inner["of_copy"] == pytest.approx(20 * 1000 / 1e-5 / copy_bandwidth)


@pytest.mark.parametrize(("device", "ours"), [("cpu", 18 + 10), ("cuda", 18)])
def test_a_peer_is_compared_with_the_average_step(device: str, ours: float) -> None:
    plan, samples = made_up(device)
    (peer,) = figures(plan, samples, dict.fromkeys(plan.kinds, 1))["peers"]
    assert peer["ours_by_this"] == pytest.approx(ours / 50)
    assert peer["bytes_per_element"] == 28
    assert (peer["host_us"] is None) == (device == "cpu")


def test_a_devices_profile_shows_host_time_and_marks_waiting(tmp_path: Path) -> None:
    plan, samples = made_up("cuda")
    about = profile(Plan(SMALL, "HJ", rounds=1), peers=False)
    result = {**about, "device": "cuda", **figures(plan, samples, dict.fromkeys(plan.kinds, 2))}
    assert "the device waited for the host" in shown(result)
    assert "together" not in shown(result)
    profile_report.draw(result, tmp_path / "device.png")
    assert (tmp_path / "device.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_that_a_profile_asks_for_is_what_it_takes(name: str, dtype: torch.dtype) -> None:
    plan = Plan(SMALL, name, dtype=dtype, options={"momentum": 0.9})
    opt = plan.make()
    for _ in plan.kinds:
        opt.step()
    params = opt.param_groups[0]["params"]
    ours = [t for p in params for t in (p, p.grad, *(t for n, t in opt.state[p].items() if n != "missed"))]
    assert plan.memory(peers=False) - 2**16 == sum(t.numel() * t.element_size() for t in ours)
    shared = plan.parameters()
    for build in profiler.PEERS.values():
        peer = build(shared)
        peer.step()
        ours += [t for p in shared for t in peer.state[p].values() if t is not None and t.numel() > 1]
    ours += [t for p in shared for t in (p, p.grad) if t is not None]
    assert plan.memory(peers=True) - 2**16 == sum(t.numel() * t.element_size() for t in ours)


def test_a_cpus_yardstick_moves_no_bytes_that_are_not_counted() -> None:
    """A copy between two buffers fetches the lines that it overwrites: kernels came out at 1.64 of it."""
    said, run = profiler.yardstick(torch.device("cpu"))
    source = run.__self__  # type: ignore[attr-defined]
    before = source.clone()
    assert before.nbytes == 2**16
    run()
    assert torch.equal(source, -before)
    assert "in place" in said
    assert before.abs().min() > 0


@pytest.mark.parametrize("of_copy", [0.9, 1.64])
def test_a_fraction_above_1_is_explained(of_copy: float) -> None:
    result = profile(Plan(SMALL, "HJ", rounds=1), peers=False)
    for row in result["calls"]:
        row["of_copy"] = of_copy
    assert ("caches still held some of it" in shown(result)) == (of_copy > 1)
    assert "a copy in place" in shown(result)


# The profiler.


def test_the_trace_has_a_range_for_every_call_and_backend_run(tmp_path: Path, name: str) -> None:
    plan = Plan(SMALL, name)
    opt = plan.make()
    write_trace(opt, list(plan.kinds), plan.device, tmp_path / "new" / "trace.json")
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    ranges = sorted((e for e in events if e["name"].startswith(f"{name}: ")), key=lambda e: float(e["ts"]))
    assert [e["name"] for e in ranges] == [f"{name}: {kind} call" for kind in ("first", "inner", "last")] * 2
    runs = sorted((e for e in events if e["name"] == "backend.run"), key=lambda e: float(e["ts"]))
    assert len(runs) == len(ranges)
    for outside, inside in zip(ranges, runs):
        assert outside["ts"] <= inside["ts"]
        assert inside["ts"] + inside["dur"] <= outside["ts"] + outside["dur"]


def test_only_the_kernels_of_a_trace_count_as_launches() -> None:
    kinds = ("kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "cpu_op", "gpu_user_annotation", "kernel")
    assert kernels_in({"traceEvents": [*({"cat": kind} for kind in kinds), {"ph": "M"}]}) == 2


def test_counting_kernels_takes_whole_cycles_and_finds_none_on_the_cpu() -> None:
    plan = Plan(SMALL, "Heat")
    opt = plan.make()
    assert kernels_launched(opt, list(plan.kinds), plan.device) == {"first": 0, "inner": 0, "last": 0}
    assert (opt.phase, opt.outer_step_happened) == (0, True)
