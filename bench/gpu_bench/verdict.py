"""Whether a run proved what it was to prove: the exit status of ``make gpu``, and the lines of gpu.md that say why."""

from __future__ import annotations

from typing import Any

BACKENDS = ("cuda", "triton")
FAILED, NOT_FINISHED = "**failed**", "**not finished**"
WRONG, NOT_PROVEN = 1, 3  # exit statuses; 2 says that there is no GPU


def missing(about: dict[str, Any]) -> list[str]:
    """The backends that did not run, each with its reason."""
    reasons = about.get("why_not", {})
    return [f"the {name} backend did not run: {reasons[name]}" for name in BACKENDS if reasons.get(name)]


def wrong(data: dict[str, Any]) -> list[str]:
    """What failed, or did not run to its end."""
    found = missing(data["about"])
    for name, part in data["parts"].items():
        found += [f"{name}: {what} broke off" for what in part.get("broke_off", [])]
    part = data["parts"].get("correctness")
    if part is None:
        return found
    if part["status"] != "done":
        found.append(f"correctness: {part['status']}")
    results = part.get("results", {})
    if not results.get("tests", {}).get("passed"):
        found.append("not every GPU test passed")
    for reason, count in results.get("tests", {}).get("not_allowed", {}).items():
        found.append(f"{count} GPU tests were skipped, which nothing allows: {reason}")
    for tool, each in results.get("sanitizer", {}).items():
        if each["verdict"] == FAILED:
            found.append(f"compute-sanitizer, {tool}: {each['said']}")
    return found


def not_proven(data: dict[str, Any]) -> list[str]:
    """What this machine or the time did not allow to be proved."""
    results = data["parts"].get("correctness", {}).get("results", {})
    lacking = results.get("tests", {}).get("not_proven", {})
    found = [f"not proven: {count} GPU tests were skipped: {reason}" for reason, count in lacking.items()]
    for tool, each in results.get("sanitizer", {}).items():
        if each["verdict"] == NOT_FINISHED:
            found.append(f"not proven: compute-sanitizer, {tool}: {each['said']}")
    return found


def exit_status(data: dict[str, Any]) -> int:
    if wrong(data):
        return WRONG
    return NOT_PROVEN if not_proven(data) else 0
