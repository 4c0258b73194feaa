"""Reports within seconds what ``make gpu`` lacks, which downloads nothing; prints the GPU's architecture, "90"."""

from __future__ import annotations

import os
import site
import sys
from importlib.metadata import distributions

# The least major version: pyproject.toml.
NEEDS = {"setuptools": 77, "pybind11": 2, "pytest": 8, "pytest-xdist": 3, "pytest-timeout": 2}
ADVICE = """Install it for this Python: {python} -m pip install '{name}>={least}'. Without a network, elsewhere:
    pip download --no-deps -d wheels '{name}>={least}'
and here: {python} -m pip install --no-index --no-deps --target DIR wheels/*.whl; export PYTHONPATH=DIR"""
READ_ONLY = """make gpu installs in place, and {folder} cannot be written: {python} -m venv --system-site-packages DIR,
then make gpu PYTHON=DIR/bin/python"""


def lacking(name: str, least: int) -> str:
    """What is wrong with a package, and what to do; empty if nothing is."""
    found = next((installed.version for installed in distributions(name=name)), "")
    if found and int(found.split(".")[0]) >= least:
        return ""
    said = f"{name} is {found}" if found else f"no {name}"
    advice = ADVICE.format(name=name, least=least, python=sys.executable)
    return f"make gpu needs {name} {least} or newer, and {said}. {advice}"


def main() -> None:
    """Exit with a message if something is missing."""
    problems = [problem for name, least in NEEDS.items() if (problem := lacking(name, least))]
    folder = site.getsitepackages()[0]
    if not os.access(folder, os.W_OK):
        problems.append(READ_ONLY.format(folder=folder, python=sys.executable))
    try:
        import torch

        if not torch.cuda.is_available():
            problems.append("make gpu needs a GPU and a build of torch for CUDA: torch.cuda.is_available() is False")
    except ImportError as error:
        problems.append(f"make gpu needs torch, a build for CUDA, in {sys.executable} ({error})")
    if problems:
        sys.exit("\n".join(problems))
    print("{}{}".format(*torch.cuda.get_device_capability()))


if __name__ == "__main__":
    main()
