"""A profile says where the time went: each kind of call by itself, kernels and host apart, the bytes that move."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import make, parameters, run, same_bits
from rich.console import Console
from torch.nn import Parameter

from deeprelax.benchmark import profile_report, profiler, timing
from deeprelax.benchmark.profiler import OPTIMIZERS, Plan, figures, profile, sample
from deeprelax.benchmark.shapes import named, typed
from deeprelax.benchmark.timing import DeviceTimer, HostTimer, Sample, Watch, watched
from deeprelax.benchmark.trace import kernels_in, kernels_launched, write_trace
from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.cli.main import main

SMALL = typed("64x3,128,64")


@pytest.fixture(params=OPTIMIZERS)
def name(request: pytest.FixtureRequest) -> str:
    """Each optimizer that is profiled."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "COPY_BYTES", {"cpu": 2**16, "cuda": 2**16})


def command(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["profile", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


# What is timed.


@pytest.mark.parametrize(
    ("length", "kinds"),
    [(1, {"only": 1}), (2, {"first": 1, "last": 1}), (5, {"first": 1, "inner": 3, "last": 1})],
)
def test_every_kind_of_call_counts_as_often_as_it_comes_in_a_cycle(length: int, kinds: dict[str, int]) -> None:
    plan = Plan(SMALL, "HJ", inner_steps=length)
    assert plan.kinds == kinds
    assert list(plan.kinds) == list(kinds)
    opt: Any = plan.make()
    for kind in (*kinds, *kinds):
        assert (opt.phase == 0) == (kind in ("first", "only"))
        opt.step()
        assert opt.outer_step_happened == (kind in ("last", "only"))


def test_the_default_cycle_is_the_optimizers() -> None:
    lengths = {"EntropySGD": 20, "HJ": 5, "Heat": 5, "EntropyAdamW": 20}
    assert {name: Plan(SMALL, name).length for name in OPTIMIZERS} == lengths


class PhaseTimer:
    """Samples say which phase the optimizer was in, and how many steps anybody had made before."""

    def __init__(self, opt: Any) -> None:
        self.opt, self.steps = opt, 0

    def timed(self, step: Any, samples: list[Sample]) -> Any:
        def call() -> None:
            samples.append(Sample(self.opt.phase, 0.0, self.steps, 0))
            self.steps += 1
            step()

        return call


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("others", [["copy"], ["a", "b", "c", "copy"]])
def test_every_round_times_each_kind_and_each_of_the_others_once(length: int, others: list[str]) -> None:
    plan = Plan(SMALL, "HJ", inner_steps=length)
    opt: Any = plan.make()
    kinds, rounds = list(plan.kinds), 7
    samples = sample(opt.step, kinds, dict.fromkeys(others, lambda: None), PhaseTimer(opt), rounds)
    assert list(samples) == [*kinds, *others]
    each = len(samples)
    for name, values in samples.items():
        assert [s.cost // each for s in values] == list(range(1, rounds + 1))  # round 0 warms up
        if name in kinds:
            assert {s.kernel for s in values} == {kinds.index(name)}


# What the clocks say.


class Time:
    """The host's clock, in the place of the module ``time``: it moves only when somebody works."""

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


def test_watching_changes_no_bits_and_ends_with_the_backends_as_they_were(name: str) -> None:
    plain_params, seen_params = parameters(), parameters()
    plain, seen = make(name, plain_params), make(name, seen_params)
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
        self.device, self.at = device, math.inf

    def record(self) -> None:
        self.device.enqueue(0.0)
        self.at = self.device.free_at

    def query(self) -> bool:
        return self.device.host.now >= self.at

    def synchronize(self) -> None:
        self.device.host.now = max(self.device.host.now, self.at)

    def elapsed_time(self, end_event: DeviceEvent) -> float:
        assert self.device.host.now >= end_event.at, "the end has not come yet"
        return 1e3 * (end_event.at - self.at)


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


def test_what_a_device_is_given_to_do_before_has_bounds(host: Time) -> None:
    device = Device(host)
    timer = DeviceTimer(Watch(), lambda: device.enqueue(1.0), device.event)
    assert [timer.copies(seconds) for seconds in (0.0, 0.4, 10.2, 1e6)] == [1, 1, 21, DeviceTimer.MOST_COPIES]


# What is made of them.


def made_up(device: str) -> tuple[Plan, dict[str, list[Sample]]]:
    """Two rounds, the second twice as slow in everything; a copy moves 2^17 bytes."""
    plan = Plan(typed("1000"), "HJ", inner_steps=5, device=torch.device(device), rounds=2)

    def samples(kernel: float, host: float) -> list[Sample]:
        cost = kernel if device == "cuda" else kernel + host
        return [Sample(k * kernel, k * host, k * cost, 1, device == "cuda") for k in (1, 2)]

    costs = {"first": (2e-5, 1e-5), "inner": (1e-5, 1e-5), "last": (4e-5, 1e-5), "copy": (0.0, 4e-5)}
    if device == "cuda":
        costs["copy"] = (4e-5, 0.0)
    costs["torch.optim.AdamW(fused=True)"] = (5e-5, 0.0)
    return plan, {name: samples(*values) for name, values in costs.items()}


def test_an_average_weighs_the_calls_by_how_often_they_come() -> None:
    plan, samples = made_up("cpu")
    found = figures(plan, samples, dict.fromkeys(plan.kinds, 1))
    average = found["average"]
    assert average["kernel_us"] == pytest.approx(1.5 * (20 + 3 * 10 + 40) / 5)
    assert average["host_us"] == pytest.approx(1.5 * 10)
    assert average["cost_us"] == pytest.approx(average["kernel_us"] + average["host_us"])
    assert average["bytes_per_element"] == (20 + 3 * 20 + 16) / 5


def test_bandwidth_is_bytes_by_kernel_time_within_a_round() -> None:
    plan, samples = made_up("cpu")
    inner = figures(plan, samples, dict.fromkeys(plan.kinds, 1))["calls"][1]
    assert inner["bytes"] == 20 * 1000
    assert inner["gb_per_s"] == pytest.approx(20 * 1000 / 1.5e-5 / 1e9)
    copy_bandwidth = 2 * 2**16 / 4e-5
    assert inner["of_copy"] == pytest.approx(20 * 1000 / 1e-5 / copy_bandwidth)


@pytest.mark.parametrize(("device", "ours"), [("cpu", 18 + 10), ("cuda", 18)])
def test_a_peer_is_compared_with_the_average_step(device: str, ours: float) -> None:
    plan, samples = made_up(device)
    (peer,) = figures(plan, samples, dict.fromkeys(plan.kinds, 1))["peers"]
    assert peer["ours_by_this"] == pytest.approx(ours / 50)
    assert peer["bytes_per_element"] == 28
    assert (peer["host_us"] is None) == (device == "cpu")


def test_a_devices_profile_shows_host_time_and_marks_waiting(tmp_path: Path) -> None:
    plan, samples = made_up("cuda")
    about = profile(Plan(SMALL, "HJ", rounds=1), peers=False)
    result = {**about, "device": "cuda", **figures(plan, samples, dict.fromkeys(plan.kinds, 2))}
    console = Console(width=120)
    with console.capture() as shown:
        profile_report.show(result, console)
    assert "the device waited for the host" in shown.get()
    assert "together" not in shown.get()
    profile_report.draw(result, tmp_path / "device.png")
    assert (tmp_path / "device.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_that_a_profile_asks_for_is_what_it_takes(name: str, dtype: torch.dtype) -> None:
    plan = Plan(SMALL, name, dtype=dtype, options={"momentum": 0.9})
    opt = plan.make()
    for _ in plan.kinds:
        opt.step()
    ours = [
        t
        for p in opt.param_groups[0]["params"]
        for t in (p, p.grad, *(t for n, t in opt.state[p].items() if n != "missed"))
    ]
    assert plan.memory(peers=False) - 2**16 == sum(t.numel() * t.element_size() for t in ours)
    shared = plan.parameters()
    for build in profiler.PEERS.values():
        peer = build(shared)
        peer.step()
        ours += [t for p in shared for t in peer.state[p].values() if t is not None and t.numel() > 1]
    ours += [t for p in shared for t in (p, p.grad) if t is not None]
    assert plan.memory(peers=True) - 2**16 == sum(t.numel() * t.element_size() for t in ours)


def test_a_cpus_yardstick_moves_no_bytes_that_are_not_counted() -> None:
    """A copy between two buffers fetches the lines that it overwrites: kernels came out at 1.64 of it."""
    said, run = profiler.yardstick(torch.device("cpu"))
    source = run.__self__  # type: ignore[attr-defined]
    before = source.clone()
    assert before.nbytes == 2**16
    run()
    assert torch.equal(source, -before)
    assert "in place" in said
    assert before.abs().min() > 0


@pytest.mark.parametrize("of_copy", [0.9, 1.64])
def test_a_fraction_above_1_is_explained(of_copy: float) -> None:
    result = profile(Plan(SMALL, "HJ", rounds=1), peers=False)
    for row in result["calls"]:
        row["of_copy"] = of_copy
    console = Console(width=120)
    with console.capture() as shown:
        profile_report.show(result, console)
    assert ("caches still held some of it" in shown.get()) == (of_copy > 1)
    assert "a copy in place" in shown.get()


# The profiler.


def test_the_trace_has_a_range_for_every_call_and_backend_run(tmp_path: Path, name: str) -> None:
    plan = Plan(SMALL, name)
    opt = plan.make()
    write_trace(opt, list(plan.kinds), plan.device, tmp_path / "new" / "trace.json")
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    ranges = sorted((e for e in events if e["name"].startswith(f"{name}: ")), key=lambda e: float(e["ts"]))
    assert [e["name"] for e in ranges] == [f"{name}: {kind} call" for kind in ("first", "inner", "last")] * 2
    runs = sorted((e for e in events if e["name"] == "backend.run"), key=lambda e: float(e["ts"]))
    assert len(runs) == len(ranges)
    for outside, inside in zip(ranges, runs):
        assert outside["ts"] <= inside["ts"]
        assert inside["ts"] + inside["dur"] <= outside["ts"] + outside["dur"]


def test_launches_are_the_kernels_of_a_trace_alone() -> None:
    kinds = ("kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime", "cpu_op", "gpu_user_annotation", "kernel")
    assert kernels_in({"traceEvents": [*({"cat": kind} for kind in kinds), {"ph": "M"}]}) == 2


def test_counting_kernels_takes_whole_cycles_and_finds_none_on_the_cpu() -> None:
    plan = Plan(SMALL, "Heat")
    opt = plan.make()
    assert kernels_launched(opt, list(plan.kinds), plan.device) == {"first": 0, "inner": 0, "last": 0}
    assert (opt.phase, opt.outer_step_happened) == (0, True)


# The command.


@pytest.mark.parametrize(
    ("arguments", "optimizer", "options"),
    [
        (["--no-noise", "--dtype", "bfloat16"], "EntropySGD", {"temperature": 0.0}),
        (
            ["--noise", "--momentum", 0.9, "--inner-momentum", 0.8],
            "EntropySGD",
            {"momentum": 0.9, "inner_momentum": 0.8},
        ),
        (["--optimizer", "hj", "--inner-steps", 2, "--dtype", "float64"], "HJ", {}),
        (["--optimizer", "heat", "--backend", "eager", "--weight-decay", 0.1], "Heat", {"weight_decay": 0.1}),
    ],
)
def test_the_command_prints_and_stores_where_the_time_went(
    arguments: list[object], optimizer: str, options: dict[str, Any], tmp_path: Path
) -> None:
    files = [tmp_path / "out" / "profile.json", tmp_path / "p.png", tmp_path / "t.json"]
    output = command("--shapes", "64x3,7", "--steps", 2, *arguments, "--out", tmp_path / "out",
                     "--plot", files[1], "--trace", files[2]).output  # fmt: skip
    result = json.loads(files[0].read_text())
    assert (result["optimizer"], result["options"], result["rounds"]) == (optimizer, options, 2)
    assert (result["tensors"], result["elements"]) == (2, 199)
    assert result["machine"]["versions"]["torch"] == torch.__version__
    dtype = getattr(torch, result["dtype"])
    moving = {name: value for name, value in options.items() if name != "temperature"}
    for row in result["calls"]:
        assert row["bytes_per_element"] == bytes_moved(optimizer, dtype, row["kind"], **moving)
        assert row["launches"] == 1
        assert min(row["kernel_us"], row["host_us"], row["gb_per_s"], row["of_copy"]) > 0
    assert sum(row["calls_per_cycle"] for row in result["calls"]) == result["inner_steps"]
    assert [row["name"] for row in result["peers"]] == list(profiler.PEERS)
    assert all(row["ours_by_this"] > 0 for row in result["peers"])
    for shown in ("kernels µs", "host µs", "launches", "GB/s", "of a copy's", "average", *profiler.PEERS):
        assert shown in output
    assert all(f"written: {file}" in output.replace("\n", "") for file in files)
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files[2].read_text())["traceEvents"]


def test_without_peers_no_other_optimizer_runs() -> None:
    assert "torch.optim" not in command("--shapes", 64, "--steps", 1, "--no-peers").output


def test_the_number_of_threads_is_that_asked_for_and_then_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    command("--shapes", 64, "--steps", 1, "--threads", before + 1, "--out", tmp_path)
    assert json.loads((tmp_path / "profile.json").read_text())["machine"]["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "resnet50", "--shapes", "4"], "--model and --shapes exclude each other"),
        (["--shapes", "4x"], "'4x' in '4x' is not a shape"),
        (["--shapes", "4", "--optimizer", "hj", "--no-noise"], "--noise has no meaning for hj"),
        (["--shapes", "4", "--optimizer", "heat", "--inner-momentum", "0.9"], "--inner-momentum has no meaning"),
        (["--shapes", "4", "--momentum", "-1"], "invalid momentum: -1.0"),
        (["--shapes", "4", "--optimizer", "sgd"], "'sgd' is not one of 'heat', 'entropy-sgd', 'hj'"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(main, ["profile", *arguments])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert named in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("option", "path", "named"),
    [
        ("--plot", "a.xyz", "--plot a.xyz: its name must end in .png, .svg, .pdf"),
        ("--plot", "/proc/a.png", "--plot: /proc/a.png cannot be written"),
        ("--out", "/proc/foo", "--out: /proc/foo/profile.json cannot be written"),
        ("--trace", "/proc/x.json", "--trace: /proc/x.json cannot be written"),
        ("--trace", "/dev/full", "--trace: /dev/full cannot be written (/dev/full exists and is not a file)"),
        ("--plot", "no/such/folder/a.png", "cannot be written (no folder no/such/folder)"),
        ("--trace", "no/such/folder/a.json", "cannot be written (no folder no/such/folder)"),
    ],
)
def test_an_unwritable_file_is_refused_before_measuring(
    option: str, path: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Plan] = []
    monkeypatch.setattr(profiler, "profile", lambda plan, *_: measured.append(plan))
    result = CliRunner().invoke(main, ["profile", "--shapes", "4", option, path])
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (1, 2)
    assert named in " ".join(result.output.split())
    assert not measured


def test_a_trace_that_was_not_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_text("an earlier one")
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", lambda self, path: None)
    output = command("--shapes", 64, "--steps", 1, "--no-peers", "--trace", path, code=1).output
    assert "torch's profiler has written nothing to" in " ".join(output.split())
    assert "written: " not in output


def test_a_disk_that_fills_up_meanwhile_is_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(result: dict[str, Any], path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profile_report, "draw", full)
    output = command("--shapes", 64, "--steps", 1, "--no-peers", "--plot", tmp_path / "a.png", code=1).output
    assert "average" in output  # the table was shown
    assert "No space left on device" in output
    assert "written: " not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert "torch finds no GPU" in command("--device", "cuda", code=1).output


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "free_memory", lambda device: 30 * 10**9)
    output = " ".join(command("--model", "decoder-1.3b", code=1).output.split())
    need = (4 + 5) * 4 * named("decoder-1.3b").elements / 1e9  # w g x z, and of the peers w g m, m v
    assert f"takes {need:.1f} GB, and 30.0 GB are free on cpu; try --no-peers" in output
