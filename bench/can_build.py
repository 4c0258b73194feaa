"""Says what ``make gpu`` lacks to build in place, where it fetches nothing; prints the GPU's architecture, "90"."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

NEEDS = {"setuptools": 77, "pybind11": 2, "pytest": 8}  # the least major version: pyproject.toml
ADVICE = """Install it for this Python: {python} -m pip install '{name}>={least}'. Without a network, elsewhere:
    pip download --no-deps -d wheels '{name}>={least}'
and here: {python} -m pip install --no-index --no-deps --target DIR wheels/*.whl; export PYTHONPATH=DIR"""


def lacking(name: str, least: int) -> str:
    """What is wrong with a package, and what to do; empty if nothing is."""
    try:
        found = version(name)
        importlib.import_module(name)
    except (PackageNotFoundError, ImportError):
        found = ""
    if found and int(found.split(".")[0]) >= least:
        return ""
    said = f"{name} is {found}" if found else f"there is no {name}"
    return f"make gpu needs {name} {least} or newer, and {said}. " + ADVICE.format(
        name=name, least=least, python=sys.executable
    )


def architecture() -> str:
    try:
        import torch
    except ImportError as error:
        sys.exit(f"make gpu needs torch, a build for CUDA, in {sys.executable} ({error}); PYTHON= names another Python")
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a GPU and a build of torch for CUDA: torch.cuda.is_available() is False")
    return "{}{}".format(*torch.cuda.get_device_capability())


def main() -> None:
    problems = [problem for name, least in NEEDS.items() if (problem := lacking(name, least))]
    if problems:
        sys.exit("\n".join(problems))
    print(architecture())


if __name__ == "__main__":
    main()
