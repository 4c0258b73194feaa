"""``make gpu`` fails if a GPU test fails, hangs or never ran, or compute-sanitizer finds something."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from gpu_bench import correctness_part, sanitizer, verdict  # noqa: E402
from gpu_bench.jobs import Job  # noqa: E402
from gpu_bench.record import Budget, Record, run_parts  # noqa: E402
from gpu_bench.text import markdown  # noqa: E402

ABOUT = {"gpu": "a GPU", "commit": "abc123"}


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sanitizer, "start", lambda folder: {})
    monkeypatch.setattr(correctness_part, "POLL", 0.2)
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_good.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', ['a b', 'c'])\ndef test_good(n): pass\n"
        "@pytest.mark.skip(reason='one GPU')\ndef test_skipped(): pass\n"
    )
    return folder


def check(tests: Path, tmp_path: Path) -> tuple[Record, dict[str, Any]]:
    record = Record(tmp_path / "out", ABOUT)
    budget = Budget(1000)
    run_parts({"correctness": (1.0, lambda: correctness_part.run(record, budget, tests, ("0/1",)))}, record, budget)
    return record, record.results("correctness")["tests"]


def test_outcomes_of_the_gpu_tests_are_counted_and_their_text_is_kept(tests: Path, tmp_path: Path) -> None:
    record, found = check(tests, tmp_path)
    assert found["outcomes"] == {"passed": 2, "skipped": 1}
    assert found["passed"]
    assert verdict.exit_status(record.data) == 0
    assert "test_good[a b] PASSED" in (tmp_path / "out" / "pytest.txt").read_text()


def test_a_failing_test_fails_the_whole(tests: Path, tmp_path: Path) -> None:
    (tests / "test_bad.py").write_text("def test_bad(): assert 1 == 2\n")
    record, found = check(tests, tmp_path)
    assert [name.rpartition("::")[2] for name in found["failures"]] == ["test_bad"]
    assert found["outcomes"]["passed"] == 2
    assert verdict.exit_status(record.data) == verdict.WRONG


def test_tests_that_all_are_skipped_prove_nothing(tests: Path, tmp_path: Path) -> None:
    (tests / "test_good.py").write_text("import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n")
    record, _ = check(tests, tmp_path)
    assert verdict.exit_status(record.data) == verdict.WRONG


def test_a_test_that_hangs_is_stopped_and_fails_the_whole(
    tests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness_part, "LIMIT", 0.0)
    monkeypatch.setattr(correctness_part, "LEAST", 4.0)
    (tests / "test_hangs.py").write_text("import time\ndef test_hangs(): time.sleep(1000)\n")
    record, found = check(tests, tmp_path)
    assert found["statuses"] == [None]
    assert found["outcomes"]["passed"] == 2
    assert verdict.exit_status(record.data) == verdict.WRONG


def test_the_gpu_tests_pass_as_far_as_the_kernels_can_be_emulated() -> None:
    """Graphs, the scaler and large tensors with the recorder of capture.py; a few calls and runs of the others."""
    pytest.importorskip("deeprelax._cuda")
    few = "graphs or scaler or large or (many_chunks and cuda and hj) or (long_run and HJ and False-True)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "tests/gpu", "-k", few]
    environment = {**os.environ, "DEEPRELAX_EMULATE_GPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 50


@pytest.mark.parametrize(
    ("status", "printed", "found"),
    [
        (0, "24 calls\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (86, "========= ERROR SUMMARY: 3 errors\n", "**failed**"),
        (1, "Traceback", "**failed**"),
        (1, "========= Error: Device not supported. Please refer to\nCUDA error 999\n", "not supported here"),
        (1, "Device not supported\n========= ERROR SUMMARY: 1 error\n", "**failed**"),
    ],
)
def test_the_sanitizers_verdict_is_its_exit_status(status: int, printed: str, found: str) -> None:
    """Where it says that it cannot look at this device, it found nothing wrong."""
    got = sanitizer.verdict(status, printed)
    assert got["verdict"] == found
    assert "ERROR SUMMARY" not in printed or "ERROR SUMMARY" in got["said"]


def test_a_sanitizer_that_did_not_finish_is_not_proven_and_meanwhile_says_so(
    tests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness_part, "LIMIT", 0.0)
    monkeypatch.setattr(correctness_part, "LEAST", 5.0)
    jobs = {
        "memcheck": Job(["sh", "-c", "echo ERROR SUMMARY: 0 errors"], tmp_path / "memcheck.txt"),
        "racecheck": Job(["sleep", "600"], tmp_path / "racecheck.txt"),
    }
    monkeypatch.setattr(sanitizer, "start", lambda folder: jobs)
    saved = []
    monkeypatch.setattr(Record, "save", lambda self: saved.append(self.data["parts"].get("correctness", {})))
    record, _ = check(tests, tmp_path)
    found = record.results("correctness")["sanitizer"]
    assert {tool: each["verdict"] for tool, each in found.items()} == {
        "memcheck": "passed",
        "racecheck": "**not finished**",
    }
    assert len(saved) > 5
    assert verdict.exit_status(record.data) == verdict.NOT_PROVEN
    assert "**not proven: compute-sanitizer, racecheck: stopped at its limit of time**" in markdown(record.data)
    assert jobs["racecheck"].ended()


@pytest.mark.parametrize(
    ("reason", "status"),
    [("one GPU", 0), ("GPU memory: 3 GiB are free", verdict.NOT_PROVEN), ("looked for nvcc", verdict.WRONG)],
)
def test_a_skipped_test_is_allowed_or_not_proven_or_wrong_by_its_reason(
    reason: str, status: int, tests: Path, tmp_path: Path
) -> None:
    (tests / "test_good.py").write_text(
        f"import pytest\ndef test_good(): pass\ndef test_skips(): pytest.skip({reason!r})\n"
    )
    record, found = check(tests, tmp_path)
    assert found["skips"] == {reason: 1}
    assert verdict.exit_status(record.data) == status
    text = markdown(record.data)
    assert f"1 skipped: {reason}" in text
    assert (f"{reason}**" in text) == (status != 0)


def test_a_skip_whose_reason_was_not_found_is_not_allowed() -> None:
    printed = "tests/a.py::test_a PASSED\ntests/a.py::test_b SKIPPED\n"
    assert correctness_part.outcomes([printed], [0])["not_allowed"] == {"no reason was found": 1}
    assert not correctness_part.outcomes([printed], [0])["passed"]
    assert correctness_part.outcomes([printed], ["running"])["not_allowed"] == {}


def test_the_reasons_that_are_allowed_are_those_of_the_gpu_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = gpu_tests("on_gpu", monkeypatch)
    assert (on_gpu.ONE_GPU, on_gpu.MEMORY) == (correctness_part.ALLOWED, correctness_part.NOT_PROVEN)


def test_on_a_gpu_a_backend_that_does_not_work_fails_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = gpu_tests("on_gpu", monkeypatch)
    monkeypatch.setattr(on_gpu, "EMULATED", False)
    monkeypatch.setattr(on_gpu.kernels, "why_not", lambda name: "looked for nvcc")
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="here: looked for nvcc") as caught:
        on_gpu.use(monkeypatch, "triton")
    assert caught.type is pytest.fail.Exception


def test_the_memory_of_a_large_test_is_the_next_ones_even_if_something_holds_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = gpu_tests("test_gpu_large", monkeypatch)
    held = [torch.ones(100), torch.ones(50)]
    kept = held[0]
    large.release(held)
    assert held == []
    assert kept.untyped_storage().nbytes() == 0
    assert 24 * 2**30 < large.NEEDS < 32 * 2**30


def gpu_tests(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of tests/gpu."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    return importlib.import_module(name)


def test_shards_resume_with_the_same_bits_as_reproduce_does(tests: Path, tmp_path: Path) -> None:
    (tests / "test_good.py").write_text(
        "import os\ndef test_workspace(): assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'\n"
    )
    assert check(tests, tmp_path)[1]["passed"]


INTERRUPTED = """
import sys
from pathlib import Path
from gpu_bench import correctness_part, sanitizer
from gpu_bench.jobs import Job  # noqa: E402
from gpu_bench.record import Budget, Record

tests, out = map(Path, sys.argv[1:])
sanitizer.start = lambda folder: {}
correctness_part.POLL = 0.2
correctness_part.run(Record(out, {}), Budget(1000), tests, ("0/1",))
"""


def test_what_the_tests_have_printed_outlives_a_run_that_is_killed(tests: Path, tmp_path: Path) -> None:
    (tests / "test_hangs.py").write_text("import time\ndef test_hangs(): time.sleep(1000)\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'bench'}:{ROOT}"}
    run = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tests), str(tmp_path / "out")], env=environment)
    printed, file = tmp_path / "out" / "pytest.txt", tmp_path / "out" / "gpu.json"
    end = time.monotonic() + 90
    while time.monotonic() < end and not (printed.exists() and "test_good[c] PASSED" in printed.read_text()):
        time.sleep(0.1)
    time.sleep(0.5)  # what is counted is written after what was printed
    run.kill()
    run.wait()
    found = json.loads(file.read_text())["parts"]["correctness"]["results"]["tests"]
    assert found["outcomes"] == {"passed": 2, "skipped": 1}
    assert found["statuses"] == ["running"]
    assert not found["passed"]


def test_shards_take_every_test_once_and_the_large_ones_share_a_process(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    large = [SimpleNamespace(path=ROOT / "tests" / "gpu" / conftest.LARGE, add_marker=lambda marker: None)] * 4
    assert large[0].path.exists()
    others = [item for item in request.session.items if item.path.name != conftest.LARGE]
    every = [*others[:5], *map(copy.copy, large), *others[5:]]
    taken: list[Any] = []
    for shard in correctness_part.SHARDS:
        monkeypatch.setenv("DEEPRELAX_SHARD", shard)
        items = list(every)
        conftest.pytest_collection_modifyitems(request.config, items)
        taken += items
        assert len([item for item in items if item.path.name == conftest.LARGE]) == 4 * (shard == "large")
    assert sorted(map(id, taken)) == sorted(map(id, every))
