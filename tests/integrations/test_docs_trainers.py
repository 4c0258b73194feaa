"""The programs of docs/trainers.md run as they stand."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import torch._dynamo

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
PROGRAMS = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def test_every_section_of_the_page_has_its_program() -> None:
    assert len(PROGRAMS) == PAGE.read_text().count("```python") == PAGE.read_text().count("\n## ")


@pytest.mark.parametrize("section", PROGRAMS)
def test_the_program_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), torch._dynamo.config.patch(trace_autograd_ops=False):  # a program switches it on
        warnings.filterwarnings("error", message=".*written to by other code")
        exec(compile(PROGRAMS[section], section, "exec"), {"__name__": "__main__"})
