"""Imports point one way, from the command line down to the kernels, and no file outgrows its subject."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"deeprelax": ROOT / "deeprelax", "deeprelax.kernels": ROOT / "kernels"}

# What the modules of each room may import: rooms of deeprelax, their own left out.
MAY_IMPORT = {
    "kernels": {"_cpu", "_cuda", "_build_info"},
    "optim": {"kernels"},
    "files": set(),
    "terminal": set(),
    "environment": {"kernels"},
    "benchmark": {"optim", "kernels", "environment", "files"},
    "batchnorm": set(),
    "integrations": {"optim", "kernels"},
    "experiments": {"optim", "kernels", "environment", "files", "terminal", "batchnorm"},
    "pde": {"optim", "kernels", "files"},
    "cli": {"optim", "kernels", "environment", "files", "terminal", "benchmark", "experiments", "pde"},
}
LONGEST = 400


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(module: str, everywhere: bool) -> set[str]:
    """Modules of the package that the module imports, in functions too if ``everywhere``."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            names = [n if (n := f"{start}.{alias.name}") in MODULES else start for alias in node.names]
        found |= {name for name in names if name.split(".")[0] == "deeprelax"}
    return found - {module}


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m) in MAY_IMPORT))
def test_a_module_imports_only_from_folders_below_its_own(module: str) -> None:
    # The package itself is imported for its public optimizers.
    rooms = {room(name) or "optim" for name in imports(module, everywhere=True)}
    assert rooms - {room(module)} <= MAY_IMPORT[room(module)]


def test_every_folder_has_a_rule_about_what_it_may_import() -> None:
    assert {room(module) for module in MODULES} - {"", "__main__", "_build_info"} == MAY_IMPORT.keys()


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({m: imports(m, everywhere=False) - {"deeprelax"} for m in MODULES}).prepare()


def test_a_tests_name_is_a_promise_of_at_most_70_characters() -> None:
    names = [n for path in (ROOT / "tests").rglob("*.py") for n in re.findall(r"def (test_\w+)", path.read_text())]
    assert len(names) > 800
    assert [name for name in names if len(name) > 70] == []


@pytest.mark.parametrize("suffixes", [{".py"}, {".cu", ".cpp", ".h"}], ids=["Python", "C++"])
def test_no_file_is_longer_than_400_lines(suffixes: set[str]) -> None:
    folders = ["deeprelax", "kernels", "csrc", "bench", "tools", "tests", "examples"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert len(files) > 20
    assert not {str(p.relative_to(ROOT)) for p in files if len(p.read_text().splitlines()) > LONGEST}
