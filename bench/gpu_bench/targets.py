"""What the GPU kernels are to reach, each with what was measured.

Heat draws noise in every call, so it stands with the rules with noise. A kernel is judged by its whole cycle.
"""

from __future__ import annotations

from typing import Any

# Least fraction of the copy: rules, configuration, bound by backend.
BANDWIDTHS: list[tuple[tuple[str, ...], str, dict[str, float]]] = [
    (("HJ", "EntropySGD", "EntropyAdamW"), "fp32", {"cuda": 0.95, "triton": 0.93}),
    (("Heat", "EntropySGD, noise"), "fp32", {"cuda": 0.93, "triton": 0.90}),
    (("HJ", "EntropySGD", "Heat", "EntropySGD, noise", "EntropyAdamW"), "bf16", {"cuda": 0.90, "triton": 0.88}),
]
RULES = ("EntropySGD", "EntropySGD, noise", "HJ", "Heat", "EntropyAdamW")
MOST_TIME_PER_BYTE = 1.0  # by fused AdamW's
HOST = {"cuda": 1.0, "triton": 2.0}  # most time, by fused SGD's
NEW = ", new gradients"  # of the host part's rows
WORKLOADS = ("resnet50", "decoder-1.3b")


def judge(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target in order: promise, bound, whether at least that much, measured (None: it was not), met."""
    found: list[dict[str, Any]] = []

    def add(promise: str, bound: float, at_least: bool, values: list[float]) -> None:
        # Of several values the worst one counts.
        measured = (min(values) if at_least else max(values)) if values else None
        met = measured is not None and (measured >= bound if at_least else measured <= bound)
        entry = {"promise": promise, "bound": bound, "at_least": at_least, "measured": measured, "met": met}
        found.append(entry)

    def rows(part: str, key: str = "rows") -> list[dict[str, Any]]:
        measured: list[dict[str, Any]] = parts.get(part, {}).get("results", {}).get(key, [])
        return measured

    for rules, configuration, bounds in BANDWIDTHS:
        for backend, bound in bounds.items():
            for rule in rules:
                key = (backend, rule, configuration)
                of_copy = [
                    r["of_copy"]
                    for r in rows("kernels", "cycles")
                    if (r["backend"], r["rule"], r["configuration"]) == key
                ]
                add(f"{rule}, {configuration} [{backend}]: bandwidth by a copy's", bound, True, of_copy)
    for workload in WORKLOADS:
        for backend in HOST:
            by_adamw = [
                r["by_adamw_per_byte"]
                for r in rows("steps")
                if (r["backend"], r["captured"]) == (backend, False)
                and r["workload"].startswith(workload)
                and r["name"] in RULES
            ]
            complete = by_adamw if len(by_adamw) == len(RULES) else []
            promise = f"{workload} [{backend}]: time of step() per byte by fused AdamW's, slowest of {len(RULES)}"
            add(promise, MOST_TIME_PER_BYTE, False, complete)
    for backend, bound in HOST.items():
        # Gradients that stay where they are, and such as lie elsewhere after a step: for both it has to be kept.
        for new in ("", NEW):
            by_sgd = [r["by_sgd"] for r in rows("host") if r["name"].endswith(f"[{backend}]{new}")]
            complete = by_sgd if len(by_sgd) == 3 else []
            promise = f"host time of step(), 300 tensors{new} [{backend}]: by fused SGD's, slowest of 3"
            add(promise, bound, False, complete)
    return found
