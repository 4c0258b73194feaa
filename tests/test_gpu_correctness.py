"""``make gpu`` fails if a GPU test fails, hangs or never ran, or compute-sanitizer finds something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import conftest
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from gpu_bench import correctness_part  # noqa: E402
from gpu_bench.record import Budget, Record, run_parts  # noqa: E402

ABOUT = {"gpu": "a GPU", "commit": "abc123"}


@pytest.fixture
def tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(correctness_part, "start_sanitizers", lambda folder: {})
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_good.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', ['a b', 'c'])\ndef test_good(n): pass\n"
        "@pytest.mark.parametrize('n', ['a b', 'c'])\n"
        "@pytest.mark.skip(reason='one GPU, and (as it happens) no other, ' + 20 * 'really ')\ndef test_two(n): pass\n"
    )
    return folder


def check(tests: Path, tmp_path: Path) -> tuple[Record, dict[str, Any]]:
    record = Record(tmp_path / "out", ABOUT)
    budget = Budget(1000)
    run_parts({"correctness": (1.0, lambda: correctness_part.run(record, budget, tests, 1))}, record, budget)
    return record, record.results("correctness")["tests"]


def test_outcomes_of_the_gpu_tests_are_counted_and_their_text_is_kept(tests: Path, tmp_path: Path) -> None:
    record, found = check(tests, tmp_path)
    assert found["outcomes"] == {"passed": 2, "skipped": 2}
    assert found["passed"]
    assert not correctness_part.failed(record)
    assert "test_good[a b] PASSED" in (tmp_path / "out" / "pytest.txt").read_text()


def test_what_was_not_run_is_named_with_the_reason(tests: Path, tmp_path: Path) -> None:
    """A machine with one GPU does not prove what needs two."""
    record, found = check(tests, tmp_path)
    ((reason, names),) = found["skipped"].items()
    assert reason.startswith("one GPU, and (as it happens) no other, really")
    assert reason.endswith("really")
    assert names == ["test_two"]
    assert "| not run: one GPU, and" in (record.folder / "gpu.md").read_text()
    assert "| test_two | not proved |" in (record.folder / "gpu.md").read_text()


def test_a_failing_test_fails_the_whole(tests: Path, tmp_path: Path) -> None:
    (tests / "test_bad.py").write_text("def test_bad(): assert 1 == 2\n")
    record, found = check(tests, tmp_path)
    assert [name.rpartition("::")[2] for name in found["failures"]] == ["test_bad"]
    assert found["outcomes"]["passed"] == 2
    assert correctness_part.failed(record)


def test_tests_that_all_are_skipped_prove_nothing(tests: Path, tmp_path: Path) -> None:
    (tests / "test_good.py").write_text("import pytest\n@pytest.mark.skip\ndef test_skipped(): pass\n")
    record, _ = check(tests, tmp_path)
    assert correctness_part.failed(record)


def test_a_test_that_hangs_is_stopped_and_fails_the_whole(
    tests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness_part, "LIMIT", 0.0)
    monkeypatch.setattr(correctness_part, "LEAST", 4.0)
    (tests / "test_hangs.py").write_text("import time\ndef test_hangs(): time.sleep(1000)\n")
    record, found = check(tests, tmp_path)
    assert found["statuses"] == [None]
    assert found["outcomes"]["passed"] == 2
    assert correctness_part.failed(record)


def test_the_gpu_tests_pass_as_far_as_the_kernels_can_be_emulated() -> None:
    """Graphs, the scaler and large tensors with the recorder of capture.py; a few calls and runs of the others."""
    pytest.importorskip("deeprelax._cuda")
    few = "graphs or scaler or large or (many_chunks and cuda and hj) or (long_run and HJ and False-True)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "tests/gpu", "-k", few]
    environment = {**os.environ, "DEEPRELAX_EMULATE_GPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 50


class Ended:
    """A job that is over."""

    def __init__(self, status: int | None, printed: str) -> None:
        self._status, self._printed = status, printed

    def wait(self, until: float) -> int | None:
        return self._status

    def printed(self) -> str:
        return self._printed


@pytest.mark.parametrize(
    ("status", "printed", "verdict"),
    [
        (0, "24 calls\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (86, "========= ERROR SUMMARY: 3 errors\n", "**failed**"),
        (1, "Traceback", "**failed**"),
        (None, "", "not finished"),
    ],
)
def test_the_sanitizers_verdict_is_its_exit_status(status: int | None, printed: str, verdict: str) -> None:
    found = correctness_part.verdict(Ended(status, printed), 0.0)  # type: ignore[arg-type]
    assert found["verdict"] == verdict
    assert "ERROR SUMMARY" not in printed or "ERROR SUMMARY" in found["said"]


def test_shards_take_every_test_once(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    every = list(request.session.items)
    taken: list[Any] = []
    for k in range(3):
        monkeypatch.setenv("DEEPRELAX_SHARD", f"{k}/3")
        items = list(every)
        conftest.pytest_collection_modifyitems(request.config, items)
        taken += items
    assert sorted(map(id, taken)) == sorted(map(id, every))
