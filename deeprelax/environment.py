"""The machine and the versions that a result was produced with. Needs nothing beyond torch."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deeprelax import kernels

PACKAGES = ("deeprelax", "torch", "triton", "torchvision", "numpy", "scikit-learn", "matplotlib", "rich", "click")
BITS = ("deeprelax", "torch", "triton")  # of these, those that compute a run


def version(package: str) -> str | None:
    """The installed version, or None; torch's with its build (2.11.0+cu130), which the metadata may lack."""
    if package == "torch":
        return str(torch.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """That many CPU threads inside; None leaves their number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reproducible_cublas(device: torch.device) -> None:
    """Make cuBLAS deterministic. It reads the variable when its first handle is created; a value that the user has set
    stays."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _cpu_says() -> dict[str, str]:
    """The first core's entry in /proc/cpuinfo; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_name() -> str:
    """The CPU's name as the system reports it, else its architecture."""
    return _cpu_says().get("model name", "") or platform.processor() or platform.machine()


def cpu_model() -> str:
    """The CPU's model, where its name does not say: "family 25, model 1, stepping 1"; empty where unknown."""
    said = _cpu_says()
    names = {"cpu family": "family", "model": "model", "stepping": "stepping"}
    return ", ".join(f"{name} {said[key]}" for key, name in names.items() if key in said)


def commit(digits: int = 40) -> str | None:
    """The package's commit, where it is in its own repository, and whether something differs from it."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    said = []
    for command in (["rev-parse", f"--short={digits}", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True, timeout=20, cwd=root)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        said.append(done.stdout.strip())
    return f"{said[0]} with changes" if said[1] else said[0]


def instruction_sets() -> tuple[str, list[str]]:
    """The one that the cpu backend uses, and all that this build has and this CPU runs; ("", []) without it."""
    if "cpu" not in kernels.available():
        return "", []
    backend: Any = kernels.get("cpu", torch.device("cpu"))
    return backend.instruction_set, list(importlib.import_module("deeprelax._cpu").instruction_sets())


def cuda_kernels() -> str:
    """The compiler and the architectures of the CUDA kernels; empty if they were not built."""
    try:
        module: Any = importlib.import_module("deeprelax._cuda")
    except ImportError:
        return ""
    return f"nvcc {module.compiler}, for sm_{module.architectures.replace(';', ', sm_')} and PTX of the last"


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """The machine and the versions, as plain values for a JSON file."""
    return {
        "cpu": cpu_name(),
        "cpu_model": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": instruction_sets()[0],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if version(name)},
        "commit": commit(12),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between two descriptions, each with "machine" and "how", that may change a run's bits."""
    names = ("cpu", "cpu_model", "cpu_capability", "instruction_set", "gpu", "commit")
    found = {
        **{name.replace("_", " "): [about["machine"].get(name) for about in (before, now)] for name in names},
        **{name: [about["machine"].get("versions", {}).get(name) for about in (before, now)] for name in BITS},
        **{name: [about.get("how", {}).get(name) for about in (before, now)] for name in now["how"]},
    }
    return [f"{name} {there} before, {here} now" for name, (there, here) in found.items() if there != here]
