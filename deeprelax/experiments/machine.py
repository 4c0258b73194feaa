"""The machine and the versions that a result was had with. Needs nothing beyond torch."""

from __future__ import annotations

import contextlib
import importlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from deeprelax import kernels

PACKAGES = ("deeprelax", "torch", "triton", "torchvision", "numpy", "scikit-learn", "matplotlib", "rich", "click")


def version(package: str) -> str | None:
    """The installed version, or None."""
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


def cpu_name() -> str:
    """As the system calls it; the architecture where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, list[str]]:
    """The one that the cpu backend uses, and all that this build has and this CPU runs; ("", []) without it."""
    if "cpu" not in kernels.available():
        return "", []
    backend: Any = kernels.get("cpu", torch.device("cpu"))
    return backend.instruction_set, list(importlib.import_module("deeprelax._cpu").instruction_sets())


def cuda_kernels() -> str:
    """What the CUDA kernels were built by and for; empty where they were not."""
    try:
        module: Any = importlib.import_module("deeprelax._cuda")
    except ImportError:
        return ""
    return f"nvcc {module.compiler}, for sm_{module.architectures.replace(';', ', sm_')} and PTX of the last"


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """The machine and the versions, as plain values for a JSON file."""
    return {
        "cpu": cpu_name(),
        "instruction_set": instruction_sets()[0],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if version(name)},
    }
