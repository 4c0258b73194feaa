"""Times a step, kernels and host apart: on the CPU, and on a device that runs asynchronously."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch

from deeprelax.kernels import Update
from deeprelax.optim.relaxation import Relaxation

Step = Callable[[], object]


def alternate(steps: Mapping[Any, Step], rounds: int) -> None:
    """Run each once, then all of them in every round, in a random order from a fixed seed: a step that always followed
    the one that disturbs the caches most would look slow."""
    for step in steps.values():
        step()
    order, draws = list(steps), random.Random(0)
    for _ in range(rounds):
        draws.shuffle(order)
        for name in order:
            steps[name]()


class Sample(NamedTuple):
    """One step.

    Attributes:
        kernel: seconds in kernels. On the CPU those of a backend's run, 0 for other optimizers.
        host: seconds of step() on the host; on the CPU without the kernels.
        cost: seconds that the step takes: kernel + host on the CPU, kernel on a device.
        launches: runs of a backend.
        waited: the device was idle while the host was in step(), so that ``kernel`` includes waiting.
    """

    kernel: float
    host: float
    cost: float
    launches: int
    waited: bool = False


class Watch:
    """The total time and the number of runs of an optimizer's backends."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.runs = 0


class Watched:
    """A bucket's update that records every run on a watch.

    Args:
        update: what runs.
        watch: where runs are recorded.
        around: makes a context manager, entered for every run.
    """

    def __init__(self, update: Update, watch: Watch, around: Callable[[], AbstractContextManager[Any]]) -> None:
        self._update, self._watch, self._around = update, watch, around

    def run(self, *arguments: Any, **keywords: Any) -> None:
        """Run the update and record its time."""
        begin = time.perf_counter()
        with self._around():
            self._update.run(*arguments, **keywords)
        self._watch.seconds += time.perf_counter() - begin
        self._watch.runs += 1

    def run_ticked(self, *arguments: Any, **keywords: Any) -> None:
        """Not supported."""
        raise AssertionError("only optimizers that are not capturable are watched")


@contextlib.contextmanager
def watched(opt: Relaxation, around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[Watch]:
    """Inside, the updates of the optimizer's buckets are ``Watched``."""
    buckets = opt._shared.buckets
    updates, watch = [bucket.update for bucket in buckets], Watch()
    for bucket in buckets:
        bucket.update = Watched(bucket.update, watch, around)
    try:
        yield watch
    finally:
        for bucket, update in zip(buckets, updates):
            bucket.update = update


class Timer(Protocol):
    """Times steps."""

    def timed(self, step: Step, samples: list[Sample]) -> Step:
        """``step``, wrapped so that every call appends a sample."""


class HostTimer:
    """For the CPU, where a kernel is done when its call returns."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def timed(self, step: Step, samples: list[Sample]) -> Step:
        """The step, which adds a sample each time it is called."""

        def call() -> None:
            seconds, runs = self._watch.seconds, self._watch.runs
            begin = time.perf_counter()
            step()
            whole = time.perf_counter() - begin
            kernel = self._watch.seconds - seconds
            samples.append(Sample(kernel, whole - kernel, whole, self._watch.runs - runs))

        return call


class Event(Protocol):
    """As ``torch.cuda.Event(enable_timing=True)``."""

    def record(self) -> None:
        """Mark the place in the stream."""

    def query(self) -> bool:
        """Whether the device has reached it."""

    def synchronize(self) -> None:
        """Wait until the device has reached it."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to the other."""


def new_event() -> Event:
    """An event of the current CUDA device that records the time."""
    event: Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


class DeviceTimer:
    """For a device that runs asynchronously: events before and after a step, and the host's time without synchronising.

    The device first gets copies that outlast the step on the host: otherwise the events would measure the host.

    Args:
        watch: counts the runs of a backend.
        copy: enqueues one large copy; it is run once before it is timed.
        new_event: makes an event; the default is CUDA's.
    """

    MOST_COPIES = 64  # of 2 GiB moved: some 30 ms on the fastest device
    FIRST_COPIES = 4

    def __init__(self, watch: Watch, copy: Step, new_event: Callable[[], Event] = new_event) -> None:
        self._watch, self._copy, self._new_event = watch, copy, new_event
        copy()
        start, end = new_event(), new_event()
        start.record()
        copy()
        end.record()
        end.synchronize()
        self._copy_seconds = start.elapsed_time(end) / 1e3

    def copies(self, host: float) -> int:
        """The number of copies that take twice as long as the host."""
        return max(1, min(self.MOST_COPIES, math.ceil(2 * host / self._copy_seconds)))

    def timed(self, step: Step, samples: list[Sample]) -> Step:
        """The step, which adds a sample each time it is called."""
        copies = self.FIRST_COPIES

        def call() -> None:
            nonlocal copies
            start, end, runs = self._new_event(), self._new_event(), self._watch.runs
            for _ in range(copies):
                self._copy()
            start.record()
            begin = time.perf_counter()
            step()
            host = time.perf_counter() - begin
            waited = start.query()
            end.record()
            end.synchronize()
            kernel = start.elapsed_time(end) / 1e3
            samples.append(Sample(kernel, host, kernel, self._watch.runs - runs, waited))
            copies = self.copies(host)

        return call
