"""``make gpu`` says what it lacks before it builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def can_build(folder: Path, name: str, found: str | None) -> str:
    """What it says where that package has that version, or where there is none."""
    if found is None:
        setup = f"sys.modules[{name!r}] = None"
    else:
        info = folder / f"{name}-{found}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {found}\n")
        setup = f"sys.path.insert(0, {str(folder)!r})"
    code = f"import sys, runpy; {setup}; runpy.run_path({str(ROOT / 'bench' / 'can_build.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        ("setuptools", "68.1.2", "needs setuptools 77 or newer, and setuptools is 68.1.2"),
        ("pybind11", None, "needs pybind11 2 or newer, and there is no pybind11"),
    ],
)
def test_make_gpu_says_what_it_lacks_to_build_and_what_to_do(
    name: str, found: str | None, said: str, tmp_path: Path
) -> None:
    printed = can_build(tmp_path, name, found)
    assert said in printed
    assert "pip download --no-deps" in printed
    assert "Traceback" not in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_gpu_without_a_gpu_says_so_before_it_builds(tmp_path: Path) -> None:
    assert "torch.cuda.is_available() is False" in can_build(tmp_path, "setuptools", "80.0")
