"""What a result was produced with: GPU, driver, versions, commit."""

from __future__ import annotations

import importlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from deeprelax import kernels
from deeprelax.environment import commit, describe

ROOT = Path(__file__).parents[2]


def output(command: list[str]) -> str | None:
    """What a command prints, or None where it does not work."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def about(named: str | None, device: torch.device) -> dict[str, Any]:
    """Plain values. ``named`` is the commit where the files are not in a repository."""
    try:
        built = importlib.import_module("deeprelax._cuda")
    except ImportError:
        built = None
    found: dict[str, Any] = {
        **describe(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": named or commit() or "unknown",
        "cuda": torch.version.cuda,
        "nvcc": getattr(built, "compiler", None),
        "architectures": getattr(built, "architectures", None),
        "driver": None,
        "why_not": {name: kernels.why_not(name) for name in kernels.NAMES},
    }
    fields = "driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    said = output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"])
    if said:
        found["driver"] = said.split(",")[0].strip()
        found["nvidia_smi"] = dict(zip(fields.split(","), (value.strip() for value in said.split(","))))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu_properties"] = {
            name: getattr(properties, name, None)
            for name in ("total_memory", "multi_processor_count", "L2_cache_size", "major", "minor")
        }
    return found
