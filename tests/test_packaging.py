"""What is packed, and what an import from the source folder says."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# As after a plain `pip install .`: the source folder comes first, and nothing maps kernels/ into the package.
FROM_SOURCE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ditable" not in repr(finder)]
sys.path.insert(0, {folder!r})
import deeprelax
"""


def test_an_import_from_the_source_folder_says_what_to_do_in_one_line(tmp_path: Path) -> None:
    for name in ("deeprelax", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = FROM_SOURCE.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ImportError: deeprelax was imported from its source folder")
    assert "pip install -e ." in said


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(folder), "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / file.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def packed(distribution: Path) -> set[str]:
    """The names of the files in it."""
    return {str(path.relative_to(distribution)) for path in distribution.rglob("*") if path.is_file()}


def test_the_source_distribution_holds_a_tree_whose_tests_run(packed: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("not a repository: nothing to compare with")
    left_out = set(tracked.stdout.split()) - packed
    assert {name for name in left_out if not name.startswith(".")} == {"MANIFEST.in"} - packed


def test_the_source_distribution_holds_nothing_that_was_built(packed: set[str]) -> None:
    assert not {name for name in packed if name.endswith((".so", ".pyc", ".o")) or "_build_info" in name}


def test_the_description_for_an_index_needs_no_other_file(distribution: Path) -> None:
    head, _, description = (distribution / "PKG-INFO").read_text(encoding="utf-8").partition("\n\n")
    assert "\nDescription-Content-Type: text/markdown\n" in head
    assert description.startswith("# deeprelax\n")
    assert "transformer: docs/recipes.md. With" in description
    targets = re.findall(r"\]\(([^)]*)\)", description)
    assert targets
    assert all(target.startswith("https://") for target in targets)
