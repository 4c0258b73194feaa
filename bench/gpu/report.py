"""The results of a run on a GPU as tables and a picture, and whether it proved what it was meant to prove.

    python bench/gpu/report.py [out/gpu]

Reads rows.jsonl, pytest.xml, what compute-sanitizer printed, and stopped.txt; writes gpu.md and bandwidth.png. Exit
status 1 if a backend did not run, a test or a script failed or the sanitizer found something, 3 if something was not
proven.
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

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
MOST_BY_BYTE = 1.0  # time per byte of a step, relative to fused AdamW
HOST = {"cuda": 1.0, "triton": 2.0}  # most time, relative to fused SGD
SANITIZED = ("memcheck-cuda", "memcheck-triton", "racecheck-triton")
UNFINISHED = (124, 127, 137)  # exit statuses that are no failure: no time, no program, killed
# Reasons of tests/gpu/on_gpu.py for skipping a test: of no consequence, and what leaves something unproven.
ALLOWED, NOT_PROVEN = "one GPU", "GPU memory"


def load(folder: Path) -> Results:
    """The rows, without a last line that an interruption truncated, pytest's outcomes and the sanitizer's, and the
    scripts that did not come to their end."""

    def read(name: str) -> str:
        return (folder / name).read_text() if (folder / name).exists() else ""

    written = read("rows.jsonl")
    rows: Results = [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]
    if junit := read("pytest.xml"):
        rows.append({"script": "tests", **outcomes(junit)})
    for name in SANITIZED:
        verdict, said = sanitized(read(f"{name}.txt"))
        rows.append({"script": "sanitizer", "what": f"compute-sanitizer, {name}", "verdict": verdict, "said": said})
    stopped = read("stopped.txt").splitlines()
    return rows + [{"script": "stopped", "what": what, "verdict": verdict_on(what)} for what in stopped]


def verdict_on(said: str) -> str:
    """The verdict on a program that was to end with 0, from a text that ends with its exit status."""
    return "not proven" if int(said.split()[-1]) in UNFINISHED else "failed"


def sanitized(printed: str) -> tuple[str, str]:
    """The verdict on a run, and the reason, from what it printed and its exit status in the last line."""
    if "Device not supported" in printed:  # under gVisor, for example: nothing is seen then
        return "not proven", "Device not supported"
    *lines, status = printed.splitlines() or [""]
    if not status.startswith("exit status"):
        return "not proven", "it did not end"
    said = next((line.strip("= ") for line in reversed(lines) if "SUMMARY" in line), " ".join(lines[-3:]))
    return "passed" if status.split()[-1] == "0" else verdict_on(status), f"{said}; {status}"


def outcomes(junit: str) -> dict[str, Any]:
    """Counts, the names of what failed, and the reasons of what was skipped."""
    counts: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    failed = []
    for case in xml.etree.ElementTree.fromstring(junit).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        counts[kinds[0] if kinds else "passed"] += 1
        if kinds and kinds[0] == "skipped":
            skips[str(next(c.get("message") for c in case if c.tag == "skipped"))] += 1
        elif kinds:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    return {"counts": dict(counts), "failed": failed, "skips": dict(skips)}


def only(rows: Results, script: str, **wanted: Any) -> Results:
    """Those of the script that have these values."""
    return [r for r in rows if r["script"] == script and all(r.get(name) == value for name, value in wanted.items())]


def first(rows: Results, script: str) -> dict[str, Any]:
    """The script's first row; empty without one."""
    return next(iter(only(rows, script)), {})


def of_cycle(rows: Results, name: str, dtype: str, backend: str) -> float | None:
    """Bandwidth of a whole cycle of L as a fraction of a copy's, if all kinds of call were measured."""
    kinds = {r["kind"]: r for r in only(rows, "bandwidth", rule=name, dtype=dtype, backend=backend) if "kind" in r}
    if set(kinds) != set(KINDS):
        return None
    (rule,) = (rule for rule in RULES if rule.name == name)
    moved = rule.per_cycle({kind: r["bytes"] for kind, r in kinds.items()})
    # Each kind's time over that of a copy in the same rounds: bytes by that is the fraction.
    return moved / rule.per_cycle({kind: r["bytes"] / r["bandwidth_ratio"]["median"] for kind, r in kinds.items()})


def judge(rows: Results) -> Results:
    """Every target: promise, bound, whether it is a lower bound, predicted, measured (None if not), met."""
    found: Results = []

    def add(promise: str, bound: float, at_least: bool, measured: float | None, predicted: str = "") -> None:
        met = measured is not None and (measured >= bound if at_least else measured <= bound)
        entry = {"promise": promise, "bound": bound, "at_least": at_least, "measured": measured, "met": met}
        found.append(entry | {"predicted": predicted})

    for (name, dtype), (cuda, triton, predicted) in BANDWIDTHS.items():
        for backend, bound, guess in (("cuda", cuda, predicted), ("triton", triton, "")):
            measured = of_cycle(rows, name, dtype, backend)
            add(f"{name}, {dtype} [{backend}]: bandwidth relative to a copy", bound, True, measured, guess)
    for workload in WORKLOADS:
        for backend in HOST:
            steps = [r for r in only(rows, "steps", backend=backend) if r["workload"].startswith(workload)]
            costs = {r["name"]: 1 / r["bandwidth_ratio"]["median"] for r in steps if not r["name"].startswith("torch")}
            promise = f"{workload} [{backend}]: time of step() per byte relative to AdamW, slowest of {len(RULES)}"
            add(promise, MOST_BY_BYTE, False, max(costs.values()) if len(costs) == len(RULES) else None)
    for backend, bound in HOST.items():
        for new in (False, True):
            timed = only(rows, "host", backend=backend, capturable=False, new_gradients=new)
            ours = [r["by_sgd"] for r in timed if not r["name"].startswith("torch")]
            promise = f"host time of step(), 300 tensors{', new gradients' * new} [{backend}]: relative to SGD, slowest"
            add(promise, bound, False, max(ours, default=None))
    return found


def wrong(rows: Results) -> list[str]:
    """What failed, or did not run."""
    about, tests = first(rows, "about"), first(rows, "tests")
    found = [f"the {name} backend did not run: {why}" for name, why in about.get("why_not", {}).items() if why]
    found += [f"{r['what']} failed" for r in only(rows, "error")]
    found += [r["what"] for r in only(rows, "stopped", verdict="failed")]
    if not tests.get("counts", {}).get("passed"):
        found.append("no GPU test passed")
    found += [f"{name} failed" for name in tests.get("failed", [])]
    for why, n in tests.get("skips", {}).items():
        if why != ALLOWED and not why.startswith(NOT_PROVEN):
            found.append(f"{n} GPU tests were skipped, which nothing allows: {why}")
    return found + [f"{r['what']}: {r['said']}" for r in only(rows, "sanitizer", verdict="failed")]


def not_proven(rows: Results) -> list[str]:
    """What this machine or the time did not allow."""
    skips = first(rows, "tests").get("skips", {})
    found = [f"not proven: {n} GPU tests: {why}" for why, n in skips.items() if why.startswith(NOT_PROVEN)]
    found += [f"not proven: {r['what']}" for r in only(rows, "stopped", verdict="not proven")]
    return found + [f"not proven: {r['what']}: {r['said']}" for r in only(rows, "sanitizer", verdict="not proven")]


def table(headings: list[str], rows: list[list[Any]]) -> list[str]:
    """Markdown, and an empty line; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return [*lines, *("| " + " | ".join(" ".join(str(cell).split()) for cell in row) + " |" for row in rows), ""]


def about_line(rows: Results) -> str:
    """GPU, versions, commit, date."""
    found = first(rows, "about")
    versions = [f"{name} {found.get('versions', {}).get(name)}" for name in ("torch", "triton")]
    shown = [f"{name} {found.get(name)}" for name in ("driver", "kernels", "commit", "date")]
    return f"**{found.get('gpu')}**: {', '.join([*versions, *shown])}"


def targets(entries: Results) -> list[str]:
    """The table of ``judge``."""
    lines = []
    for t in entries:
        measured = "not measured" if t["measured"] is None else f"{t['measured']:.3f}"
        missed = " (missed)" if t["measured"] is not None and not t["met"] else ""
        bound = f"{'≥' if t['at_least'] else '≤'} {t['bound']:g}"
        lines.append([t["promise"], bound, t["predicted"], measured + missed])
    return table(["target", "bound", "predicted", "measured"], lines)


def summary(rows: Results) -> list[str]:
    """The part of the results that the docs show."""
    lines = [about_line(rows), "", *(f"- **{' '.join(said.split())}**" for said in wrong(rows) + not_proven(rows)), ""]
    checks = [["GPU tests", ", ".join(f"{n} {kind}" for kind, n in r["counts"].items())] for r in only(rows, "tests")]
    checks += [[r["what"], f"{r['verdict']}: {r['said']}"] for r in only(rows, "sanitizer")]
    return lines + table(["check", "outcome"], checks) + targets(judge(rows))


def cells(row: dict[str, Any]) -> list[str]:
    """A row's values in order, figures with four digits; of a median with quartiles, the median."""
    plain = [value["median"] if isinstance(value, dict) and "median" in value else value for value in row.values()]
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in plain]


def markdown(rows: Results) -> str:
    """The summary, and all rows of each script, in a table for each set of columns."""
    lines = ["# deeprelax on a GPU", "", *summary(rows)]
    groups: dict[tuple[str, ...], Results] = {}
    for row in rows:
        if row["script"] not in ("about", "tests", "error", "sanitizer", "stopped"):
            groups.setdefault((row["script"], *(name for name in row if name != "script")), []).append(row)
    for (script, *names), found in groups.items():
        shown = [cells({name: row[name] for name in names}) for row in found]
        lines += [f"## {script}", "", *table(names, shown)]
    for row in only(rows, "error"):
        lines += [f"{row['what']}:", "", "```", row["said"].rstrip(), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def draw(rows: Results, path: Path) -> None:
    """Plot the bandwidth of inner calls and of a copy over their size, a panel per dtype; nothing without rows."""
    inner = [r for r in only(rows, "bandwidth", kind=None) if "rule" in r]
    panels = sorted({r["dtype"] for r in inner}, reverse=True)
    if not panels:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 6.5 * len(panels), 5), layout="constrained")
    names = [rule.name for rule in RULES]
    for ax, dtype in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        here = only(inner, "bandwidth", dtype=dtype)
        for rule, backend in dict.fromkeys((r["rule"], r["backend"]) for r in here):
            found = only(here, "bandwidth", rule=rule, backend=backend)
            points = sorted((r["elements"], r["gb_per_s"]) for r in found)
            style = {"linestyle": "-" if backend == "cuda" else "--", "label": f"{rule} [{backend}]"}
            color = f"C{names.index(rule)}" if rule in names else "black"  # of the copy
            ax.plot(*zip(*points), marker=".", color=color, **style)
        ax.set(title=f"inner call, {dtype}", xlabel="elements of one launch", ylabel="GB/s, reads and writes")
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=OUT)
    folder = parser.parse_args().folder
    rows = load(folder)
    (folder / "gpu.md").write_text(markdown(rows))
    print((folder / "gpu.md").read_text())
    try:
        draw(rows, folder / "bandwidth.png")
    except ModuleNotFoundError as error:
        print(f"no picture ({error}): run this again where matplotlib is")
    return 1 if wrong(rows) else 3 if not_proven(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
