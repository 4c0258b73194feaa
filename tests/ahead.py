"""Triton without a GPU: how it specialises a launch's arguments, and a driver that notes what would be compiled."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton_binaries import bind

from deeprelax.kernels.triton import clock, kernels
from deeprelax.kernels.triton.backend import Launch

H100 = GPUTarget("cuda", 90, 32)


def specialization(launch: Launch) -> dict[str, Any]:
    """For each argument by name: how Triton specialises a kernel for the value that the launch has."""
    return dict(zip((p.name for p in launch.kernel.params), bind(launch, H100)[2], strict=True))


class Driver:
    """Takes the place of a GPU's: Triton binds and looks up kernels as it would there, but they are neither compiled
    nor run.

    Attributes:
        compiled: names of the kernels that had to be compiled, in order.
        launched: how many launches there were.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled: list[str] = []
        self.launched = 0
        monkeypatch.setattr("triton.runtime.driver._active", self)
        monkeypatch.setattr("triton.compiler.compile", self._compile)
        for kernel in (kernels.update, *clock.TICKS.values()):
            monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return H100

    def _compile(self, source: Any, **_: Any) -> Any:
        self.compiled.append(source.name)
        return SimpleNamespace(
            launch_metadata=lambda *_: None, run=self._run, function=None, packed_metadata=None, name=source.name
        )

    def _run(self, *_: Any) -> None:
        self.launched += 1
