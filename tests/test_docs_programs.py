"""The programs on the pages run as they stand, and the command line takes their commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from workers import launched

from deeprelax.cli.main import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (
    "docs/index.md",
    "docs/settings.md",
    "docs/recipes.md",
    "docs/evaluation.md",
    "docs/landscape.md",
    "docs/graphs.md",
    "docs/memory.md",
    "docs/surprises.md",
    "README.md",
)
IN_A_GROUP = {"docs/workers.md": "ElasticSGD", "docs/sharded.md": "EntropySGD"}
ELSEWHERE = {"docs/trainers.md"}  # tests/integrations
# What the README and the page on workers leave to the reader.
GIVEN = """
import torch
model, loss_fn = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
loader = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(7)]
own_share_of_the_data, validate = lambda rank: loader, lambda model: None
"""


def programs(page: str) -> list[str]:
    """The programs of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert programs(page)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for program in [GIVEN] * (page == "README.md") + programs(page):
        exec(compile(program, page, "exec"), namespace)


@pytest.mark.parametrize("page", IN_A_GROUP)
def test_a_program_for_several_processes_runs_on_one(page: str, tmp_path: Path) -> None:
    # The second program of workers.md needs torchft's lighthouse; tests/distributed/test_torchft.py has its steps.
    (tmp_path / "program.py").write_text("\n".join([GIVEN, programs(page)[0], "print(opt)"]))
    (said,) = launched(1, tmp_path / "program.py", folder=tmp_path)
    assert IN_A_GROUP[page] in said


def test_every_page_with_a_program_is_run_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), ROOT / "README.md"]
    found = {str(path.relative_to(ROOT)) for path in pages if "```python" in path.read_text()}
    assert found == {*PAGES, *IN_A_GROUP, *ELSEWHERE}


def commands() -> list[str]:
    """The commands in the README's and the pages' code blocks that name no language."""
    found = []
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        for block in re.findall(r"```\n(.*?)```", path.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [command[1] for line in lines if (command := re.search(r"^(?:.*-m )?deeprelax (.+)", line))]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("line", commands())
def test_a_command_on_a_page_is_valid(line: str) -> None:
    command: click.Command = main
    words = shlex.split(line, comments=True)
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(line, words)  # parses and checks, and runs nothing


def test_there_are_commands_on_the_pages() -> None:
    assert len(commands()) > 5
