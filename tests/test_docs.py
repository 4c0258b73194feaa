"""The map from the paper's equations to the code leads where it says."""

import re
from pathlib import Path
from typing import Any

import pytest
import readme
import torch

import deeprelax
from deeprelax import integrations
from deeprelax.experiments.table1.reproduction import rendered

ROOT = Path(__file__).parent.parent
COLUMN_FILES = {2: "kernels/reference.py", 4: "kernels/triton/rules.py"}


def places() -> list[tuple[str, str]]:
    """(file, name) of every cell of the table."""
    found = []
    for line in (ROOT / "docs" / "equations.md").read_text().splitlines():
        if not line.startswith("| ") or line.startswith("| the paper"):
            continue
        for column, cell in enumerate(line.strip("|").split("|")):
            quoted = re.findall(r"`([^`]+)`", cell)
            if column == 0 or not quoted:
                continue
            file = quoted[0] if "/" in quoted[0] else COLUMN_FILES[column]
            found.append((file, quoted[-1]))
    return found


def test_the_map_has_every_rule_in_every_language():
    assert len(places()) > 30


@pytest.mark.parametrize(("file", "name"), sorted(set(places())))
def test_a_name_on_the_map_is_in_its_file(file: str, name: str):
    assert re.search(rf"\b{re.escape(name)}\b", (ROOT / file).read_text()), f"{name} is not in {file}"


def test_the_page_on_reproduction_is_that_of_the_stored_results():
    results = ROOT / "bench" / "results"
    assert list(results.glob("*/reproduction/runs/*.jsonl"))
    assert (ROOT / "docs" / "reproduction.md").read_text() == rendered(results)


def test_the_readmes_figures_are_those_of_the_stored_results():
    assert list((ROOT / "bench" / "results").glob("*/cpu.json"))
    for page in readme.PAGES:
        assert (ROOT / page).read_text() == readme.rendered(page)


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/equations.md", "docs/theory.md", "docs/benchmarks.md"],
)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(
        r"\b(?:tests|bench|tools|deeprelax|kernels|csrc)/[\w/]+\.(?:py|h|cu|cpp|md)\b", (ROOT / page).read_text()
    )
    assert not {name for name in named if not (ROOT / name).exists()}


def test_the_page_on_the_api_has_every_public_name() -> None:
    """A module on it shows its own: ruff asks for the docstrings without which it would not."""
    expected = {f"deeprelax.{name}" for name in deeprelax.__all__ if name != "kernels"}
    expected |= {f"kernels.{name}" for name in deeprelax.kernels.__all__}
    glue = {path.stem for path in Path(integrations.__path__[0]).glob("*.py")} - {"__init__", "saving"}
    expected |= {f"deeprelax.integrations.{name}" for name in glue}
    expected |= {"deeprelax.pde", "deeprelax.optim.relaxation.Relaxation", "deeprelax.optim.schedules"}
    expected |= {"deeprelax.optim.diagnostics.diagnostics"}  # a method of all of them
    assert set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)) == expected


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    missing = {target for target in targets if "://" not in target and not (page.parent / target).exists()}
    assert not missing


def kept(build: Any, dtype: torch.dtype) -> float:
    """Bytes of state per element after two steps, of the optimizer that ``build`` makes."""
    p = torch.nn.Parameter(torch.randn(4096).to(dtype))
    opt = build(p)
    for _ in range(2):
        p.grad = torch.randn_like(p)
        opt.step()
    owners = [opt.outer] if hasattr(opt, "outer") else [opt]
    tensors = [t for owner in owners for t in owner.state[p].values() if t.numel() > 1]
    return sum(t.numel() * t.element_size() for t in tensors) / p.numel()


MEMORY = re.findall(
    r"^\| `([\w.]+)\((\S*?)\)`.*\| (\d+) \| (\d+) \|$", (ROOT / "docs/memory.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("name", "arguments", "wide", "narrow"), MEMORY)
def test_the_memory_table_is_what_optimizers_keep(name: str, arguments: str, wide: str, narrow: str) -> None:
    def build(p: torch.nn.Parameter) -> Any:
        if arguments == "inner":
            return deeprelax.OuterLoop(torch.optim.SGD([p], lr=0.1))
        kind = getattr(torch.optim, name.removeprefix("torch.optim.")) if "." in name else getattr(deeprelax, name)
        return kind([p], **({"momentum": 0.9, "lr": 0.1} if arguments else {}))

    assert [kept(build, torch.float32), kept(build, torch.bfloat16)] == [int(wide), int(narrow)]


def test_the_memory_table_has_every_optimizer() -> None:
    names = {name for name, *_ in MEMORY}
    assert {name for name in deeprelax.__all__ if name[0].isupper()} <= names
