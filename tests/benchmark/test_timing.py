"""Kernels and host are timed apart, on the CPU and on a device that runs behind the host."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make, run, same_bits, twins
from torch.nn import Parameter

from deeprelax.benchmark import timing
from deeprelax.benchmark.timing import DeviceTimer, HostTimer, Sample, Watch, watched


class Time:
    """The host's clock, in place of the module ``time``: it advances only while work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Time:
    host = Time()
    monkeypatch.setattr(timing, "time", host)
    return host


def test_on_the_cpu_all_but_the_backends_run_is_host_time(host: Time) -> None:
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(3, dtype=torch.float64))]
    opt = make("HJ", params)
    for p in params:
        p.grad = torch.ones_like(p)

    class Slow:
        def run(self, *arguments: Any) -> None:
            host.work(2.0)

    for bucket in opt._shared.plans[0].buckets:
        bucket.update = Slow()

    def step() -> None:
        host.work(1.0)
        opt.step()

    samples: list[Sample] = []
    with watched(opt) as watch:
        call = HostTimer(watch).timed(step, samples)
        call()
        call()
    assert samples == [Sample(kernel=4.0, host=1.0, cost=5.0, launches=2)] * 2  # two sets: one for each dtype


def test_profiling_changes_no_bits_and_restores_the_backends(name: str) -> None:
    (plain, plain_params), (seen, seen_params) = twins(name)
    before = [bucket.update for bucket in seen._shared.plans[0].buckets]

    def watch_and_fail() -> None:
        with watched(seen) as watch:
            run(seen, seen_params, range(5))
            assert watch.runs == 5
            raise KeyError

    with pytest.raises(KeyError):
        watch_and_fail()
    run(plain, plain_params, range(5))
    assert same_bits(plain_params, seen_params)
    assert [bucket.update for bucket in seen._shared.plans[0].buckets] == before


class Device:
    """Works off what is enqueued, in order, while the host continues."""

    def __init__(self, host: Time) -> None:
        self.host, self.free_at = host, 0.0

    def enqueue(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.host.now) + seconds

    def event(self) -> DeviceEvent:
        return DeviceEvent(self)


class DeviceEvent:
    def __init__(self, device: Device) -> None:
        self.device, self.time = device, math.inf

    def record(self) -> None:
        self.device.enqueue(0.0)
        self.time = self.device.free_at

    def query(self) -> bool:
        return self.device.host.now >= self.time

    def synchronize(self) -> None:
        self.device.host.now = max(self.device.host.now, self.time)

    def elapsed_time(self, end_event: DeviceEvent) -> float:
        assert self.device.host.now >= end_event.time, "the end has not come yet"
        return 1e3 * (end_event.time - self.time)


def device_samples(host: Time, in_host: float, on_device: float, copy: float) -> list[Sample]:
    """Three steps of so many seconds on a device whose copies take so many."""
    device = Device(host)

    def step() -> None:
        host.work(in_host)
        device.enqueue(on_device)

    samples: list[Sample] = []
    call = DeviceTimer(Watch(), lambda: device.enqueue(copy), device.event).timed(step, samples)
    for _ in range(3):
        call()
    return samples


def test_on_a_device_kernel_time_is_the_devices_alone(host: Time) -> None:
    for s in device_samples(host, in_host=2.0, on_device=30.0, copy=1.0):
        assert s == pytest.approx((30.0, 2.0, 30.0, 0, False))


def test_a_device_that_waited_is_reported_and_given_more_to_do(host: Time) -> None:
    first, *later = device_samples(host, in_host=10.0, on_device=1.0, copy=1.0)
    assert first == pytest.approx((10.0 - 4 + 1, 10.0, 10.0 - 4 + 1, 0, True))  # 4 copies, and 6 seconds of nothing
    for s in later:
        assert s == pytest.approx((1.0, 10.0, 1.0, 0, False))


def test_the_copies_queued_before_a_timing_are_bounded(host: Time) -> None:
    device = Device(host)
    timer = DeviceTimer(Watch(), lambda: device.enqueue(1.0), device.event)
    assert [timer.copies(seconds) for seconds in (0.0, 0.4, 10.2, 1e6)] == [1, 1, 21, DeviceTimer.MOST_COPIES]
