"""``make gpu`` on the CPU: small, with emulated CUDA kernels and made-up times, and what the report says."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.metadata import PackageNotFoundError
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
from common import KINDS, RULES, Memory, Rows, Rule
from torch import Tensor

from deeprelax import kernels
from deeprelax.benchmark.shapes import Workload
from deeprelax.benchmark.timing import HostTimer, Sample, Step, Watch
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved
from deeprelax.kernels import Backend
from deeprelax.kernels.reference import Eager

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TIMER = HostTimer(Watch())
SECONDS = {"copy": 3e-3, steps.ADAMW: 20e-3}  # of a sample; everything else takes 6 ms


def made_up(contestants: dict[str, Step], timer: Any, rounds: int) -> dict[str, list[Sample]]:
    """Runs each once; the times are ``SECONDS``."""
    found = {}
    for name, step in contestants.items():
        step()
        seconds = SECONDS.get(name, 6e-3)
        found[name] = [Sample(seconds, 1e-5, seconds, 1)] * rounds
    return found


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The CUDA kernels' code on CPU tensors, for optimizers that ask for "cuda" too."""
    module = pytest.importorskip("deeprelax._cuda")
    from deeprelax.kernels.cuda import Cuda

    backend, real = Cuda(module, emulated=True), kernels.get
    for place in ("deeprelax.optim.bucket.get", "deeprelax.optim.device_clock.get"):
        monkeypatch.setattr(place, lambda name, device: backend if name == "cuda" else real(name, device))
    monkeypatch.setattr(common, "sample", made_up)
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
    monkeypatch.setattr(bandwidth, "SIZES", (2**7,))
    bandwidth.measure(rows, Memory(2**10, CPU), emulated, TIMER, 2)
    found = written(rows)
    for rule in RULES:
        for dtype, kind in (("fp32", "first"), ("bf16", "last"), ("bf16", "inner")):
            (row,) = report.only(found, "made", rule=rule.name, dtype=dtype, kind=kind, elements=2**10)
            moved = bytes_moved(rule.optimizer, common.DTYPES[dtype], kind)
            assert row["bandwidth_ratio"]["median"] == pytest.approx(moved / 8 / 2)  # in twice the time of a copy
            assert row["time_ratio"] == pytest.approx(2)
            calls = bandwidth.MOST_CALLS
            assert row["gb_per_s"] == pytest.approx(moved * 2**10 * calls / 6e-3 / 1e9)
        assert len(report.only(found, "made", rule=rule.name, elements=2**7)) == 2
    extras = [(r["extra"], r["dtype"]) for r in found if "extra" in r]
    unaligned = ("gradient unaligned", "weight unaligned", "noise", "noise, weight unaligned")
    names = ("plain", *unaligned, "weight decay", "captured, GradScaler")
    assert extras == [(name, dtype) for dtype in ("fp32", "bf16") for name in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_timed_is_the_reference_call(rule: Rule, dtype: torch.dtype, emulated: Backend) -> None:
    """Every kind of call differs, and changes the memory as the reference does, on its own slices alone."""

    def run(backend: Backend, kind: str, unaligned: str = "") -> list[Tensor]:
        torch.manual_seed(0)
        memory = Memory(2**9, CPU)
        memory.calls(backend, rule, dtype, 2**7, 2, kind=kind, unaligned=unaligned)
        return [memory.wide["w"], memory.narrow["w"], memory.x, memory.y, memory.average, memory.square]

    runs = [(kind, "") for kind in KINDS] + [("inner", name) for name in ("w", "g")]
    seen, theirs = ([run(backend, *each) for each in runs] for backend in (emulated, Eager()))
    for ours, reference in zip(seen, theirs):
        assert all(map(torch.equal, ours, reference))
    assert len({tuple(torch.cat([t.float() for t in tensors]).tolist()) for tensors in seen}) == len(runs)
    torch.manual_seed(0)
    untouched = Memory(2**9, CPU).wide["w"]
    assert torch.equal(seen[0][0][2**8 :], untouched[2**8 :])


def test_no_call_finds_its_operands_in_a_cache() -> None:
    """Those of a step lie on different slices, or are long; what comes before it is ``test_timing.py``'s."""
    for size in (*bandwidth.SIZES, bandwidth.ELEMENTS):
        calls = bandwidth.calls_of(size)
        found = common.slices(bandwidth.ELEMENTS, size, calls)
        assert len({part.start for part in found}) == calls or len(found) * size >= 2**26
        assert all(part.stop - part.start == size and part.stop <= bandwidth.ELEMENTS for part in found)
    order: list[int] = []
    common.in_turn([partial(order.append, k) for k in range(2)], 5)()
    assert order == [0, 1, 0, 1, 0]


def test_a_captured_call_is_an_inner_one_under_a_scaler(emulated: Backend) -> None:
    torch.manual_seed(0)
    memory, rule = Memory(2**7, CPU), RULES[0]
    before = memory.wide["w"].clone()
    memory.calls(emulated, rule, torch.float32, 2**7, 1, call=rule.tick(emulated, CPU))
    torch.manual_seed(0)
    plain = Memory(2**7, CPU)
    plain.wide["g"] /= 1024
    plain.calls(Eager(), rule, torch.float32, 2**7, 1)
    assert not torch.equal(memory.wide["w"], before)
    assert torch.equal(memory.wide["w"], plain.wide["w"])


def test_whole_steps_are_compared_per_byte_with_adamw(emulated: Backend, rows: Rows) -> None:
    workload = Workload("resnet50, tiny", ((5, 3), (70,)))
    for what, capturable in (("cuda", False), ("cuda, graph", True)):
        builds = steps.ours("cuda", capturable) | steps.theirs(*steps.PEERS)
        steps.measure(rows, workload, what, builds, TIMER, 2)
    steps.measure(rows, workload, "plain torch", steps.plain(False) | steps.theirs(steps.ADAMW), TIMER, 2)
    found = written(rows)
    (hj,) = report.only(found, "made", name="HJ", backend="cuda, graph")
    time = (6 / 5) / (20 / 5)  # ms of a step of ours by AdamW's
    assert hj["time_ratio"] == pytest.approx(time)
    moved = (20 + 3 * 20 + 16) / 5
    of_adamw = moved / peer_bytes_moved(steps.ADAMW, torch.float32) / time
    assert hj["bandwidth_ratio"]["median"] == pytest.approx(of_adamw)
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
    bandwidth.group(rows, Memory(2**7, CPU), broken, TIMER, 2, "fp32", "inner", 2**7)
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
    for seconds, best in ((5.98e-3, "present"), (5.9e-3, "other")):
        monkeypatch.setitem(SECONDS, "other", seconds)
        assert tune.try_all(rows, Memory(2**7, CPU), backends, RULES[2], "bf16", TIMER, 2) == best
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


def test_the_sanitizers_program_calls_every_rule_kind_and_dtype(emulated: Backend) -> None:
    per_dtype = len(RULES) * len(KINDS) * 4
    rounded = sum(rule.kernel.keeps_y for rule in RULES) * len(KINDS) * 4
    assert sanitize.everything(emulated, 256, CPU) == 4 * per_dtype + rounded
    assert sanitize.captured_steps("cuda", CPU) == 20


@pytest.mark.parametrize(
    ("printed", "verdict", "said"),
    [
        ("1 calls\n========= ERROR SUMMARY: 0 errors\nexit status 0\n", "passed", "ERROR SUMMARY: 0 errors"),
        ("========= ERROR SUMMARY: 3 errors\nexit status 86\n", "failed", "ERROR SUMMARY: 3 errors; exit status 86"),
        ("a Traceback\nNameError\nexit status 1\n", "failed", "NameError; exit status 1"),
        ("========= Device not supported\nexit status 1\n", "not proven", "Device not supported"),
        ("timeout: no compute-sanitizer\nexit status 127\n", "not proven", "no compute-sanitizer; exit status 127"),
        ("exit status 124\n", "not proven", "exit status 124"),
        ("========= COMPUTE-SANITIZER\n", "not proven", "it did not end"),
        ("", "not proven", "it did not end"),
    ],
)
def test_what_the_sanitizer_printed_is_judged(printed: str, verdict: str, said: str) -> None:
    found = report.sanitized(printed)
    assert found[0] == verdict
    assert said in found[1]


def test_ncus_table_is_read_launch_by_launch() -> None:
    names = ["ID", "Kernel Name", *ncu.METRICS.values()]
    text = io.StringIO()
    lines = csv.writer(text, quoting=csv.QUOTE_ALL)
    lines.writerows([names, ["", "", *["%"] * len(ncu.METRICS)]])
    lines.writerow(["0", "void deeprelax::cuda::update<float>", *["1,234.5"] * len(ncu.METRICS)])
    lines.writerow(["1", "elementwise", *["1"] * len(ncu.METRICS)])
    assert list(ncu.parsed("==PROF== Connected\n" + text.getvalue())) == [dict.fromkeys(ncu.METRICS, 1234.5)]


JUNIT = """<testsuites><testsuite><testcase classname="a" name="good"/>{more}</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ("", 0, ""),
        ('<testcase classname="a" name="one"><skipped message="one GPU"/></testcase>', 0, ""),
        ('<testcase classname="a" name="big"><skipped message="GPU memory: 3"/></testcase>', 3, "not proven: 1 GPU"),
        ('<testcase classname="a" name="bad"><failure message="x"/></testcase>', 1, "a::bad failed"),
        ('<testcase classname="a" name="why"><skipped message="because"/></testcase>', 1, "nothing allows: because"),
    ],
)
def test_the_report_says_what_was_not_proved(
    more: str, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pytest.xml").write_text(JUNIT.format(more=more))
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
        {**hj, "kind": kind, "elements": n, "bandwidth_ratio": {"median": of}, "gb_per_s": 1.0}
        for kind, n, of in (("inner", 64, 9.0), ("inner", 128, 1.0), ("first", 128, 0.5), ("last", 128, 0.5))
    ]
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


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [("setuptools", "68.1.2", "needs setuptools 77 or newer, and setuptools is 68"), ("pybind11", None, "no pybind11")],
)
def test_make_gpu_says_what_it_lacks_before_it_builds(
    name: str, found: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(of: str) -> str:
        if of == name and found is None:
            raise PackageNotFoundError
        return found if of == name and found else metadata.version(of)

    monkeypatch.setattr(preflight, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        preflight.main()
    for expected in (said, "pip download --no-deps", "torch.cuda.is_available() is False"):
        assert expected in str(end.value)


def test_a_script_that_dies_costs_only_its_own_rows(tmp_path: Path, runner: Callable[[str], list[str]]) -> None:
    called = runner("bandwidth host")
    assert called == [
        "preflight.py", "-m pip", "bandwidth.py --backend cuda", "bandwidth.py --backend triton",
        "host.py --backend cuda", "host.py --backend triton", "report.py",
    ]  # fmt: skip
    assert "-m pytest" in runner("tests")
    for name in report.SANITIZED:
        assert "exit status 127" in (tmp_path / "out" / "gpu" / f"{name}.txt").read_text()


@pytest.fixture
def runner(tmp_path: Path) -> Callable[[str], list[str]]:
    """``make gpu`` with a Python that notes what it is to run, and fails where it is to measure."""
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(
        f'#!/bin/sh\necho "$*" >> {notes}\n'
        'case "$*" in *bandwidth*|*host*|*sanitize*|*pytest*) exit 1;; *preflight*) echo 90;; esac\n'
    )
    python.chmod(0o755)

    def run(scripts: str) -> list[str]:
        notes.write_text("")
        command = ["make", "gpu", f"PYTHON={python}", f"OUT={tmp_path / 'out'}", f"SCRIPTS={scripts}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        lines = [line.replace("bench/gpu/", "") for line in notes.read_text().splitlines()]
        return [" ".join(line.split()[:2]) if line.startswith("-m") else line for line in lines]

    return run
