"""``make gpu`` on the CPU: small, with emulated CUDA kernels and made-up times, and what the report says."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bandwidth
import common
import host
import ncu
import preflight
import pytest
import report
import sanitize
import steps
import torch
import tune
from common import KINDS, RULES, Contestant, Rows, Rule
from torch.optim.optimizer import register_optimizer_step_pre_hook

from deeprelax import kernels
from deeprelax.benchmark.shapes import Workload
from deeprelax.benchmark.timing import Sample, Step
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved
from deeprelax.kernels import Backend
from deeprelax.kernels.reference import Eager

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Timer:
    """By which every step takes 6 ms; an optimizer's in phase 1 two and in phase 2 three times as long."""

    def timed(self, step: Step, samples: list[Sample]) -> Step:
        def call() -> None:
            seconds = 6e-3 * (1 + getattr(getattr(step, "__self__", None), "phase", 0))
            step()
            samples.append(Sample(seconds, 1e-5, seconds, 1))

        return call


TIMER = Timer()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The CUDA kernels' code on CPU tensors, for optimizers that ask for "cuda" too."""
    module = pytest.importorskip("deeprelax._cuda")
    from deeprelax.kernels.cuda import Cuda

    backend, real = Cuda(module, emulated=True), kernels.get
    for place in ("deeprelax.optim.bucket.get", "deeprelax.optim.device_clock.get"):
        monkeypatch.setattr(place, lambda name, device: backend if name == "cuda" else real(name, device))
    for script in (bandwidth, steps, tune):
        monkeypatch.setattr(script, "ROUNDS", 2)
    return backend


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path, "made", CPU)


def written(rows: Rows) -> report.Results:
    found = report.load(rows.path.parent)
    assert not report.only(found, "error"), found[-1]
    return report.only(found, "made")


def test_every_rule_kind_dtype_and_size_is_measured_by_a_copy(
    emulated: Backend, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "ELEMENTS", 2**10)
    monkeypatch.setattr(bandwidth, "SIZES", (2**7,))
    bandwidth.measure(rows, emulated, TIMER)
    found = written(rows)
    for rule in RULES:
        for dtype, kind in (("fp32", "first"), ("fp32", "inner"), ("bf16", "last"), ("bf16", "inner")):
            (row,) = report.only(found, "made", rule=rule.name, dtype=dtype, kind=kind, elements=2**10)
            moved = bytes_moved(rule.optimizer, common.DTYPES[dtype], kind)
            times = 1 + KINDS.index(kind)  # as long as a copy
            assert row["bandwidth_ratio"]["median"] == pytest.approx(moved / 8 / times)
            assert row["gb_per_s"] == pytest.approx(moved * 2**10 / (times * 6e-3) / 1e9)
        for row in report.only(found, "made", rule=rule.name, elements=2**7):
            assert row["bandwidth_ratio"]["median"] == pytest.approx(row["bytes"] / (8 * 2**7))
        assert len(report.only(found, "made", rule=rule.name)) == 2 * 3 + 2
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
    """On tensors of their own, aligned or not as they are said to be."""
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


def test_whole_steps_are_compared_per_byte_with_adamw(emulated: Backend, rows: Rows) -> None:
    workload = Workload("resnet50, tiny", ((5, 3), (70,)))
    for what, capturable in (("cuda", False), ("cuda, graph", True)):
        builds = steps.ours("cuda", capturable) | steps.theirs(*steps.PEERS)
        steps.measure(rows, workload, what, builds, TIMER)
    steps.measure(rows, workload, "plain torch", steps.plain(False) | steps.theirs(steps.ADAMW), TIMER)
    found = written(rows)
    (row,) = report.only(found, "made", name="EntropySGD", backend="cuda, graph")
    assert row["time_ratio"] == pytest.approx(5 / 20)  # as many steps of each take as long
    moved = (20 + 18 * 24 + 20) / 20
    assert row["bandwidth_ratio"]["median"] == pytest.approx(moved / peer_bytes_moved(steps.ADAMW, torch.float32) * 4)
    assert {r["name"] for r in found if r["backend"] == "cuda"} == {*(r.name for r in RULES), *steps.PEERS}
    assert len(report.only(found, "made", backend="plain torch")) == 3


def test_the_hosts_time_is_compared_with_sgds(emulated: Backend, rows: Rows) -> None:
    host.measure(rows, "cuda", rounds=2, tensors=2)
    found = written(rows)
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


def test_what_fails_is_a_row_and_the_others_are_measured(
    emulated: Backend, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = emulated.bind

    def bind(rule: Any, *rest: Any) -> Any:
        if rule.name == "hj":
            raise RuntimeError("made up")
        return real(rule, *rest)

    broken: Any = SimpleNamespace(name="cuda", bind=bind, tick=emulated.tick)
    bandwidth.inner_calls(rows, broken, "fp32", 2**7, TIMER)
    with rows.path.open("a") as file:
        file.write('{"script": "made", "rule": "cut')
    found = report.load(rows.path.parent)
    assert {r["rule"] for r in report.only(found, "made")} == {"copy", *(r.name for r in RULES)} - {"HJ"}
    (error,) = report.only(found, "error")
    assert "made up" in error["said"]
    assert any("HJ [cuda]" in said for said in report.wrong(found))


def test_the_fastest_constants_are_chosen_where_they_gain_more_than_noise(
    emulated: Backend, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = {"present": emulated, "other": emulated, "broken": SimpleNamespace(bind=None)}
    for bandwidth_ratio, best in ((0.902, "present"), (0.91, "other")):
        reached = {"copy": 1.0, "present": 0.9, "other": bandwidth_ratio}
        figures = {name: {"bandwidth_ratio": {"median": value}} for name, value in reached.items()}
        monkeypatch.setattr(tune, "compare", lambda contestants, *_, made=figures: {n: made[n] for n in contestants})
        assert tune.try_all(rows, backends, RULES[2], "bf16", 2**7, TIMER) == best
    assert tune.line(RULES[2], "bf16", "Sizes(1024, 8, 4, 2)") == "    ('hj', 2, False): Sizes(1024, 8, 4, 2),"
    assert len(report.only(report.load(rows.path.parent), "error")) == 2
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


def test_the_sanitizers_program_makes_whole_cycles_of_every_rule_and_dtype(emulated: Backend) -> None:
    calls: Counter[tuple[str, torch.dtype, int, int]] = Counter()

    def note(opt: Any, *_: Any) -> None:
        group = opt.param_groups[0]
        calls[type(opt).__name__, group["params"][0].dtype, group["inner_steps"], opt.phase] += 1

    hook = register_optimizer_step_pre_hook(note)
    sanitize.everything(emulated, 256, CPU)
    sanitize.captured_steps(emulated, CPU)
    hook.remove()
    expected: Counter[tuple[str, torch.dtype, int, int]] = Counter()
    for rule in RULES:
        for dtype in sanitize.DTYPES["cuda"]:
            runs = 4 * (1 + (dtype == torch.bfloat16 and rule.kernel.keeps_y))  # settings, and stochastic rounding
            expected.update({(rule.optimizer, dtype, 3, phase): 2 * runs for phase in range(3)})
        expected.update({(rule.optimizer, torch.float32, 2, phase): 2 for phase in range(2)})  # one of them overflows
    assert calls == expected


def test_what_the_sanitizer_printed_is_judged() -> None:
    passed, failed = "========= ERROR SUMMARY: 0 errors\n", "========= ERROR SUMMARY: 3 errors\n"
    assert report.sanitized(passed + "exit status 0\n") == ("passed", "ERROR SUMMARY: 0 errors; exit status 0")
    assert report.sanitized(failed + "exit status 86\n") == ("failed", "ERROR SUMMARY: 3 errors; exit status 86")
    assert report.sanitized("a Traceback\nNameError\nexit status 1\n")[0] == "failed"
    ends = ("exit status 124", "not found\nexit status 127", "Device not supported\nexit status 1", passed, "")
    assert all(report.sanitized(printed)[0] == "not proven" for printed in ends)


def test_ncus_table_is_read_launch_by_launch() -> None:
    names = ["ID", "Kernel Name", *ncu.METRICS.values()]
    text = io.StringIO()
    lines = csv.writer(text, quoting=csv.QUOTE_ALL)
    lines.writerows([names, ["", "", *["%"] * len(ncu.METRICS)]])
    lines.writerow(["0", "void deeprelax::cuda::update<float>", *["1,234.5"] * len(ncu.METRICS)])
    lines.writerow(["1", "elementwise", *["1"] * len(ncu.METRICS)])
    assert list(ncu.parsed("==PROF== Connected\n" + text.getvalue())) == [dict.fromkeys(ncu.METRICS, 1234.5)]


JUNIT = '<testsuite><testcase classname="a" name="good"/><testcase classname="a" name="b">{}</testcase></testsuite>'


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        ("", 0, "2 passed"),
        ('<skipped message="one GPU"/>', 0, "1 passed, 1 skipped"),
        ('<skipped message="GPU memory: 3"/>', 3, "not proven: 1 GPU"),
        ('<failure message="x"/>', 1, "a::b failed"),
        ('<skipped message="because"/>', 1, "nothing allows: because"),
    ],
)
def test_the_report_says_what_was_not_proved(
    outcome: str, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pytest.xml").write_text(JUNIT.format(outcome))
    about = {"script": "about", "gpu": "a GPU", "why_not": {"cuda": ""}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(about) + "\n")
    for name in report.SANITIZED:
        (tmp_path / f"{name}.txt").write_text("exit status 0\n")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    assert report.main() == status
    assert said in (tmp_path / "gpu.md").read_text()


def test_targets_are_judged_by_whole_cycles_and_by_the_slowest(tmp_path: Path) -> None:
    hj: dict[str, Any] = {"script": "bandwidth", "backend": "cuda", "rule": "HJ", "dtype": "fp32", "bytes": 20}
    found: report.Results = [
        {**hj, "kind": kind, "elements": 128, "bandwidth_ratio": {"median": of}}
        for kind, of in (("inner", 1.0), ("first", 0.5), ("last", 0.5))
    ]
    found += [{**hj, "rule": rule, "elements": n, "gb_per_s": n / 9} for n in (64, 128) for rule in ("HJ", "copy")]
    timed = {"script": "host", "backend": "cuda", "capturable": False, "new_gradients": True}
    found += [{**timed, "name": name, "by_sgd": by} for name, by in (("HJ", 0.9), ("Heat", 1.1), ("torch.optim", 9))]
    judged = {t["promise"]: t for t in report.judge(found)}
    assert judged["HJ, fp32 [cuda]: bandwidth relative to a copy"]["measured"] == pytest.approx(5 / 7)
    slowest = judged["host time of step(), 300 tensors, new gradients [cuda]: relative to SGD, slowest"]
    assert (slowest["measured"], slowest["met"]) == (1.1, False)
    assert judged["Heat, bf16 [triton]: bandwidth relative to a copy"]["measured"] is None
    report.draw(found, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000
    assert "0.96 to 1.00 | 0.714 (missed)" in report.markdown(found)


def test_make_gpu_says_what_it_lacks_before_it_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NEEDS", {"setuptools": 1000, "pytest": 8, "no-such-package": 2})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        preflight.main()
    said = str(end.value)
    assert "needs setuptools 1000 or newer, and setuptools is" in said
    assert "needs no-such-package 2 or newer, and no no-such-package" in said
    assert "pip download --no-deps -d wheels 'no-such-package>=2'" in said
    assert "torch.cuda.is_available() is False" in said
    assert "pytest" not in said


def test_a_script_that_dies_costs_only_its_own_rows(tmp_path: Path) -> None:
    """``make gpu`` with a Python that notes what it is to run, and fails where it is to measure."""
    python, notes, out = (tmp_path / name for name in ("python", "notes", "out"))
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {notes}\ncase "$*" in *preflight*) echo 90;; *report*|*pip*) ;; *) exit 1; esac\n'
    )
    python.chmod(0o755)
    command = ["make", "gpu", f"PYTHON={python}", f"OUT={out}", "SCRIPTS=tests bandwidth host"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = [line.replace("bench/gpu/", "").split() for line in notes.read_text().splitlines()]
    lines = [words for words in lines if words[0] != "sanitize.py"]  # at any time, where compute-sanitizer is
    assert [" ".join(words[: 2 if words[0] == "-m" else 3]) for words in lines] == [
        "preflight.py", "-m pip", "-m pytest", "bandwidth.py --backend cuda", "bandwidth.py --backend triton",
        "host.py --backend cuda", "host.py --backend triton", "report.py",
    ]  # fmt: skip
    for name in report.SANITIZED:
        *_, status = (out / "gpu" / f"{name}.txt").read_text().splitlines()
        assert re.fullmatch(r"exit status [1-9]\d*", status)
