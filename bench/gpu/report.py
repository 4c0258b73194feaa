"""The results of a run on a GPU as tables, and whether it proved what it was meant to prove.

    python bench/gpu/report.py [out/gpu]

Reads rows.jsonl, stopped.txt and pytest's outcomes, alone and under compute-sanitizer; writes gpu.md. Exit status 1 if
a backend did not run, a test or a script failed or the sanitizer found something, 3 if something was not proven.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from common import KINDS, OUT, RULES, WORKLOADS

Results = list[dict[str, Any]]

# By rule and dtype: the least bandwidth of a whole cycle relative to a copy, with CUDA and with Triton, and what was
# predicted for CUDA on an H200 before any GPU had run it. Heat draws noise in every call.
BANDWIDTHS = {
    ("HJ", "fp32"): (0.95, 0.93, "0.96 to 1.00"),
    ("EntropySGD", "fp32"): (0.95, 0.93, "0.97 to 1.01"),
    ("EntropyAdamW", "fp32"): (0.95, 0.93, "0.95 to 1.00"),
    ("Heat", "fp32"): (0.93, 0.90, "0.94 to 0.99"),
    ("EntropySGD, noise", "fp32"): (0.93, 0.90, "0.94 to 0.99"),
    ("HJ", "bf16"): (0.90, 0.88, "0.94 to 0.99"),
    ("EntropySGD", "bf16"): (0.90, 0.88, "0.94 to 0.99"),
    ("EntropyAdamW", "bf16"): (0.90, 0.88, "0.92 to 0.98"),
    ("Heat", "bf16"): (0.90, 0.88, "0.90 to 0.96"),
    ("EntropySGD, noise", "bf16"): (0.90, 0.88, "0.90 to 0.96"),
}
HOST = {"cuda": 1.0, "triton": 2.0}  # most time, relative to fused SGD
CHECKS = ("pytest", "memcheck-cuda", "memcheck-triton", "racecheck-triton")
FOUND = 86  # compute-sanitizer's exit status if it found something
UNFINISHED = (124, 127, 137)  # exit statuses that are no failure: no time, no program, killed
REFUSED = re.compile("ERR_NVGPUCTRPERM|directory: 'ncu'")  # in an error: nobody may profile, or there is no ncu
ALLOWED = "one GPU"  # tests/gpu/on_gpu.py: the reason for skipping a test that leaves nothing unproven


def load(folder: Path) -> Results:
    """The rows, without a last line that an interruption truncated, the outcomes of the tests, and the scripts that did
    not come to their end."""

    def read(name: str) -> str:
        return (folder / name).read_text() if (folder / name).exists() else ""

    written = read("rows.jsonl")
    rows: Results = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]
    rows += [{"script": "tests", "what": name, **outcomes(read(f"{name}.xml"))} for name in CHECKS]
    stopped = read("stopped.txt").splitlines()
    return rows + [{"script": "stopped", "what": what, "failed": failed(what)} for what in stopped]


def failed(said: str) -> bool:
    """Whether a text that ends with a program's exit status reports a failure, not what could not be done. Under
    compute-sanitizer only its own status does: it may not support the device, and the tests also run without it."""
    status = int(said.split()[-1])
    return status == FOUND or not (status in UNFINISHED or said.startswith("compute-sanitizer"))


def outcomes(junit: str) -> dict[str, Any]:
    """How many passed, the names of those that failed, and why how many were skipped; nothing without a report."""
    passed, failed, skips = 0, [], Counter[str]()
    for case in xml.etree.ElementTree.fromstring(junit or "<none/>").iter("testcase"):
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if found is None:
            passed += 1
        elif found.tag == "skipped":
            skips[str(found.get("message"))] += 1
        else:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return {"passed": passed, "failed": failed, "skips": dict(skips)}


def only(rows: Results, script: str, **wanted: Any) -> Results:
    """Those of the script that have these values."""
    return [r for r in rows if r["script"] == script and all(r.get(name) == value for name, value in wanted.items())]


def of_cycle(rows: Results, rule: str, **more: str) -> float | None:
    """Bandwidth of a whole cycle of L as a fraction of a copy's, if all kinds of call were measured."""
    kinds = {r["kind"]: r for r in only(rows, "bandwidth", rule=rule, **more) if "kind" in r}
    if set(kinds) != set(KINDS):
        return None
    (per_cycle,) = (known.per_cycle for known in RULES if known.name == rule)
    moved = per_cycle({kind: r["bytes"] for kind, r in kinds.items()})
    # Each kind's time over that of a copy in the same rounds: bytes by that is the fraction.
    return moved / per_cycle({kind: r["bytes"] / r["bandwidth_ratio"]["median"] for kind, r in kinds.items()})


def limits(rows: Results, **kernel: str) -> str:
    """What Nsight Compute says of a kernel: why it missed a target."""
    for r in only(rows, "ncu", **kernel)[-1:]:
        stall = max((name for name in r if name.startswith("stall ")), key=r.__getitem__, default="")
        return ", ".join(f"{name} {r[name]:.3g}" for name in ("dram_percent", "issue_percent", stall) if name in r)
    return ""


class Target(NamedTuple):
    """A bound, from below or above, and what was measured, if it was; ``predicted`` before any GPU had run it, and
    what ``limits`` the kernel."""

    promise: str
    sign: str
    bound: float
    measured: float | None
    predicted: str = ""
    limits: str = ""


def judge(rows: Results) -> list[Target]:
    """Every target, by the last rows where a script ran more than once."""
    found = []
    for (name, dtype), (cuda, triton, predicted) in BANDWIDTHS.items():
        for backend, bound, guess in (("cuda", cuda, predicted), ("triton", triton, "")):
            promise = f"{name}, {dtype} [{backend}]: bandwidth relative to a copy"
            which = {"rule": name, "dtype": dtype, "backend": backend}
            found.append(Target(promise, "≥", bound, of_cycle(rows, **which), guess, limits(rows, **which)))
    for workload in WORKLOADS:
        for backend in HOST:
            steps = [r for r in only(rows, "steps", backend=backend) if r["workload"].startswith(workload)]
            costs = {r["name"]: 1 / r["bandwidth_ratio"]["median"] for r in steps if not r["name"].startswith("torch")}
            promise = f"{workload} [{backend}]: time of step() per byte relative to AdamW, slowest of {len(RULES)}"
            found.append(Target(promise, "≤", 1.0, max(costs.values()) if len(costs) == len(RULES) else None))
    for backend, bound in HOST.items():
        for new in (False, True):
            timed = only(rows, "host", backend=backend, capturable=False, new_gradients=new)
            ours = {r["name"]: r["by_sgd"] for r in timed if not r["name"].startswith("torch")}
            promise = f"host time of step(), 300 tensors{', new gradients' * new} [{backend}]: relative to SGD, slowest"
            found.append(Target(promise, "≤", bound, max(ours.values(), default=None)))
    return found


def wrong(rows: Results) -> list[str]:
    """What failed, or did not run."""
    whys = [why_not for about in only(rows, "about") for why_not in about["why_not"].items()]
    found = [f"the {name} backend did not run: {why}" for name, why in whys if why]
    found += [f"{r['what']} failed" for r in only(rows, "error") if not REFUSED.search(r["said"])]
    found += [r["what"] for r in only(rows, "stopped", failed=True)]
    tests = only(rows, "tests", what=CHECKS[0])[0]
    return found + [f"{name} failed" for name in tests["failed"]] + ["no GPU test passed"] * (not tests["passed"])


def not_proven(rows: Results) -> list[str]:
    """What this machine or the time did not allow."""
    found = [r["what"] for r in only(rows, "stopped", failed=False)]
    found += [f"{r['what']} is not allowed" for r in only(rows, "error") if REFUSED.search(r["said"])]
    for tests in only(rows, "tests"):
        found += [f"{tests['what']}, {n} tests: {why}" for why, n in tests["skips"].items() if why != ALLOWED]
        found += [f"{tests['what']}: no test passed"] * (not tests["passed"])
    return [f"not proven: {what}" for what in found]


def table(headings: list[str], rows: list[list[Any]]) -> list[str]:
    """Markdown, and an empty line; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return [*lines, *("| " + " | ".join(" ".join(str(cell).split()) for cell in row) + " |" for row in rows), ""]


def targets(found: list[Target]) -> list[str]:
    """The table of ``judge``."""
    lines = []
    for t in found:
        missed = t.measured is not None and (t.measured < t.bound if t.sign == "≥" else t.measured > t.bound)
        measured = "not measured" if t.measured is None else f"{t.measured:.3f}{' (missed)' * missed}"
        lines.append([t.promise, f"{t.sign} {t.bound:g}", t.predicted, measured, t.limits * missed])
    return table(["target", "bound", "predicted", "measured", "if missed, limited by"], lines)


def summary(rows: Results) -> list[str]:
    """The part of the results that the docs show: GPU, versions, commit, date; what is wrong; tests; targets."""
    about = next(iter(only(rows, "about")), {})
    versions = [f"{name} {about.get('versions', {}).get(name)}" for name in ("torch", "triton")]
    shown = [f"{name} {about.get(name)}" for name in ("driver", "kernels", "commit", "date")]
    lines = [f"**{about.get('gpu')}**: {', '.join([*versions, *shown])}", ""]
    lines += [*(f"- **{' '.join(said.split())}**" for said in wrong(rows) + not_proven(rows)), ""]
    tests = [[r["what"], r["passed"], len(r["failed"]), sum(r["skips"].values())] for r in only(rows, "tests")]
    return lines + table(["tests/gpu", "passed", "failed", "skipped"], tests) + targets(judge(rows))


def cell(value: Any) -> str:
    """Figures with four digits; of a median with quartiles, the median."""
    value = value["median"] if isinstance(value, dict) and "median" in value else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Results) -> str:
    """The summary, all rows of each script, in a table for each set of columns, and what errors said."""
    lines = ["# deeprelax on a GPU", "", *summary(rows)]
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        if row["script"] not in ("about", "tests", "error", "stopped"):
            cells = {name: cell(value) for name, value in row.items() if name != "script"}
            groups.setdefault((row["script"], *cells), []).append([*cells.values()])
    for (script, *names), found in groups.items():
        lines += [f"## {script}", "", *table(names, found)]
    for row in only(rows, "error"):
        lines += [f"{row['what']}:", "", "```", row["said"].rstrip(), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    rows = load(folder)
    (folder / "gpu.md").write_text(markdown(rows))
    print((folder / "gpu.md").read_text())
    return 1 if wrong(rows) else 3 if not_proven(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
