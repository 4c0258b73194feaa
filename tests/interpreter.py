"""Tests in Triton's interpreter. It is chosen when triton is imported, and other tests need the compiler: so they run
in a separate process, which one test of their file starts; and what those files share."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
FULL_NAN = struct.unpack("<d", b"\xff" * 7 + b"\x7f")[0]  # rounding that adds to its bits makes a zero of it
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), FULL_NAN, 1e-40, -3e-39, 6e-8, 65519.0, 3.3e38, 1e-300]


def run_interpreted(file: str) -> None:
    """Run the tests of that file that are marked ``interpreted``."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", file]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def interpreted(test: Callable[..., None]) -> Callable[..., None] | None:
    """Only for the process that ``run_interpreted`` starts."""
    return test if INTERPRETED else None


def numbers(size: int, dtype: torch.dtype, special: bool) -> Tensor:
    values = torch.randn(size, dtype=torch.float64)
    if special and size:
        count = max(1, size // 8)
        chosen = torch.tensor(random.choices(SPECIAL, k=count), dtype=torch.float64)
        values[torch.randint(size, (count,))] = chosen
    return values.to(dtype)


def at_offset(values: Tensor, offset: int) -> Tensor:
    """A copy that begins ``offset`` elements into its storage."""
    storage = torch.empty(values.numel() + offset, dtype=values.dtype)
    storage[offset:] = values
    return storage[offset:]


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = INTEGERS[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


def patch_once_a_launch() -> None:
    """The interpreter gives the language's functions other meanings at every call of a function of a kernel, in a third
    of all time; for a module, once a launch is enough."""
    from triton.runtime import interpreter

    patch, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_new(fn: Any) -> Any:
        module = id(fn.__globals__)
        scope = interpreter._LangPatchScope() if module in patched else patch(fn)
        patched.add(module)
        return scope

    def call(*args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(*args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_new, call


if INTERPRETED:
    patch_once_a_launch()
