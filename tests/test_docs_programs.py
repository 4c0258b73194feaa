"""The programs on the pages of the docs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    "index.md",
    "settings.md",
    "recipes.md",
    "evaluation.md",
    "landscape.md",
    "graphs.md",
    "memory.md",
    "surprises.md",
)
NOT_RUN = {"workers.md"}  # needs torchrun: tests/distributed
ELSEWHERE = {"trainers.md"}  # tests/integrations


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert programs
    namespace: dict[str, object] = {"__name__": "__main__"}
    for program in programs:
        exec(compile(program, page, "exec"), namespace)


def test_every_page_with_a_program_is_run_somewhere() -> None:
    found = {path.name for path in DOCS.glob("*.md") if "```python" in path.read_text()}
    assert found == {*PAGES, *NOT_RUN, *ELSEWHERE}
