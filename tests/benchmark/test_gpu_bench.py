"""The scripts of ``make gpu`` on the CPU: small, with emulated CUDA kernels and made-up times."""

from __future__ import annotations

import csv
import gc
import io
import itertools
import os
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bandwidth
import common
import ncu
import pytest
import report
import steps
import torch
import tune
from common import KINDS, RULES, Rows, Rule

from deeprelax import kernels
from deeprelax.benchmark.shapes import Workload
from deeprelax.benchmark.timing import Sample, Step
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved
from deeprelax.kernels import Backend
from deeprelax.kernels.reference import Eager

ROOT = Path(__file__).parents[2]
Run, Program = Callable[..., report.Results], Callable[[str, str], None]
pytestmark = pytest.mark.usefixtures("one_thread")


class Timer:
    """Every step takes 6 ms, an optimizer's in phase 1 twice and in phase 2 three times as long."""

    def timed(self, step: Step, samples: list[Sample]) -> Step:
        def call() -> None:
            seconds = 6e-3 * (1 + getattr(getattr(step, "__self__", None), "phase", 0))
            step()
            samples.append(Sample(seconds, 1e-5, seconds, 1, waited=True))

        return call


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Backend:
    """The CUDA kernels' code on CPU tensors is what "cuda" names, also for the scripts' programs."""
    module = pytest.importorskip("deeprelax._cuda")
    from deeprelax.kernels.cuda import Cuda

    backend, real = Cuda(module, emulated=True), kernels.get
    for place in ("deeprelax.kernels.get", "deeprelax.optim.bucket.get", "deeprelax.optim.device_clock.get"):
        monkeypatch.setattr(place, lambda name, device: backend if name == "cuda" else real(name, device))
    small = {"GPU": torch.device("cpu"), "OUT": tmp_path, "ROUNDS": 2, "HOST_ROUNDS": 1, "ELEMENTS": 2**10}
    small |= {"TENSORS": 2, "LARGE": 2**7, "SIZES": (2**7,), "TOGETHER": 2**6, "timer": Timer}
    for script in (common, bandwidth, ncu, steps, tune):
        for name in small.keys() & vars(script):
            monkeypatch.setattr(script, name, small[name])
    return backend


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script of that name first on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def program(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / name).chmod(0o755)

    return program


@pytest.fixture
def run(emulated: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The rows that a script writes with these arguments, without an error."""

    def run(script: ModuleType, *arguments: str) -> report.Results:
        monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
        script.main()
        found = report.load(tmp_path)
        assert not report.only(found, "error"), found[-1]
        return report.only(found, script.__name__)

    return run


def test_every_rule_kind_dtype_and_size_is_measured_by_a_copy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Any = []
    inner = common.inner
    monkeypatch.setattr(bandwidth, "inner", lambda *a, **more: asked.append((a[0], *a[5:], *more)) or inner(*a, **more))
    found = run(bandwidth, "--backend", "cuda")
    for rule in RULES:
        of_rule = report.only(found, "bandwidth", rule=rule.name, backend="cuda")
        for dtype, kind in (("fp32", "first"), ("fp32", "inner"), ("bf16", "last"), ("bf16", "inner")):
            (row,) = report.only(of_rule, "bandwidth", dtype=dtype, kind=kind, elements=2**10)
            moved = bytes_moved(rule.optimizer, common.DTYPES[dtype], kind)
            times = 1 + KINDS.index(kind)  # as long as a copy
            assert row["bandwidth_ratio"]["median"] == pytest.approx(moved / 8 / times)
            assert row["gb_per_s"] == pytest.approx(moved * 2**10 / (times * 6e-3) / 1e9)
        for row in report.only(of_rule, "bandwidth", elements=2**7):
            assert row["bandwidth_ratio"]["median"] == pytest.approx(row["bytes"] / (8 * 2**7))
        assert len(of_rule) == 2 * len(KINDS) + 2
    plain, noise = RULES[:2]
    settings = {
        "plain": (plain,),
        "gradient unaligned": (plain, "g"),
        "weight unaligned": (plain, "w"),
        "noise": (noise,),
        "noise, weight unaligned": (noise, "w"),
        "weight decay": (plain, "weight_decay"),
        "capturable, GradScaler": (plain, "capturable"),
    }
    measured = [(r["setting"], r["dtype"]) for r in found if "setting" in r]
    assert measured == [(name, dtype) for dtype in common.DTYPES for name in settings]
    assert asked[-2 * len(settings) :] == 2 * [*settings.values()]


@pytest.mark.parametrize(("unaligned", "captured"), [("", {}), ("w", {}), ("g", {}), ("", {"capturable": True})])
@pytest.mark.parametrize("dtype", common.DTYPES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_timed_is_an_inner_call_of_the_reference(
    rule: Rule, dtype: str, unaligned: str, captured: dict[str, Any], emulated: Backend
) -> None:
    """Each on a separate tensor, aligned or not as asked; captured, which the reference cannot be, under a scaler."""
    found = []
    for backend in (emulated, "cpu" if captured else Eager()):
        torch.manual_seed(0)
        contestant: Any = common.inner(rule, backend, dtype, 100, 3, unaligned, **captured)
        contestant.step()
        optimizers = [call.__self__ for call in contestant.step.args[0]]
        assert all(opt.phase == 2 and (not captured or opt.grad_scale == 1024) for opt in optimizers)
        found += [opt.param_groups[0]["params"][0] for opt in optimizers]
    assert all(map(torch.equal, found[:3], found[3:]))
    for p in found:
        assert [t.storage_offset() for t in (p, p.grad)] == [unaligned == "w", unaligned == "g"]
    assert len({p.data_ptr() for p in found}) == 6


def test_whole_steps_are_compared_per_byte_with_adamw(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph's optimizer, whose memory it uses, lives as long as the graph."""
    captured: list[Any] = []
    alive: list[bool] = []

    def graph(step: Any) -> Step:
        gc.collect()
        optimizer = weakref.ref(step.__self__)
        captured.append((type(step.__self__).__name__, step.__self__._step_supports_amp_scaling))
        return lambda: alive.append(optimizer() is not None)

    monkeypatch.setattr(steps, "graph", graph)
    monkeypatch.setattr(steps, "named", lambda model: Workload(model, ((5, 3), (70,))))
    run(steps, "--plain")
    found = run(steps, "--backend", "cuda")
    for workload, backend in itertools.product(common.WORKLOADS, ("cuda", "cuda, graph")):
        rows = {row["name"]: row for row in report.only(found, "steps", workload=workload, backend=backend)}
        assert list(rows) == [*(rule.name for rule in RULES), *steps.PEERS]
        ours, moved = rows["EntropySGD"], (20 + 18 * 24 + 20) / 20
        of_adamw = moved / peer_bytes_moved(steps.ADAMW, torch.float32) * 20 / 5  # as many steps of each take as long
        assert ours["bandwidth_ratio"]["median"] == pytest.approx(of_adamw)
        assert (ours["us"]["median"], ours["host_us"], ours["waited"]) == pytest.approx((6e3 / 20, 10 / 20, 1))
    assert captured == [(rule.optimizer, True) for rule in RULES] * len(common.WORKLOADS)
    assert len(alive) > len(captured)
    assert all(alive)
    plain = [row["name"] for row in report.only(found, "steps", backend="plain torch")]
    assert plain == ["EntropySGD, noise, eager torch", "EntropySGD, noise, torch._foreach", steps.ADAMW]


def test_the_hosts_time_is_compared_with_sgds(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradients are new, they are before every call; then the device is idle."""
    done: list[str] = []
    captured: list[bool] = []
    measure = steps.throughput.measure

    def measured(made: dict[str, Any], *rest: Any) -> dict[str, list[float]]:
        captured.extend(step.__self__._step_supports_amp_scaling for step in made.values())
        return measure(made, *rest)

    monkeypatch.setattr(steps.throughput, "exchange", lambda *_: partial(done.append, "new"))
    monkeypatch.setattr(common, "synchronize", partial(done.append, "idle"))
    monkeypatch.setattr(steps.throughput, "measure", measured)
    run(steps, "--backend", "cuda", "--host")
    found = report.only(report.load(tmp_path), "host", backend="cuda")
    names = [*(rule.name for rule in RULES), steps.SGD]
    expected = [(name, capturable, new) for capturable in (False, True) for new in (False, True) for name in names]
    assert [(r["name"], r["capturable"], r["new_gradients"]) for r in found] == expected
    assert captured == [capturable or name == steps.SGD for name, capturable, _ in expected]
    calls = 2 * len(names)
    assert done == 2 * [*calls * ["idle"], *calls * ["new", "idle"]]
    for row, sgd in ((row, found[k - k % len(names) + len(names) - 1]) for k, row in enumerate(found)):
        assert row["us"]["median"] > 1
        assert row["by_sgd"] == pytest.approx(row["us"]["median"] / sgd["us"]["median"])


@pytest.mark.parametrize("script", ["echo ==ERROR== ERR_NVGPUCTRPERM", "", None])
def test_a_machine_without_counters_has_not_failed(
    script: str | None,
    emulated: Backend,
    program: Callable[[str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None: there is no ncu."""
    monkeypatch.setattr(sys, "argv", ["ncu"])
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        program("ncu", script)
    ncu.main()
    found = report.load(tmp_path)
    assert ("ncu, cuda failed" in report.wrong(found)) == (script == "")
    assert ("not proven: ncu, cuda is not allowed" in report.not_proven(found)) == (script != "")


def test_a_failure_is_a_row_and_the_others_are_measured(
    emulated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(rule: Any, *rest: Any, bind: Any = emulated.bind) -> Any:
        if rule.name == "hj":
            return SimpleNamespace()  # fails when it is to run
        return bind(rule, *rest)

    monkeypatch.setattr(emulated, "bind", bind)
    rows = Rows(tmp_path, "made")
    steps.host(rows, "cuda")
    bandwidth.inner_calls(rows, emulated, "fp32", 2**7)
    whole = rows.path.read_text()
    rows.path.write_text(whole + '{"script": "made", "us": {"median": 1}')
    found = report.load(tmp_path)
    Rows(tmp_path, "made")  # the next script appends to whole lines
    assert rows.path.read_text() == whole
    others = {r.name for r in RULES} - {"HJ"}
    assert {r["rule"] for r in report.only(found, "made", elements=2**7)} == {"copy", *others}
    assert {r["name"] for r in report.only(found, "made", tensors=2)} == {steps.SGD, *others}
    errors = report.only(found, "error")
    assert len(errors) == 4 + 1
    assert all("SimpleNamespace" in error["said"] for error in errors)
    assert any("made, HJ [cuda]" in said for said in report.wrong(found))


def test_clocks_and_reasons_for_throttling_are_sampled_under_load(
    emulated: Backend, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMIT", "as told")
    rows, ready = Rows(tmp_path, "made"), tmp_path / "nvidia-smi.ready"
    lines = r"8, 1, 4, 4, 0x0\n1, 1, 7, 6, 0x4\n1, 2"
    program("nvidia-smi", f"trap '' TERM; touch {ready}; printf '{lines}'")
    with rows.loaded():
        while not ready.exists():
            time.sleep(0.01)
    about, row, *_ = report.load(tmp_path)
    assert about["commit"] == "as told"
    assert (row["clocks.sm"]["median"], row["power.draw"]["high"], row["reasons"]) == (4.5, 6.25, ["0x0", "0x4"])


def test_the_fastest_constants_are_chosen_where_they_gain_more_than_noise(
    run: Run, emulated: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "cuda_backends", lambda folder: {"other": emulated})
    tried = [(row["variant"], row["dtype"]) for row in run(tune, "--backend", "cuda")]
    assert tried == [(v, d) for d in common.DTYPES for _ in RULES for v in ("copy", "as built", "other")]
    backends = {"present": emulated, "other": emulated, "broken": SimpleNamespace(bind=None)}
    for bandwidth_ratio, best in ((0.902, "present"), (0.91, "other")):
        reached = {"copy": 1.0, "present": 0.9, "other": bandwidth_ratio}
        figures = {name: {"bandwidth_ratio": {"median": value}} for name, value in reached.items()}
        monkeypatch.setattr(tune, "compare", lambda contestants, *_, made=figures: {n: made[n] for n in contestants})
        assert tune.fastest(Rows(tmp_path, "tune"), backends, RULES[2], "bf16") == best
    assert len(report.only(report.load(tmp_path), "error")) == 2
    headers = "".join(path.read_text() for path in (ROOT / "csrc").glob("*.h"))
    for flags in tune.VARIANTS.values():
        assert all(f"#ifndef {flag[2:].split('=')[0]}\n" in headers for flag in flags.split())


def test_a_variant_that_nvcc_refuses_says_what_it_said(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    program("nvcc", 'echo "no such option: $NVCC_APPEND_FLAGS" >&2; exit 1')
    with pytest.raises(RuntimeError, match=r"-DBAD: [\s\S]*no such option: -DBAD"):
        tune.cuda_backend(tmp_path / "variant", "-DBAD")


@pytest.mark.parametrize("backend", common.BACKENDS)
def test_ncu_is_read_launch_by_launch(
    backend: str, run: Run, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(rule: Rule) -> str:
        if backend == "cuda":
            return "void deeprelax::cuda::update<float>"
        shown = pytest.importorskip("deeprelax.kernels.triton.kernels").kernel_name
        return str(shown(SimpleNamespace(constants={"RULE": rule.kernel.name, "TICKED": False})))

    text = io.StringIO()
    lines = csv.writer(text, quoting=csv.QUOTE_ALL)
    lines.writerows([["ID", "Kernel Name", *ncu.METRICS.values()], ["", "", *["%"] * len(ncu.METRICS)]])
    for rule, _ in ncu.WORK:
        lines.writerow(["0", kernel(rule), *["1,234.5"] * len(ncu.METRICS)])
        lines.writerow(["1", "elementwise", *["1"] * len(ncu.METRICS)])
    program("ncu", f"cat <<'END'\n==PROF== Connected\n{text.getvalue()}END\n")
    about, metrics = {"script": "ncu", "backend": backend}, dict.fromkeys(ncu.METRICS, 1234.5)
    expected = [{**about, "rule": rule.name, "dtype": dtype, **metrics} for rule, dtype in ncu.WORK]
    assert run(ncu, "--backend", backend) == expected
    started: list[bool] = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: started.append(True))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: None)
    run(ncu, "--calls", "--backend", "cuda")
    assert len(started) == len(ncu.WORK)
