"""Writes docs/reproduction.md from the stored results. Run: python tools/reproduction.py"""

from __future__ import annotations

from pathlib import Path

from deeprelax.experiments.table1.reproduction import rendered

ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    (ROOT / "docs" / "reproduction.md").write_text(rendered(ROOT / "bench" / "results"), encoding="utf-8")
