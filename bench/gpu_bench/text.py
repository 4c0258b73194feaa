"""``gpu.md``: what a run has found, as tables; the README's section is part of it."""

from __future__ import annotations

from typing import Any

from gpu_bench.verdict import FAILED, not_proven, wrong

Rows = list[list[str]]


def table(headings: list[str], rows: Rows) -> list[str]:
    """A table in Markdown, and an empty line; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def markdown(data: dict[str, Any]) -> str:
    """Everything."""
    parts = data["parts"]
    lines = ["# deeprelax on a GPU", "", about(data["about"]), ""]
    lines += verdict(data)
    lines += status(parts)
    lines += correctness(parts.get("correctness", {}).get("results", {}))
    lines += targets(data["targets"])
    lines += kernels(parts.get("kernels", {}).get("results", {}))
    lines += steps(parts.get("steps", {}).get("results", {}))
    lines += host(parts.get("host", {}).get("results", {}))
    lines += sweep(parts.get("sweep", {}).get("results", {}))
    lines += errors(parts)
    return "\n".join(lines).rstrip("\n") + "\n"


def about(found: dict[str, Any]) -> str:
    """One line: GPU, versions, commit, date."""
    versions = found.get("versions", {})
    names = ("torch", "triton")
    named = [f"{name} {versions[name]}" for name in names if name in versions]
    tools = [f"driver {found.get('driver')}", f"CUDA {found.get('cuda')}", *named, f"nvcc {found.get('nvcc')}"]
    return f"**{found.get('gpu')}**: {', '.join(tools)}; commit {found.get('commit')}, {found.get('date')}"


def verdict(data: dict[str, Any]) -> list[str]:
    """What is wrong and what is not proven, in bold; nothing where all is well."""
    found = [f"- **{one_line(said)}**" for said in wrong(data) + not_proven(data)]
    return [*found, ""] if found else []


def one_line(said: str) -> str:
    return " ".join(said.split())


def status(parts: dict[str, Any]) -> list[str]:
    rows = []
    for name, part in parts.items():
        left_out = "; ".join(part.get("results", {}).get("left_out", []))
        said = part.get("status", "not begun") + (f"; left out: {left_out}" if left_out else "")
        rows.append([name, said, f"{part['seconds']:.0f}" if "seconds" in part else ""])
    return table(["part", "status", "s"], rows)


def correctness(results: dict[str, Any]) -> list[str]:
    rows = []
    if tests := results.get("tests"):
        counts = ", ".join(f"{n} {outcome}" for outcome, n in tests["outcomes"].items()) or "no outcome"
        counts += "".join(f"; {n} skipped: {reason}" for reason, n in tests.get("skips", {}).items())
        rows.append(["GPU tests", one_line(counts), "passed" if tests["passed"] else FAILED])
    for tool, found in results.get("sanitizer", {}).items():
        rows.append([f"compute-sanitizer, {tool}", found["said"], found["verdict"]])
    return table(["check", "outcome", "verdict"], rows)


def targets(entries: list[dict[str, Any]]) -> list[str]:
    rows = []
    for t in entries:
        measured = "not measured" if t["measured"] is None else f"{t['measured']:.3f}"
        missed = " (missed)" if t["measured"] is not None and not t["met"] else ""
        rows.append([t["promise"], f"{'≥' if t['at_least'] else '≤'} {t['bound']:g}", measured + missed])
    return table(["target", "bound", "measured"], rows)


def microseconds(row: dict[str, Any]) -> str:
    """The median, marked where the device mostly waited for the host."""
    return f"{row['us']['median']:.0f}" + (" (waited for the host)" if row["waited"] > 0.5 else "")


def kernels(results: dict[str, Any]) -> list[str]:
    rows = []
    for r in results.get("rows", []):
        fraction = r["of_copy"]
        rows.append(
            [
                f"{r['rule']} [{r['backend']}]",
                f"{r['configuration']}, {r['kind']}",
                microseconds(r),
                f"{r['gb_per_s']:.0f}",
                f"{fraction['median']:.3f} ({fraction['low']:.3f} to {fraction['high']:.3f})",
                f"{r['copy_gb_per_s']:.0f}",
            ]
        )
    headings = [f"kernel, {results.get('elements', 0):,} elements", "call", "µs", "GB/s", "× copy (quartiles)"]
    lines = table([*headings, "copy's GB/s"], rows)
    cycle = [
        [f"{r['rule']} [{r['backend']}]", r["configuration"], f"{r['us']:.0f}", f"{r['of_copy']:.3f}"]
        for r in results.get("cycles", [])
    ]
    extras = [
        [
            f"{r['extra']} [{r['backend']}]",
            r["configuration"],
            microseconds(r),
            f"{r['of_copy']['median']:.3f}",
            "" if r["by_plain"] is None else f"{r['by_plain']:.3f}",
        ]
        for r in results.get("extras", [])
    ]
    lines += table(["whole cycle of L, mean call", "on", "µs", "× copy"], cycle)
    return lines + table(["extra, no target: EntropySGD, inner call", "on", "µs", "× copy", "time × plain"], extras)


def steps(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            r["workload"],
            f"{r['name']} [{r['backend']}{', graph' * r['captured']}]",
            microseconds(r),
            f"{r['host_us']:.0f}",
            f"{r['gb_per_s']:.0f}",
            f"{r['by_adamw']:.2f}",
            f"{r['by_adamw_per_byte']:.2f}",
        ]
        for r in results.get("rows", [])
    ]
    headings = ["parameters", "mean step of a cycle", "µs", "host µs", "GB/s", "× fused AdamW", "the same per byte"]
    return table(headings, rows)


def host(results: dict[str, Any]) -> list[str]:
    """The target is judged by the rows that say so; "new gradients": in two places in turn, by SGD with the same."""
    rows = [
        [r["name"], f"{r['us']['median']:.1f}", f"{r['by_sgd']:.2f}", "yes" if r["judged"] else ""]
        for r in results.get("rows", [])
    ]
    heading = f"host time of step(), {results.get('tensors', 0)} tensors"
    return table([heading, "µs", "× fused SGD", "the target is judged by it"], rows)


def sweep(results: dict[str, Any]) -> list[str]:
    rows = [
        [r["variant"], f"{r['rule']}, {r['configuration']}", f"{r['us']['median']:.0f}", f"{r['by_built']:.3f}"]
        for r in results.get("rows", [])
    ]
    lines = table(["variant of the CUDA kernels", "inner call", "µs", "time × as built"], rows)
    if said := results.get("triton"):
        lines += ["bench/tune_triton.py:", "", "```", said, "```", ""]
    return lines


def errors(parts: dict[str, Any]) -> list[str]:
    lines = []
    for name, part in parts.items():
        for error in part.get("errors", []):
            lines += [f"{name}, {error['what']}:", "", "```", error["traceback"].rstrip(), "```", ""]
    return lines
