"""How long enqueued work keeps a device busy: events, with enough to do before them never to wait for the host."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch


class Contestant(NamedTuple):
    """What is timed: ``enqueue`` makes ``calls`` calls and does not wait for them."""

    enqueue: Callable[[], object]
    calls: int


class Sample(NamedTuple):
    """Seconds of one call, the host's seconds for it, and whether the device may have waited for the host."""

    seconds: float
    host: float
    waited: bool


class Timer(Protocol):
    """Times one round of a contestant."""

    def __call__(self, name: str, contestant: Contestant) -> Sample: ...


class HostTimer:
    """For the CPU, where a call is done when it returns.

    Args:
        clock: tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def __call__(self, name: str, contestant: Contestant) -> Sample:
        begin = self._clock()
        contestant.enqueue()
        seconds = (self._clock() - begin) / contestant.calls
        return Sample(seconds, seconds, False)


class DeviceTimer:
    """Keeps the device busy while the host enqueues, twice as long as the host took for the same the last time.

    Args:
        keep_busy: occupies the device for about so many seconds.
        new_event: makes an event, as ``torch.cuda.Event(enable_timing=True)``.
    """

    FIRST, LEAST, MOST = 20e-3, 0.3e-3, 0.5  # seconds

    def __init__(self, keep_busy: Callable[[float], None], new_event: Callable[[], Any]) -> None:
        self._keep_busy, self._new_event = keep_busy, new_event
        self._lead: dict[str, float] = {}

    def __call__(self, name: str, contestant: Contestant) -> Sample:
        start, end = self._new_event(), self._new_event()
        self._keep_busy(self._lead.get(name, self.FIRST))
        start.record()
        begin = time.perf_counter()
        contestant.enqueue()
        host = time.perf_counter() - begin
        waited = bool(start.query())
        end.record()
        end.synchronize()
        self._lead[name] = min(self.MOST, self.LEAST + 2 * host)
        return Sample(start.elapsed_time(end) / 1e3 / contestant.calls, host / contestant.calls, waited)


def cuda_timer() -> DeviceTimer:
    """On the current CUDA device."""
    cycles_per_second = 2e9  # of a clock that runs at this or less
    return DeviceTimer(
        lambda seconds: torch.cuda._sleep(int(seconds * cycles_per_second)),
        lambda: torch.cuda.Event(enable_timing=True),
    )


def measure(contestants: dict[str, Contestant], timer: Timer, rounds: int, warm_up: int = 2) -> dict[str, list[Sample]]:
    """A sample a round for each; the contestants alternate, in an order drawn again for every round (always the same
    draws): whoever came always after the one that leaves the host's caches in disarray would look slow."""
    for _ in range(warm_up):
        for name, contestant in contestants.items():
            timer(name, contestant)
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    order, draws = list(contestants), random.Random(0)
    for _ in range(rounds):
        draws.shuffle(order)
        for name in order:
            samples[name].append(timer(name, contestants[name]))
    return samples


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratios(samples: dict[str, list[Sample]], a: str, b: str) -> list[float]:
    """a's time by b's, round by round."""
    return [x.seconds / y.seconds for x, y in zip(samples[a], samples[b], strict=True)]


def figures(samples: dict[str, list[Sample]], name: str, moved: float, copied: float) -> dict[str, Any]:
    """One contestant's figures.

    Args:
        samples: those of a run with a contestant "copy".
        name: whose.
        moved, copied: bytes that one call and one copy read and write.
    """
    seconds = spread([s.seconds for s in samples[name]])
    return {
        "us": {key: 1e6 * value for key, value in seconds.items()},
        "gb_per_s": moved / seconds["median"] / 1e9,
        "of_copy": spread([moved / copied * r for r in ratios(samples, "copy", name)]),
        "host_us": 1e6 * statistics.median(s.host for s in samples[name]),
        "waited": statistics.mean(s.waited for s in samples[name]),
    }
