"""The results of a run on a GPU as tables and a picture, and whether it proved what it was meant to prove.

    python bench/gpu/report.py [--out out/gpu]

Reads rows.jsonl and pytest.xml, writes gpu.md and bandwidth.png. Exit status 1 if a backend did not run, a test failed
or the sanitizer found something, 3 if something was not proven.
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from common import OUT, RULES

Results = list[dict[str, Any]]

# Least bandwidth of a whole cycle relative to a copy: rules, dtype, bound by backend. Heat draws noise in every call.
# Then the predictions for an H200, made before any GPU had run this.
BANDWIDTHS: list[tuple[tuple[str, ...], str, dict[str, float]]] = [
    (("HJ", "EntropySGD", "EntropyAdamW"), "fp32", {"cuda": 0.95, "triton": 0.93}),
    (("Heat", "EntropySGD, noise"), "fp32", {"cuda": 0.93, "triton": 0.90}),
    (("HJ", "EntropySGD", "Heat", "EntropySGD, noise", "EntropyAdamW"), "bf16", {"cuda": 0.90, "triton": 0.88}),
]
PREDICTED = {
    ("HJ", "fp32", "cuda"): "0.96 to 1.00",
    ("EntropySGD", "fp32", "cuda"): "0.97 to 1.01",
    ("EntropySGD, noise", "fp32", "cuda"): "0.94 to 0.99",
    ("Heat", "fp32", "cuda"): "0.94 to 0.99",
    ("EntropyAdamW", "fp32", "cuda"): "0.95 to 1.00",
    ("EntropyAdamW", "bf16", "cuda"): "0.92 to 0.98",
    **{(rule, "bf16", "cuda"): "0.94 to 0.99" for rule in ("HJ", "EntropySGD")},
    **{(rule, "bf16", "cuda"): "0.90 to 0.96" for rule in ("EntropySGD, noise", "Heat")},
}
LENGTHS = {rule.name: rule.length for rule in RULES}
MOST_BY_BYTE = 1.0  # time per byte of a step, relative to fused AdamW
HOST = {"cuda": 1.0, "triton": 2.0}  # most time, relative to fused SGD
WORKLOADS = ("resnet50", "decoder-1.3b")
# Reasons of tests/gpu/on_gpu.py for skipping a test: of no consequence, and what leaves something unproven.
ALLOWED, NOT_PROVEN = "one GPU", "GPU memory"


def load(folder: Path) -> Results:
    """The rows, without a last line that an interruption truncated, and pytest's outcomes."""
    lines = (folder / "rows.jsonl").read_text().splitlines() if (folder / "rows.jsonl").exists() else []
    rows: Results = [json.loads(line) for line in lines if line.endswith("}")]
    if (folder / "pytest.xml").exists():
        rows.append({"script": "tests", **outcomes((folder / "pytest.xml").read_text())})
    return rows


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


def of_cycle(rows: Results, rule: str, dtype: str, backend: str) -> float | None:
    """Bandwidth of a whole cycle of L as a fraction of a copy's, if all kinds of call were measured at the largest
    size."""
    found = only(rows, "bandwidth", rule=rule, dtype=dtype, backend=backend)
    most = max((r["elements"] for r in found), default=0)
    kinds = {r["kind"]: r for r in found if r["elements"] == most}
    if set(kinds) != {"first", "inner", "last"}:
        return None
    weights = {"first": 1, "inner": LENGTHS[rule] - 2, "last": 1}
    moved = sum(n * kinds[kind]["bytes"] for kind, n in weights.items())
    # Each kind's time over that of a copy in the same rounds: bytes by that is the fraction.
    return float(moved / sum(n * kinds[k]["bytes"] / kinds[k]["of_copy"]["median"] for k, n in weights.items()))


def judge(rows: Results) -> Results:
    """Every target: promise, bound, whether it is a lower bound, predicted, measured (None if not), met."""
    found: Results = []

    def add(promise: str, bound: float, at_least: bool, measured: float | None, predicted: str = "") -> None:
        met = measured is not None and (measured >= bound if at_least else measured <= bound)
        entry = {"promise": promise, "bound": bound, "at_least": at_least, "measured": measured, "met": met}
        found.append(entry | {"predicted": predicted})

    for names, dtype, bounds in BANDWIDTHS:
        for backend, bound in bounds.items():
            for rule in names:
                predicted = PREDICTED.get((rule, dtype, backend), "")
                promise = f"{rule}, {dtype} [{backend}]: bandwidth relative to a copy"
                add(promise, bound, True, of_cycle(rows, rule, dtype, backend), predicted)
    for workload in WORKLOADS:
        for backend in HOST:
            steps = [r for r in only(rows, "steps", backend=backend) if r["workload"].startswith(workload)]
            values = {r["name"]: r["by_adamw_per_byte"] for r in steps if r["name"] in LENGTHS}
            promise = f"{workload} [{backend}]: time of step() per byte relative to AdamW, slowest of {len(LENGTHS)}"
            add(promise, MOST_BY_BYTE, False, max(values.values()) if len(values) == len(LENGTHS) else None)
    for backend, bound in HOST.items():
        for new in (False, True):
            timed = only(rows, "host", backend=backend, capturable=False, new_gradients=new)
            ours = [r["by_sgd"] for r in timed if not r["name"].startswith("torch")]
            promise = f"host time of step(), 300 tensors{', new gradients' * new} [{backend}]: relative to SGD, slowest"
            add(promise, bound, False, max(ours, default=None))
    return found


def wrong(rows: Results) -> list[str]:
    """What failed, or did not run."""
    about = next(iter(only(rows, "about")), {})
    found = [f"the {name} backend did not run: {why}" for name, why in about.get("why_not", {}).items() if why]
    found += [f"{r['what']} failed" for r in only(rows, "error")]
    tests = only(rows, "tests")
    if not tests or not tests[-1]["counts"].get("passed"):
        found.append("no GPU test passed")
    for each in tests[-1:]:
        found += [f"{name} failed" for name in each["failed"]]
        unknown = {why: n for why, n in each["skips"].items() if why != ALLOWED and not why.startswith(NOT_PROVEN)}
        found += [f"{n} GPU tests were skipped, which nothing allows: {why}" for why, n in unknown.items()]
    checks = only(rows, "sanitizer", verdict="failed")
    return found + [f"compute-sanitizer, {r['tool']} [{r['backend']}]: {r['said']}" for r in checks]


def not_proven(rows: Results) -> list[str]:
    """What this machine or the time did not allow."""
    skips = [each["skips"].items() for each in only(rows, "tests")[-1:]]
    found = [f"not proven: {n} GPU tests: {why}" for each in skips for why, n in each if why.startswith(NOT_PROVEN)]
    done = {(r["tool"], r["backend"]): r for r in only(rows, "sanitizer")}
    for key in (("memcheck", "cuda"), ("memcheck", "triton"), ("racecheck", "triton")):
        said = done[key]["said"] if key in done else "it did not end"
        if key not in done or done[key]["verdict"] not in ("passed", "failed"):
            found.append(f"not proven: compute-sanitizer, {key[0]} [{key[1]}]: {said}")
    return found


def table(headings: list[str], rows: list[list[Any]]) -> list[str]:
    """Markdown, and an empty line; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return [*lines, *("| " + " | ".join(" ".join(str(cell).split()) for cell in row) + " |" for row in rows), ""]


def about_line(rows: Results) -> str:
    """GPU, versions, commit, date."""
    found = next(iter(only(rows, "about")), {})
    versions = ", ".join(f"{name} {found.get('versions', {}).get(name)}" for name in ("torch", "triton"))
    tools = f"driver {found.get('driver, most clocks, power limit')}, CUDA {found.get('cuda')}, {versions}"
    return (
        f"**{found.get('gpu')}**: {tools}, nvcc {found.get('nvcc')}; commit {found.get('commit')}, {found.get('date')}"
    )


def targets(entries: Results) -> list[str]:
    """The table of ``judge``."""
    lines = []
    for t in entries:
        measured = "not measured" if t["measured"] is None else f"{t['measured']:.3f}"
        missed = " (missed)" if t["measured"] is not None and not t["met"] else ""
        lines.append(
            [t["promise"], f"{'≥' if t['at_least'] else '≤'} {t['bound']:g}", t["predicted"], measured + missed]
        )
    return table(["target", "bound", "predicted", "measured"], lines)


def summary(rows: Results) -> list[str]:
    """The part of the results that the docs show."""
    lines = [about_line(rows), "", *(f"- **{' '.join(said.split())}**" for said in wrong(rows) + not_proven(rows)), ""]
    checks = [["GPU tests", ", ".join(f"{n} {kind}" for kind, n in r["counts"].items())] for r in only(rows, "tests")]
    checks += [[f"{r['tool']} [{r['backend']}]", f"{r['verdict']}: {r['said']}"] for r in only(rows, "sanitizer")]
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
        if row["script"] not in ("about", "tests", "error", "sanitizer"):
            groups.setdefault((row["script"], *(name for name in row if name != "script")), []).append(row)
    for (script, *names), found in groups.items():
        shown = [cells({name: row[name] for name in names}) for row in found]
        lines += [f"## {script}", "", *table(names, shown)]
    for row in only(rows, "error"):
        lines += [f"{row['what']}:", "", "```", row["said"].rstrip(), "```", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def draw(rows: Results, path: Path) -> None:
    """Plot the bandwidth of inner calls and of a copy over their size, a panel per dtype; nothing without rows."""
    inner = only(rows, "bandwidth", kind="inner")
    panels = sorted({r["dtype"] for r in inner}, reverse=True)
    if not panels:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(1 + 6.5 * len(panels), 5), sharey=True, squeeze=False)
    for ax, dtype in zip(axes[0], panels):
        here = sorted((r for r in inner if r["dtype"] == dtype), key=lambda r: r["elements"])
        copies = {r["elements"]: r["copy_gb_per_s"] for r in here}
        ax.plot(list(copies), list(copies.values()), color="black", linewidth=2.5, label="copy of as many fp32")
        for rule, backend in dict.fromkeys((r["rule"], r["backend"]) for r in here):
            points = [(r["elements"], r["gb_per_s"]) for r in here if (r["rule"], r["backend"]) == (rule, backend)]
            style = {"linestyle": "-" if backend == "cuda" else "--", "color": f"C{list(LENGTHS).index(rule)}"}
            ax.plot(*zip(*points), marker=".", label=f"{rule} [{backend}]", **style)
        ax.set(title=f"inner call, {dtype}", xlabel="elements of one launch", ylabel="GB/s, reads and writes")
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Write the files, print gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    rows = load(out)
    (out / "gpu.md").write_text(markdown(rows))
    print((out / "gpu.md").read_text())
    draw(rows, out / "bandwidth.png")
    return 1 if wrong(rows) else 3 if not_proven(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
