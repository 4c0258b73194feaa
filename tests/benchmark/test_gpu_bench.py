"""The scripts of ``make gpu`` on the CPU: small, with emulated CUDA kernels and made-up times."""

from __future__ import annotations

import csv
import io
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bandwidth
import common
import host
import ncu
import pytest
import report
import sanitize
import steps
import torch
import tune
from common import KINDS, RULES, Contestant, Rows, Rule

from deeprelax import kernels
from deeprelax.benchmark.shapes import Workload
from deeprelax.benchmark.timing import Sample, Step
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved
from deeprelax.kernels import Backend
from deeprelax.kernels.abi import DTYPES as NUMBERS
from deeprelax.kernels.reference import Eager
from deeprelax.optim.relaxation import Relaxation

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Timer:
    """Every step takes 6 ms, an optimizer's in phase 1 twice and in phase 2 three times as long."""

    def timed(self, step: Step, samples: list[Sample]) -> Step:
        def call() -> None:
            seconds = 6e-3 * (1 + getattr(getattr(step, "__self__", None), "phase", 0))
            step()
            samples.append(Sample(seconds, 1e-5, seconds, 1))

        return call


TIMER = Timer()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Backend:
    """The CUDA kernels' code on CPU tensors is what "cuda" names, also for the scripts' programs."""
    module = pytest.importorskip("deeprelax._cuda")
    from deeprelax.kernels.cuda import Cuda

    backend, real = Cuda(module, emulated=True), kernels.get
    for place in ("deeprelax.kernels.get", "deeprelax.optim.bucket.get", "deeprelax.optim.device_clock.get"):
        monkeypatch.setattr(place, lambda name, device: backend if name == "cuda" else real(name, device))
    monkeypatch.setattr(common, "timer_of", lambda *_: TIMER)
    for script in (bandwidth, host, ncu, sanitize, steps, tune):
        small = {"GPU": CPU, "OUT": tmp_path, "ROUNDS": 2, "ELEMENTS": 2**10, "TENSORS": 2, "LARGE": 2**7}
        for name in small.keys() & vars(script):
            monkeypatch.setattr(script, name, small[name])
    monkeypatch.setattr(bandwidth, "SIZES", (2**7,))
    return backend


@pytest.fixture
def run(emulated: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., report.Results]:
    """The rows that a script writes with these arguments, without an error."""

    def run(script: ModuleType, *arguments: str) -> report.Results:
        monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
        script.main()
        found = report.load(tmp_path)
        assert not report.only(found, "error"), found[-1]
        return report.only(found, script.__name__)

    return run


def test_every_rule_kind_dtype_and_size_is_measured_by_a_copy(run: Callable[..., report.Results]) -> None:
    found = run(bandwidth, "--backend", "cuda")
    for rule in RULES:
        of_rule = report.only(found, "bandwidth", rule=rule.name)
        for dtype, kind in (("fp32", "first"), ("fp32", "inner"), ("bf16", "last"), ("bf16", "inner")):
            (row,) = report.only(of_rule, "bandwidth", dtype=dtype, kind=kind, elements=2**10)
            moved = bytes_moved(rule.optimizer, common.DTYPES[dtype], kind)
            times = 1 + KINDS.index(kind)  # as long as a copy
            assert row["bandwidth_ratio"]["median"] == pytest.approx(moved / 8 / times)
            assert row["gb_per_s"] == pytest.approx(moved * 2**10 / (times * 6e-3) / 1e9)
        for row in report.only(of_rule, "bandwidth", elements=2**7):
            assert row["bandwidth_ratio"]["median"] == pytest.approx(row["bytes"] / (8 * 2**7))
        assert len(of_rule) == 2 * len(KINDS) + 2
    settings = [(r["setting"], r["dtype"]) for r in found if "setting" in r]
    unaligned = ("gradient unaligned", "weight unaligned", "noise", "noise, weight unaligned")
    names = ("plain", *unaligned, "weight decay", "capturable, GradScaler")
    assert settings == [(name, dtype) for dtype in ("fp32", "bf16") for name in names]


def optimizers(contestant: Contestant) -> list[Any]:
    """What makes the contestant's calls."""
    return [call.__self__ for call in contestant.step.args[0]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("unaligned", ["", "w", "g"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_timed_is_an_inner_call_of_the_reference(
    rule: Rule, dtype: torch.dtype, unaligned: str, emulated: Backend
) -> None:
    """Each on a separate tensor, aligned or not as asked."""
    found = []
    for backend in (emulated, Eager()):
        torch.manual_seed(0)
        contestant = common.inner(rule, backend, dtype, 100, 3, CPU, unaligned)
        contestant.step()
        assert [opt.phase for opt in optimizers(contestant)] == [2] * 3
        found += [opt.param_groups[0]["params"][0] for opt in optimizers(contestant)]
    assert all(map(torch.equal, found[:3], found[3:]))
    for p in found:
        assert [t.storage_offset() for t in (p, p.grad)] == [unaligned == "w", unaligned == "g"]
    assert len({p.data_ptr() for p in found}) == 6


def test_a_captured_call_is_an_inner_one_under_a_scaler(emulated: Backend) -> None:
    torch.manual_seed(0)
    captured = common.inner(RULES[0], emulated, torch.float32, 100, 1, CPU, capturable=True)
    captured.step()
    torch.manual_seed(0)
    p = common.parameter(100, torch.float32, CPU)
    p.grad /= 1024
    plain = RULES[0].make([p], Eager())
    plain.step()
    plain.step()
    (opt,) = optimizers(captured)
    assert opt.phase == plain.phase == 2
    assert torch.equal(opt.param_groups[0]["params"][0], p)


def test_no_call_finds_its_operands_in_a_cache() -> None:
    """Those of a step lie on different tensors, or are long."""
    for size in bandwidth.SIZES:
        assert common.apart(size, 5) == 5 or size >= common.LARGE
    order: list[int] = []
    common.in_turn([partial(order.append, k) for k in range(2)], 5)
    assert order == [0, 1, 0, 1, 0]


def test_whole_steps_are_compared_per_byte_with_adamw(
    run: Callable[..., report.Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "named", lambda model: Workload(model, ((5, 3), (70,))))
    run(steps, "--plain")
    found = run(steps, "--backend", "cuda")
    for workload, backend in itertools.product(common.WORKLOADS, ("cuda", "cuda, graph")):
        rows = {row["name"]: row for row in report.only(found, "steps", workload=workload, backend=backend)}
        assert list(rows) == [*(rule.name for rule in RULES), *steps.PEERS]
        ours, moved = rows["EntropySGD"], (20 + 18 * 24 + 20) / 20
        assert ours["time_ratio"] == pytest.approx(5 / 20)  # as many steps of each take as long
        of_adamw = moved / peer_bytes_moved(steps.ADAMW, torch.float32) * 4
        assert ours["bandwidth_ratio"]["median"] == pytest.approx(of_adamw)
    plain = [row["name"] for row in report.only(found, "steps", backend="plain torch")]
    assert plain == [*steps.plain(False), steps.ADAMW]


def test_the_hosts_time_is_compared_with_sgds(run: Callable[..., report.Results]) -> None:
    found = run(host, "--backend", "cuda")
    keys = {(r["name"], r["capturable"], r["new_gradients"]) for r in found}
    ours = {(rule.name, capturable, new) for rule in RULES for capturable in (False, True) for new in (False, True)}
    assert keys == ours | {(host.SGD, False, False), (host.SGD, False, True)}
    assert all(r["by_sgd"] == 1 for r in found if r["name"] == host.SGD)
    assert all(r["us"]["median"] > 1 for r in found)
    params = host.parameters([(3,)] * 2, CPU)
    before, prepare = [p.grad for p in params], host.before(params, new=True)
    for same in (False, True):
        prepare()
        assert all((p.grad is g) == same for p, g in zip(params, before))


def test_a_failure_is_a_row_and_the_others_are_measured(emulated: Backend, tmp_path: Path) -> None:
    real = emulated.bind

    def bind(rule: Any, *rest: Any) -> Any:
        if rule.name == "hj":
            raise RuntimeError("made up")
        return real(rule, *rest)

    broken: Any = SimpleNamespace(name="cuda", bind=bind, tick=emulated.tick)
    rows = Rows(tmp_path, "made", CPU)
    bandwidth.inner_calls(rows, broken, "fp32", 2**7, TIMER)
    whole = rows.path.read_text()
    rows.path.write_text(whole + '{"script": "made", "us": {"median": 1}')
    found = report.load(tmp_path)
    Rows(tmp_path, "made", CPU)  # the next script appends to whole lines
    assert rows.path.read_text() == whole
    assert {r["rule"] for r in report.only(found, "made")} == {"copy", *(r.name for r in RULES)} - {"HJ"}
    (error,) = report.only(found, "error")
    assert "made up" in error["said"]
    assert any("HJ [cuda]" in said for said in report.wrong(found))


def test_the_fastest_constants_are_chosen_where_they_gain_more_than_noise(
    run: Callable[..., report.Results], emulated: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "cuda_backends", lambda folder: {"other": emulated})
    tried = [(row["variant"], row["dtype"]) for row in run(tune, "--backend", "cuda")]
    assert tried == [(v, d) for d in common.DTYPES for _ in RULES for v in ("copy", tune.BUILT, "other")]
    backends = {"present": emulated, "other": emulated, "broken": SimpleNamespace(bind=None)}
    for bandwidth_ratio, best in ((0.902, "present"), (0.91, "other")):
        reached = {"copy": 1.0, "present": 0.9, "other": bandwidth_ratio}
        figures = {name: {"bandwidth_ratio": {"median": value}} for name, value in reached.items()}
        monkeypatch.setattr(tune, "compare", lambda contestants, *_, made=figures: {n: made[n] for n in contestants})
        assert tune.try_all(Rows(tmp_path, "tune", CPU), backends, RULES[2], "bf16", 2**7, TIMER) == best
    assert tune.line(RULES[2], "bf16", "Sizes(1024, 8, 4, 2)") == "    ('hj', 2, False): Sizes(1024, 8, 4, 2),"
    assert len(report.only(report.load(tmp_path), "error")) == 2
    headers = "".join(path.read_text() for path in (ROOT / "csrc").glob("*.h"))
    for flags in tune.VARIANTS.values():
        assert all(f"#ifndef {flag[2:].split('=')[0]}\n" in headers for flag in flags.split())


def test_a_variant_that_nvcc_refuses_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\necho "no such option: $NVCC_APPEND_FLAGS" >&2; exit 1\n')
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"-DBAD: [\s\S]*no such option: -DBAD"):
        tune.cuda_backend(tmp_path / "variant", "-DBAD")


def test_the_sanitizers_program_makes_whole_cycles_of_every_rule_and_dtype(
    run: Callable[..., report.Results], emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [*(emulated.module.chunk(number) for number in NUMBERS.values()), *(1024 * passes for passes in (1, 2))]
    assert all(sanitize.BLOCKS % block == 0 for block in blocks)
    monkeypatch.setattr(sanitize, "SIZES", (0, 1, 5, 64, 256, 259, 511))
    bound: set[tuple[str, torch.dtype]] = set()
    ended: Counter[tuple[str, torch.dtype, int]] = Counter()
    bind, to_its_end = emulated.bind, sanitize.run

    def noted(rule: Any, table: Any, *rest: Any, **more: Any) -> Any:
        bound.add((rule.name, table.dtype))
        return bind(rule, table, *rest, **more)

    def noting(opt: Any) -> None:
        to_its_end(opt)
        if isinstance(opt, Relaxation):
            ended[type(opt).__name__, opt.param_groups[0]["params"][0].dtype, opt.phase] += 1

    monkeypatch.setattr(emulated, "bind", noted)
    monkeypatch.setattr(sanitize, "run", noting)
    run(sanitize, "--backend", "cuda")
    expected: Counter[tuple[str, torch.dtype, int]] = Counter()
    for rule, dtype in itertools.product(sanitize.EVERY["cuda"], sanitize.DTYPES["cuda"]):
        rounded = dtype == torch.bfloat16 and rule.kernel.keeps_y
        expected[rule.optimizer, dtype, 0] += 4 * (1 + rounded)  # settings, and stochastic rounding
    expected.update((rule.optimizer, torch.float32, 2) for rule in RULES)  # captured: one of the steps overflows
    assert ended == expected
    assert bound == set(itertools.product(kernels.RULES, NUMBERS))


@pytest.mark.parametrize("backend", common.BACKENDS)
def test_ncu_is_read_launch_by_launch(
    backend: str, run: Callable[..., report.Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    program = tmp_path / "ncu"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n==PROF== Connected\n{text.getvalue()}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    metrics = dict.fromkeys(ncu.METRICS, 1234.5)
    about = {"script": "ncu", "backend": backend}
    expected = [{**about, "rule": rule.name, "dtype": dtype, **metrics} for rule, dtype in ncu.WORK]
    assert run(ncu, "--backend", backend) == expected
    started: list[bool] = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: started.append(True))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: None)
    run(ncu, "--calls", "--backend", "cuda")
    assert len(started) == len(ncu.WORK)
