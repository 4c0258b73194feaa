"""Tests in Triton's interpreter. It is chosen when triton is imported, and other tests need the compiler: so those that
are ``interpreted`` run in a separate process, which test_triton.py starts."""

import os
from collections.abc import Callable
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def interpreted(test: Callable[..., None]) -> Callable[..., None] | None:
    """The test in the process that has the interpreter; None elsewhere."""
    return test if INTERPRETED else None


def patch_once_a_launch() -> None:
    """At every call of a kernel's function the interpreter patches the language, which takes a third of all time; once
    a launch is enough for a module."""
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
