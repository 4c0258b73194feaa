"""Writes docs/theory.md: every statement measured, its numbers stored, its picture drawn, its text filled in.

Run: python tools/theory.py           measures (half a minute of one core), then writes numbers, pictures and page
     python tools/theory.py --stored  pictures and page from the stored numbers
"""

from __future__ import annotations

import argparse
import io
import json
import re
import textwrap
import time
from pathlib import Path
from typing import Any

from PIL import Image

from deeprelax.pde.theory import STATEMENTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "theory.md"
FOLDER = ROOT / "docs" / "theory"
NUMBERS = FOLDER / "numbers.json"

HEAD = """# The paper's statements, checked numerically

Written by `python tools/theory.py` from `docs/theory/numbers.json`; nothing is typed in by hand. The tests
(`tests/pde/test_theory.py`) call the same functions of `deeprelax/pde/theory/` and hold their numbers against what the
theory says. ± is one standard error, [ ] a 95 % confidence interval. Where the print of the paper is inconsistent, a
sentence in bold says so.

Throughout, √T dW is noise of temperature T (the paper's dW is T = 1), δ is the viscosity of u = −δ log(G_{δγ} ∗
exp(−f/δ)), and T = 2δ: local entropy (2) has δ = 1 and takes T = 2.
"""


def rounded(value: Any) -> Any:
    """``value`` with floats at six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def wrapped(text: str) -> str:
    """``text`` in lines of at most 120 characters, but for tables, and with minus signs before numbers. In a formula an
    asterisk does not begin italics, nor a plus at the start of a line a list: ** for bold is all that is Markdown's."""
    text = re.sub(r"(?<!\*)\*(?!\*)", r"\\*", text).replace(" + ", "\0+ ")
    parts = re.sub(r"(?<![\w-])-(?=\d)", "−", text).split("\n\n")
    return "\n\n".join(
        part if part.startswith("|") else textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False)
        for part in parts
    ).replace("\0", " ")


def rendered(numbers: dict[str, Any]) -> str:
    """The page."""
    sections = [HEAD]
    for statement in STATEMENTS:
        picture = f"![{statement.title}](theory/{statement.key}.png)"
        sections.append(f"## {statement.title}\n\n{wrapped(statement.tell(numbers[statement.key]))}\n\n{picture}\n")
    return "\n".join(sections)


def draw(numbers: dict[str, Any]) -> None:
    """The pictures, in a palette of 64 colours: a third of the size."""
    for statement in STATEMENTS:
        buffer = io.BytesIO()
        statement.figure(numbers[statement.key]).savefig(buffer, dpi=110)
        image = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        image.save(FOLDER / f"{statement.key}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", action="store_true", help="measure nothing")
    if not parser.parse_args().stored:
        numbers = {}
        for statement in STATEMENTS:
            start = time.perf_counter()
            numbers[statement.key] = rounded(statement.measure())
            print(f"{statement.key:12} {time.perf_counter() - start:5.1f} s")
        FOLDER.mkdir(exist_ok=True)
        NUMBERS.write_text(json.dumps(numbers, indent=None, ensure_ascii=False).replace('}, "', '},\n"') + "\n")
    stored = json.loads(NUMBERS.read_text())
    draw(stored)
    PAGE.write_text(rendered(stored))


if __name__ == "__main__":
    main()
