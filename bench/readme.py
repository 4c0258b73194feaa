"""Writes the README's figures from the stored results. Run: python bench/readme.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- bench: written by bench/readme.py -->\n", "<!-- /bench -->"


def table(result: dict[str, Any], source: str) -> str:
    """Markdown for one machine."""
    machine = result["machine"]
    lines = [
        f"**{machine['cpu']}, {machine['threads']} threads, fp32, {machine['instruction_set']}** (torch "
        f"{machine['versions']['torch']}, {result['date']}, `{source}`):",
        "",
    ]
    for w in result["workloads"]:
        lines += [
            f"| {w['name']} | ns/parameter | GB/s | × fused AdamW |",
            "|---|---|---|---|",
            *(
                f"| {r['name']} | {r['ns_per_parameter']:.2f} | {r['gb_per_s']:.1f} | {r['by_fused_adamw']:.2f} |"
                for r in w["contestants"]
            ),
            "",
        ]
    lines += ["| target | bound | measured |", "|---|---|---|"]
    for w in result["workloads"]:
        for t in w["targets"]:
            bound = f"{'≥' if t['at_least'] else '≤'} {t['bound']:g}"
            missed = "" if t["met"] else " (missed)"
            lines.append(f"| {t['promise']} | {bound} | {t['measured']:.2f}{missed} |")
    return "\n".join(lines) + "\n"


def rendered() -> str:
    """The README as it should be."""
    text = (ROOT / "README.md").read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    results = sorted((ROOT / "bench" / "results").glob("*/cpu.json"))
    tables = [table(json.loads(path.read_text()), str(path.relative_to(ROOT))) for path in results]
    return head + BEGIN + "\n".join(tables) + END + tail


def main() -> None:
    (ROOT / "README.md").write_text(rendered())


if __name__ == "__main__":
    main()
