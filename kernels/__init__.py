"""Backends: what runs an update rule on which device.

``available()`` names those that work here, ``why_not(name)`` says what one of the others lacks, ``get(name, device)``
returns a backend. All of them return the bits of ``eager``.
"""

from __future__ import annotations

import importlib
import os
from array import array
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .abi import Flag, Hyper, Scalars
from .clock import ClockMemory, Tick
from .noise import Draw
from .reference import Eager
from .scalars import RULES, CycleState, Rule
from .table import Table, memory_order

__all__ = [
    "NAMES",
    "RULES",
    "Backend",
    "ClockMemory",
    "CycleState",
    "Draw",
    "Flag",
    "Hyper",
    "Rule",
    "Scalars",
    "Table",
    "Tick",
    "Update",
    "available",
    "get",
    "memory_order",
    "why_eager",
    "why_not",
]

NAMES = ("cpu", "cuda", "triton", "eager")
OLDEST_TRITON = (3, 6)

# For each type of device, what "auto" tries before "eager": the first that works.
ORDER = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


class Update(Protocol):
    """One launch: a rule bound to a table of tensors and its state buffers."""

    def run(self, scalars: Scalars, grads: list[Tensor | None], addresses: array[int]) -> None:
        """One update of every weight of the table, in place.

        Args:
            scalars: of this call. They are read before this returns.
            grads: for each weight its gradient, in the weight's memory layout, or None.
            addresses: of the gradients, 0 for None.
        """

    def run_ticked(self, tick: Tick, grads: list[Tensor | None], addresses: array[int]) -> None:
        """``run`` with the scalars that ``Backend.tick`` has derived from the clock of a captured step."""


class Backend(Protocol):
    """Runs update rules in place."""

    name: str
    capturable: bool  # whether a CUDA graph of tick and run_ticked can be captured

    def bind(self, rule: Rule, table: Table, buffers: dict[str, Tensor], capturable: bool = False) -> Update:
        """Prepare everything of an update that stays the same from call to call.

        Args:
            rule: the update rule.
            table: the weights.
            buffers: flat state buffers by name: "x", the rule's ``acc`` and, if it has them, "y",
                "momentum_buffer" and "inner_momentum_buffer".
            capturable: also prepare what ``run_ticked`` needs and cannot create during a capture.
        """

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of a group's next call from its clock, and advance the clock: ``Tick.on_host``."""


@cache
def _load(name: str) -> tuple[Backend | None, str]:
    """The backend or None, and the reason for None."""
    if name == "eager":
        return Eager(), ""
    if name == "cpu":
        try:
            module = importlib.import_module("deeprelax._cpu")
        except ImportError as error:
            return None, _why_no_cpu(error)
        from .cpu import NativeCPU

        try:
            return NativeCPU(module), ""
        except RuntimeError as error:
            return None, str(error)
    if name == "cuda":
        try:
            module = importlib.import_module("deeprelax._cuda")
        except ImportError as error:
            return None, _why_no_cuda(error)
        from .cuda import Cuda

        return Cuda(module), ""
    if name == "triton":
        try:
            version = str(importlib.import_module("triton").__version__)
            # Triton 3.5 returns 0 as the root of a denormal.
            if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
                return None, f"looked for triton 3.6 or newer and found {version}; pip install 'triton>=3.6'"
            from .triton.backend import Triton
        except ImportError as error:
            return None, f"looked for the package 'triton' ({error}); pip install triton"
        return Triton(), ""
    raise ValueError(f"no backend is called {name!r}; there are {', '.join(NAMES)}, and 'auto'")


def _problem(kind: str) -> str:
    """What went wrong when the package was built."""
    try:
        return str(getattr(importlib.import_module("deeprelax._build_info"), f"{kind}_PROBLEM"))
    except (ImportError, AttributeError):
        return "the package was never built; run pip install in its folder"


def _why_no_cpu(error: ImportError) -> str:
    found = f"looked for the compiled module deeprelax._cpu ({error})"
    again = "install g++, then in the source folder: pip install --force-reinstall --no-deps ."
    return f"{found}; at installation: {_problem('CPU')}; {again} (or make clean, then make train)"


def _why_no_cuda(error: ImportError) -> str:
    found = f"looked for the compiled module deeprelax._cuda ({error})"
    again = "put nvcc on the PATH or set CUDA_HOME, then: DEEPRELAX_CUDA=1 pip install --force-reinstall --no-deps ."
    return f"{found}; at installation: {_problem('CUDA')}; {again}"


def _why_no_gpu() -> str:
    """Why the CUDA kernels, which were built, cannot run on any GPU here. Empty if they can."""
    module = importlib.import_module("deeprelax._cuda")
    problem = module.problem()
    if torch.cuda.is_available() and not problem:
        each = [_why_no_code(module.architectures, i) for i in range(torch.cuda.device_count())]
        return "" if "" in each else "; ".join(each)
    torchs = "torch.cuda.is_available() is False"
    if not problem:
        return f"looked for a GPU: the driver has one, but {torchs}; install a build of torch for CUDA"
    if torch.cuda.is_available():
        return (
            f"looked for a driver that supports the CUDA version of the kernels ({module.compiler}): {problem}; "
            f"torch works here, so build with its version, CUDA {torch.version.cuda}"
        )
    return f"looked for a GPU for the kernels, which are built: {problem}; {torchs}"


@cache
def _why_no_code(architectures: str, index: int) -> str:
    """Why that GPU cannot run code for those architectures, the newest of which is included as PTX, too. Empty if it
    can."""
    built = [int(a.rstrip("af")) for a in architectures.split(";")]
    major, minor = torch.cuda.get_device_capability(index)
    ours = 10 * major + minor
    if ours >= max(built) or any(a // 10 == major and a <= ours for a in built):
        return ""
    return (
        f"looked for code for {torch.cuda.get_device_name(index)} (sm_{ours}) in the kernels, which are built for "
        f"sm_{architectures.replace(';', ', sm_')}; build with DEEPRELAX_CUDA_ARCHS={ours}"
    )


def _why_not_on(name: str, device: torch.device) -> str:
    """Why a backend that works here does not support tensors on that device. Empty if it does."""
    if name == "cpu" and device.type != "cpu":
        return f"it is for CPU tensors, and these are on {device}"
    if name == "cuda" and device.type != "cuda":
        return f"it is for NVIDIA GPUs, and these tensors are on {device}"
    if name == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return _why_no_code(importlib.import_module("deeprelax._cuda").architectures, index)
    if name == "triton" and device.type == "cpu" and not _interpreted():
        return "it is for GPU tensors, and these are on the CPU; TRITON_INTERPRET=1 runs it there, slowly"
    return ""


def why_not(name: str) -> str:
    """Why the backend does not work here: what was looked for and what to do. Empty if it works.

    Raises:
        ValueError: there is no backend of that name.
    """
    backend, reason = _load(name)
    if backend is not None and name == "cuda":
        return _why_no_gpu()
    if backend is not None and name == "triton" and not torch.cuda.is_available() and not _interpreted():
        return "looked for a GPU (torch.cuda.is_available() is False); TRITON_INTERPRET=1 runs it on the CPU, slowly"
    return reason


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> list[str]:
    """Names of the backends that work here."""
    return [name for name in NAMES if not why_not(name)]


def get(name: str, device: torch.device) -> Backend:
    """The backend for tensors on ``device``.

    Args:
        name: "auto" (the environment's ``DEEPRELAX_BACKEND``, else the fastest that works) or one of ``NAMES``.
        device: the weights' device.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: it does not work here, or not on that device.
    """
    if name == "auto":
        name = os.environ.get("DEEPRELAX_BACKEND", "auto")
    if name == "auto":
        order = ORDER.get(device.type, ())
        name = next((n for n in order if not why_not(n) and not _why_not_on(n, device)), "eager")
    reason = why_not(name) or _why_not_on(name, device)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot be used: {reason}")
    backend, _ = _load(name)
    assert backend is not None
    return backend


def why_eager(device: torch.device) -> str:
    """Why "auto" falls back to the slow reference for tensors on a device that a compiled backend is made for. Empty if
    it does not, or if ``DEEPRELAX_BACKEND`` asks for it."""
    if os.environ.get("DEEPRELAX_BACKEND", "auto") != "auto":
        return ""
    reasons = {n: why_not(n) or _why_not_on(n, device) for n in ORDER.get(device.type, ())}
    return "" if "" in reasons.values() else "; ".join(f"{n}: {reason}" for n, reason in reasons.items())
