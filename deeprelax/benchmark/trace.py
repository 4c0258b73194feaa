"""What torch's profiler sees of a step: a Chrome trace, and the number of kernels that a call launches."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from deeprelax.benchmark.timing import watched
from deeprelax.files import replacing
from deeprelax.optim.relaxation import Relaxation


@contextlib.contextmanager
def traced(device: torch.device, path: Path) -> Iterator[None]:
    """Write what runs inside to ``path`` as a Chrome trace (for chrome://tracing or Perfetto).

    Raises:
        OSError: it cannot be written there, or not all of it.
    """
    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_device else [])
    with torch.profiler.profile(activities=activities) as found:
        yield
        if on_device:
            torch.cuda.synchronize(device)
    with replacing(path) as partial:
        found.export_chrome_trace(str(partial))
        if not whole(partial):  # it says nothing when it cannot write
            raise OSError(f"torch's profiler could not write all of {path}; is the disk full?")


def whole(trace: Path) -> bool:
    """Whether the file is there to its end."""
    with (
        contextlib.suppress(OSError, EOFError, ValueError),
        (gzip.open if trace.suffix == ".gz" else open)(trace) as file,
    ):
        json.load(file)
        return True
    return False


def write_trace(opt: Relaxation, kinds: Sequence[str], device: torch.device, path: Path) -> None:
    """A Chrome trace of two cycles, with a range for every call, named after its kind, and one in it for every run of
    a backend. A path that ends in .gz is compressed."""
    with watched(opt, lambda: record_function("backend.run")), traced(device, path):
        for kind in (*kinds, *kinds):
            with record_function(f"{type(opt).__name__}: {kind} call"):
                opt.step()


def kernels_launched(opt: Relaxation, kinds: Sequence[str], device: torch.device) -> dict[str, int]:
    """The device's kernels by kind of call, over one cycle."""
    counts = {}
    for kind in (*kinds, *kinds):  # the profiler's own start may fall into the first cycle: the second one counts
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            with traced(device, path):
                opt.step()
            counts[kind] = kernels_in(json.loads(path.read_text()))
    return counts


def kernels_in(trace: dict[str, Any]) -> int:
    """The number of kernels in a Chrome trace, without copies and fills."""
    return sum(event.get("cat") == "kernel" for event in trace["traceEvents"])
