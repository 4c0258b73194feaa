"""What ``bench/gpu.py`` writes down: after every part, whatever happens, and whether what was promised is met."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import readme
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import gpu  # noqa: E402
from gpu_bench import picture, verdict  # noqa: E402
from gpu_bench.calls import RULES  # noqa: E402
from gpu_bench.host_part import OPTIMIZERS  # noqa: E402
from gpu_bench.record import Budget, Record, run_parts  # noqa: E402
from gpu_bench.targets import NEW, judge  # noqa: E402
from gpu_bench.text import markdown  # noqa: E402

ABOUT = {
    "gpu": "a GPU",
    "driver": "1.2",
    "cuda": "13.0",
    "versions": {"torch": "2.11"},
    "commit": "abc123",
    "date": "d",
}


class Hands:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return found


def test_the_record_is_written_anew_after_every_part(tmp_path: Path) -> None:
    record, seen = Record(tmp_path / "a" / "b", ABOUT), []

    def part() -> None:
        seen.append({name: entry.get("status") for name, entry in stored(record.folder)["parts"].items()})

    run_parts({name: (1.0, part) for name in ("first", "second", "third")}, record, Budget(100))
    running = [{"first": "interrupted"}, {"first": "done", "second": "interrupted"}]
    assert seen == [*running, {"first": "done", "second": "done", "third": "interrupted"}]
    assert "| third | done |" in (record.folder / "gpu.md").read_text()


def test_a_part_that_fails_is_recorded_with_its_tracebacks_end_and_the_next_goes_on(tmp_path: Path) -> None:
    record = Record(tmp_path, ABOUT)

    def fails() -> None:
        record.results("first")["measured"] = 3
        raise RuntimeError("the driver has gone")

    run_parts({"first": (1.0, fails), "second": (1.0, lambda: None)}, record, Budget(100))
    parts = stored(tmp_path)["parts"]
    assert parts["first"]["status"] == "with errors"
    assert parts["first"]["errors"][0]["traceback"].endswith("RuntimeError: the driver has gone\n")
    assert parts["first"]["results"] == {"measured": 3}
    assert parts["second"]["status"] == "done"
    assert "the driver has gone" in (tmp_path / "gpu.md").read_text()


def test_parts_that_the_budget_does_not_allow_are_left_out_and_named(tmp_path: Path) -> None:
    hands, record = Hands(), Record(tmp_path, ABOUT)

    def slow() -> None:
        hands.now += 70

    run_parts({"slow": (10.0, slow), "long": (40.0, slow), "short": (20.0, slow)}, record, Budget(100, hands))
    parts = stored(tmp_path)["parts"]
    assert parts["slow"] == {"status": "done", "seconds": 70}
    assert parts["long"] == {"status": "left out: 30 s were left, and it needs 40 s"}
    assert parts["short"]["seconds"] == 70


def test_an_interrupted_part_is_recorded_as_such(tmp_path: Path) -> None:
    record = Record(tmp_path, ABOUT)

    def interrupted() -> None:
        record.results("first")["measured"] = 3
        raise SystemExit

    with pytest.raises(SystemExit):
        run_parts({"first": (1.0, interrupted)}, record, Budget(100))
    assert stored(tmp_path)["parts"]["first"] == {"status": "interrupted", "results": {"measured": 3}}


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_picture(*arguments: Any) -> None:
        raise ImportError("no matplotlib here")

    monkeypatch.setattr("gpu_bench.record.draw", no_picture)
    record = Record(tmp_path, ABOUT)
    record.results("kernels")["sizes"] = [{"name": "copy", "elements": 4, "gb_per_s": 1.0}]
    record.save()
    assert stored(tmp_path)["parts"]["kernels"]["results"]["sizes"]


def test_parts_run_in_the_order_of_their_importance() -> None:
    assert gpu.arguments(["--parts", "host,correctness"]).parts == ["correctness", "host"]
    assert gpu.arguments([]).parts == ["correctness", "kernels", "steps", "host", "sweep"]
    with pytest.raises(SystemExit):
        gpu.arguments(["--parts", "cake"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def measured(fraction: float = 0.97, per_byte: float = 0.9, by_sgd: float = 0.8) -> dict[str, Any]:
    """A made-up run that has everything the targets ask for."""
    backends = ("cuda", "triton")
    fractions = {"median": fraction, "low": fraction, "high": fraction}
    times = {"median": 5.0, "low": 4.0, "high": 6.0}
    common = {"us": times, "gb_per_s": 4000.0, "host_us": 3.0, "waited": 0.0}
    cycles = [
        {"backend": b, "rule": r.name, "configuration": c, "us": 5.0, "of_copy": fraction}
        for b in backends
        for r in RULES
        for c in ("fp32", "bf16")
    ]
    rows = [{**c, **common, "kind": "inner", "of_copy": fractions, "copy_gb_per_s": 4300.0} for c in cycles]
    steps = [
        {"workload": w, "backend": b, "captured": False, "name": r.name, "by_adamw": 0.7, "by_adamw_per_byte": per_byte}
        | common
        for w in ("resnet50, 161 tensors", "decoder-1.3b, 292 tensors")
        for b in backends
        for r in RULES
    ]
    host = [
        {"name": f"{name} [{b}]{new}", "us": times, "by_sgd": by_sgd, "judged": True}
        for b in backends
        for name in OPTIMIZERS
        for new in ("", NEW)
    ]
    return {
        "correctness": {
            "status": "done",
            "results": {"tests": {"outcomes": {"passed": 3}, "passed": True}, "sanitizer": {}},
        },
        "kernels": {"status": "done", "results": {"elements": 2**28, "rows": rows, "cycles": cycles, "sizes": []}},
        "steps": {"results": {"rows": steps}},
        "host": {"results": {"tensors": 300, "rows": host}},
    }


def test_the_targets_are_met_only_by_what_was_measured() -> None:
    assert all(t["met"] for t in judge(measured()))
    nothing = judge({})
    assert len(nothing) == len(judge(measured())) == 28
    assert not any(t["met"] for t in nothing)
    assert all(t["measured"] is None for t in nothing)


@pytest.mark.parametrize(
    ("changes", "missed"), [({"fraction": 0.94}, 3), ({"per_byte": 1.01}, 4), ({"by_sgd": 1.5}, 2)]
)
def test_a_target_that_is_missed_says_so(changes: dict[str, float], missed: int) -> None:
    parts = measured(**changes)
    found = judge(parts)
    assert len([t for t in found if not t["met"]]) == missed
    assert markdown({"about": ABOUT, "parts": parts, "targets": found}).count("(missed)") == missed


def test_the_slowest_rule_counts_and_a_missing_one_is_not_measured() -> None:
    parts = measured()
    parts["steps"]["results"]["rows"][2]["by_adamw_per_byte"] = 1.3
    first = next(t for t in judge(parts) if t["promise"].startswith("resnet50 [cuda]"))
    assert (first["measured"], first["met"]) == (1.3, False)
    del parts["steps"]["results"]["rows"][2]
    first = next(t for t in judge(parts) if t["promise"].startswith("resnet50 [cuda]"))
    assert (first["measured"], first["met"]) == (None, False)


def test_a_time_in_which_the_device_waited_for_the_host_is_marked() -> None:
    parts = measured()
    parts["kernels"]["results"]["rows"][0]["waited"] = 0.8
    assert markdown({"about": ABOUT, "parts": parts, "targets": []}).count("5 (waited for the host)") == 1


def test_the_readme_says_which_commit_a_gpus_figures_belong_to() -> None:
    parts = measured()
    text = readme.on_gpu({"about": ABOUT, "parts": parts, "targets": judge(parts)}, "bench/results/x/gpu.json")
    assert "commit abc123" in text
    assert "`bench/results/x/gpu.json`" in text
    assert "| HJ, fp32 [cuda]: bandwidth by a copy's | ≥ 0.95 | 0.970 |" in text
    assert "GPU tests | 3 passed" in text


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_did_not_run_is_named_in_bold_and_fails_the_run(name: str) -> None:
    data = {"about": {**ABOUT, "why_not": {"cpu": "", name: "looked for\n nvcc"}}, "parts": measured(), "targets": []}
    assert verdict.exit_status(data) == verdict.WRONG
    bold = f"**the {name} backend did not run: looked for nvcc**"
    assert bold in markdown(data)
    assert bold in readme.on_gpu(data, "bench/results/x/gpu.json")


def test_a_run_that_proved_everything_ends_with_success_and_says_nothing_in_bold() -> None:
    data = {"about": {**ABOUT, "why_not": {"cpu": "no", "cuda": "", "triton": ""}}, "parts": measured(), "targets": []}
    assert verdict.exit_status(data) == 0
    assert "- **" not in markdown(data)


def test_a_process_that_broke_off_fails_the_run() -> None:
    parts = measured()
    parts["steps"]["broke_off"] = ["cuda (ended with status -6)"]
    assert verdict.exit_status({"about": ABOUT, "parts": parts}) == verdict.WRONG


def test_without_a_stored_run_the_readme_says_which_commands_are_owed() -> None:
    text = readme.no_gpu()
    assert "make gpu OUT=out COMMIT=$(git rev-parse HEAD)" in text
    assert "NVIDIA H200" in text
    assert "mkdir -p bench/results/nvidia-h200" in text
    assert text.count("not measured") == 28


def test_the_measurement_of_tritons_sizes_is_owed_until_one_is_stored(tmp_path: Path) -> None:
    """A stored run of make gpu does not stand in for it."""
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "gpu.json").write_text("{}")
    owed = readme.owed_sizes(tmp_path)
    assert "make gpu PARTS=sweep" in owed
    assert "kernels/triton/sizes.py" in owed
    (tmp_path / "gpu" / "triton_sizes.json").write_text("{}")
    assert readme.owed_sizes(tmp_path) == ""


def test_what_is_owed_stands_on_the_page() -> None:
    rendered = readme.rendered("docs/benchmarks.md").split("<!-- gpu: ")[1].split("<!-- /gpu -->")[0]
    stored = list((ROOT / "bench" / "results").glob("*/triton_sizes.json"))
    assert ("PARTS=sweep" in rendered) != bool(stored)


def test_the_picture_has_a_panel_for_fp32_and_one_for_bf16_with_a_line_for_every_kernel_and_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(tmp_path, ABOUT)
    names = ["copy", *(f"{rule.name} [{backend}]" for rule in RULES for backend in ("cuda", "triton"))]
    record.results("kernels")["sizes"] = [
        {"name": name, "configuration": c, "elements": 2**n, "gb_per_s": 100.0 * n}
        for name in names
        for c in ("fp32", "bf16")
        for n in (16, 20, 28)
    ]
    panels, draw_lines = [], picture.draw_lines

    def note(ax: Any, rows: list[dict[str, Any]]) -> None:
        draw_lines(ax, rows)
        panels.append(ax)

    monkeypatch.setattr(picture, "draw_lines", note)
    record.save()
    assert (tmp_path / "bandwidth.png").read_bytes().startswith(b"\x89PNG")
    assert [ax.get_title() for ax in panels] == ["inner call, fp32", "inner call, bf16"]
    for ax in panels:
        assert len(ax.get_lines()) == len(names)
        assert all(list(line.get_xdata()) == [2**16, 2**20, 2**28] for line in ax.get_lines())


def test_make_gpu_needs_neither_an_environment_of_its_own_nor_an_index() -> None:
    command = ["make", "-n", "gpu", "OUT=folder", "COMMIT=abc", "BUDGET=100", "PYTHON=this-python"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv" not in printed
    assert "--no-index --no-build-isolation --no-deps -e ." in printed
    assert "this-python bench/gpu.py --out folder/gpu --commit abc" in printed
    assert "--budget-seconds 100" in printed
    assert printed.index("this-python bench/can_build.py") < printed.index("pip install")
