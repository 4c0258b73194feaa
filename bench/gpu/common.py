"""What the scripts of ``make gpu`` share: the rules and their calls, memory, comparisons, and the file of results.

A result is one JSON line of OUT/rows.jsonl, appended as soon as it is measured: an interrupted run loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import traceback
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax import kernels
from deeprelax.benchmark.timing import DeviceTimer, Sample, Step, Timer, Watch, alternate
from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.environment import cuda_kernels, describe
from deeprelax.kernels import Backend, ClockMemory, CycleState, Hyper, Scalars, Table, Tick
from deeprelax.kernels.scalars import ENTROPY_ADAMW, ENTROPY_SGD, HEAT, HJ
from deeprelax.optim.bucket import buffers_of

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("OUT") or "out") / "gpu"
GPU = torch.device("cuda", 0)
BACKENDS = ("cuda", "triton")
KINDS = ("first", "inner", "last")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORKLOADS = ("resnet50", "decoder-1.3b")
TRACEBACK = 1500  # characters: its end says what went wrong and where


@dataclass(frozen=True)
class Rule:
    """An update rule with cycles of ``length`` calls, and an optimizer that has it, with these options."""

    name: str
    optimizer: str
    kernel: kernels.Rule
    noise: bool
    length: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, params: list[Tensor], backend: str, capturable: bool = False) -> Any:
        """The optimizer, with rates so small that weights keep their size."""
        common = {"lr": 1e-6, "inner_steps": self.length, "backend": backend, "capturable": capturable}
        return getattr(deeprelax, self.optimizer)(params, **common, **self.options)

    def hyper(self, weight_decay: float = 0.0) -> Hyper:
        """Of a run with the rule."""
        alpha, temperature = 0.0 if self.kernel is ENTROPY_ADAMW else 0.75, 1e-8 if self.noise else 0.0
        common = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "keep": 1 - 1e-3}
        return Hyper(inner_steps=self.length, weight_decay=weight_decay, alpha=alpha, temperature=temperature, **common)

    def call(self, kind: str, weight_decay: float = 0.0, flags: int = 0) -> Scalars:
        """The scalars of the call of that kind, in mid-run."""
        gamma = {"Heat": 1e-4, "EntropyAdamW": math.inf}.get(self.optimizer, 1.0)
        phase = {"first": 0, "inner": 1, "last": self.length - 1}[kind]
        cycle = CycleState(1e-3, 1e-3, gamma, gamma, step=7, phase=phase, cycle_steps=self.length, fresh=False, seed=1)
        scalars = self.kernel.scalars(self.hyper(weight_decay), cycle)
        scalars.flags |= flags
        return scalars

    def tick(self, backend: Backend, device: torch.device) -> Tick:
        """What an inner call takes in a captured step under a GradScaler; the clock is not advanced again."""
        clock, lr = ClockMemory(device), torch.tensor(1e-3, device=device)
        start = {"gamma": 1.0, "cycle_gamma": 1.0, "phase": 1, "step": 7, "cycle_steps": self.length, "seed": 1}
        for name, value in start.items():
            clock.set(name, value)
        scale = torch.full((), 1024.0, device=device)
        tick = Tick(self.kernel, self.hyper(), clock, lr, lr, scale, torch.zeros_like(scale))
        backend.tick(tick)
        return tick

    def per_cycle(self, values: Mapping[str, float]) -> float:
        """The mean over a cycle of a value per kind of call."""
        return (values["first"] + (self.length - 2) * values["inner"] + values["last"]) / self.length


NOISELESS = {"inner_lr": 1e-6, "gamma": 1.0, "temperature": 0.0}
RULES = (
    Rule("EntropySGD", "EntropySGD", ENTROPY_SGD, False, 20, NOISELESS),
    Rule("EntropySGD, noise", "EntropySGD", ENTROPY_SGD, True, 20, {**NOISELESS, "temperature": 1e-8, "seed": 0}),
    Rule("HJ", "HJ", HJ, False, 5),
    Rule("Heat", "Heat", HEAT, True, 5, {"seed": 0}),
    Rule("EntropyAdamW", "EntropyAdamW", ENTROPY_ADAMW, False, 20, {"momentum": 0.0}),
)


@dataclass(frozen=True)
class Contestant:
    """A step that is ``calls`` calls, each of which moves ``bytes``."""

    step: Step
    calls: int
    bytes: float


def in_turn(runs: list[Step], calls: int) -> Step:
    """A step that makes so many calls of the runs."""

    def step() -> None:
        for k in range(calls):
            runs[k % len(runs)]()

    return step


def slices(elements: int, size: int, calls: int) -> list[slice]:
    """Where the calls of a step lie, each on a slice by itself as long as there are any."""
    return [slice(size * k, size * (k + 1)) for k in range(min(calls, elements // size))]


class Memory:
    """Random weights, gradients and state of ``elements``, a multiple of 128, and a buffer to copy to.

    No call finds its operands in a cache: those of a step run on different slices, and the timer copies all of ``x``
    before each step.
    """

    def __init__(self, elements: int, device: torch.device) -> None:
        self.elements, self.device = elements, device
        self.wide = {name: torch.randn(elements + 1, device=device) for name in ("w", "g")}
        self.narrow = {name: t.to(torch.bfloat16) for name, t in self.wide.items()}
        self.x, self.y, self.average, self.target = (torch.randn(elements, device=device) for _ in range(4))
        self.square = torch.randn(elements, device=device).abs_()
        self.missed = torch.zeros(1, dtype=torch.int64, device=device)

    def launch(
        self, backend: Backend, rule: Rule, call: Scalars | Tick, dtype: torch.dtype, part: slice, unaligned: str
    ) -> Step:
        """A call on that slice; ``unaligned``: "w" or "g", weights or gradients begin one element later."""
        own = self.wide if dtype == torch.float32 else self.narrow
        state = {name: self.average[part] for name in ("z", "p", "s", "exp_avg")}
        state |= {"x": self.x[part], "y": self.y[part], "exp_avg_sq": self.square[part], "missed": self.missed}
        buffers = {name: state[name] for name in buffers_of(rule.kernel, dtype != torch.float32, False)}
        weight, grad = (own[name][part.start + (name == unaligned) :][: part.stop - part.start] for name in ("w", "g"))
        update = backend.bind(rule.kernel, Table([weight], [0]), buffers)
        run = update.run_ticked if isinstance(call, Tick) else update.run
        return partial(run, call, [grad], array("q", [grad.data_ptr()]))

    def calls(
        self,
        backend: Backend,
        rule: Rule,
        dtype: torch.dtype,
        size: int,
        count: int,
        *,
        kind: str = "inner",
        call: Scalars | Tick | None = None,
        unaligned: str = "",
    ) -> Contestant:
        """``count`` calls a step, of that kind or as given. Every slice gets one before this returns: tables are
        uploaded, and errors show."""
        call = rule.call(kind) if call is None else call
        runs = [self.launch(backend, rule, call, dtype, part, unaligned) for part in slices(self.elements, size, count)]
        for run in runs:
            run()
        synchronize(self.device)
        return Contestant(in_turn(runs, count), count, bytes_moved(rule.optimizer, dtype, kind) * size)

    def copies(self, size: int, count: int) -> Contestant:
        """Copies of fp32 elements on the same slices."""
        runs = [partial(self.target[part].copy_, self.x[part]) for part in slices(self.elements, size, count)]
        return Contestant(in_turn(runs, count), count, 8 * size)

    def timer(self) -> Timer:
        """Times work on the device between events; copies before them keep the device from waiting for the host."""
        return DeviceTimer(Watch(), lambda: self.target.copy_(self.x))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sample(steps: Mapping[str, Step], timer: Timer, rounds: int) -> dict[str, list[Sample]]:
    """One sample of each a round, every round in a new random order; two rounds warm up."""
    samples: dict[str, list[Sample]] = {name: [] for name in steps}
    alternate({name: timer.timed(step, samples[name]) for name, step in steps.items()}, rounds + 1)
    return {name: values[2:] for name, values in samples.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": median, "low": low, "high": high}


def compare(contestants: Mapping[str, Contestant], timer: Timer, rounds: int, other: str) -> dict[str, dict[str, Any]]:
    """Figures of a call of each contestant.

    Returns:
        By name: ``us`` and ``host_us``, the bytes moved and the bandwidth, the fraction of samples in which the device
        ``waited`` for the host; time and bandwidth by those of the contestant ``other``, a ratio for each round.
    """
    samples = sample({name: c.step for name, c in contestants.items()}, timer, rounds)
    found = {}
    for name, c in contestants.items():
        seconds = [s.cost / c.calls for s in samples[name]]
        by = [t / (s.cost / contestants[other].calls) for t, s in zip(seconds, samples[other], strict=True)]
        found[name] = {
            "us": spread([1e6 * t for t in seconds]),
            "host_us": statistics.median(1e6 * s.host / c.calls for s in samples[name]),
            "waited": statistics.mean(s.waited for s in samples[name]),
            "bytes": c.bytes,
            "gb_per_s": c.bytes / statistics.median(seconds) / 1e9,
            "time_ratio": statistics.median(by),
            "bandwidth_ratio": spread([c.bytes / contestants[other].bytes / ratio for ratio in by]),
            "relative_to": other,
        }
    return found


class Rows:
    """OUT/rows.jsonl, whose first line says what the results were produced with.

    Args:
        out: the folder; it is made.
        script: whose rows these are.
        device: what they are measured on.
    """

    def __init__(self, out: Path, script: str, device: torch.device) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.script, self.device = out / "rows.jsonl", script, device
        if not self.path.exists():
            self.add(script="about", **about(device))

    def add(self, **row: Any) -> None:
        """One result."""
        with self.path.open("a") as file:
            file.write(json.dumps({"script": self.script, **row}) + "\n")

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """An exception inside becomes a row, and the script continues, unless the device is lost."""
        try:
            yield
        except Exception:
            said = traceback.format_exc()[-TRACEBACK:]
            self.add(script="error", what=f"{self.script}, {what}", said=said)
            print(f"{self.script}, {what}: {said}", flush=True)
            synchronize(self.device)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Sample clocks, power and reasons for throttling inside, and add them as a row."""
        smi = nvidia_smi(LOAD, "--format=csv,noheader,nounits --loop-ms=200")
        try:
            yield
        finally:
            smi.terminate()
            fields = LOAD.split(",")
            lines = [line.split(", ") for line in smi.communicate()[0].splitlines()]
            columns = dict(zip(fields, zip(*(line for line in lines if len(line) == len(fields)))))
            reasons = sorted(set(columns.pop(fields[-1], ())))
            with contextlib.suppress(ValueError):  # "[N/A]"
                ranges = {name: spread([float(v) for v in values]) for name, values in columns.items()}
                self.add(script="clocks", during=self.script, **ranges, reasons=reasons)


LOAD = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"
FIXED = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"


def nvidia_smi(fields: str, options: str) -> subprocess.Popen[str]:
    """Prints these fields; nothing where there is no nvidia-smi."""
    command = f"exec nvidia-smi --query-gpu={fields} {options}"
    return subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def about(device: torch.device) -> dict[str, Any]:
    """GPU, driver, versions, commit (COMMIT names it outside of a repository), date."""
    found = describe(device)
    return {
        **found,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("COMMIT") or found["commit"] or "unknown",
        "kernels": cuda_kernels(),
        "driver": nvidia_smi(FIXED, "--format=csv,noheader").communicate()[0].strip(),
        "why_not": {name: kernels.why_not(name) for name in BACKENDS},
    }


def arguments(description: str, *flags: str) -> argparse.Namespace:
    """The arguments of a script: ``--backend``, and flags."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()
