"""What the scripts of ``make gpu`` share: the rules and their calls, memory, alternation, and the file of results.

A result is one JSON line of OUT/rows.jsonl, appended as soon as it is measured: an interrupted run loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import statistics
import subprocess
import traceback
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from deeprelax import kernels
from deeprelax.benchmark.timing import DeviceTimer, Sample, Step, Timer, Watch, alternate
from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.environment import commit, describe
from deeprelax.kernels import Backend, ClockMemory, CycleState, Hyper, Scalars, Table, Tick
from deeprelax.kernels.scalars import ENTROPY_ADAMW, ENTROPY_SGD, HEAT, HJ
from deeprelax.optim.bucket import buffers_of

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("OUT") or "out") / "gpu"
BACKENDS = ("cuda", "triton")
KINDS = ("first", "inner", "last")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KERNELS = {"EntropySGD": ENTROPY_SGD, "HJ": HJ, "Heat": HEAT, "EntropyAdamW": ENTROPY_ADAMW}
COPY_BYTES = 8  # per element: fp32, read and written
TRACEBACK = 1500  # characters: its end says what went wrong and where


@dataclass(frozen=True)
class Rule:
    """An update rule with cycles of ``length`` calls; Heat has no variant without noise."""

    name: str
    optimizer: str
    noise: bool
    length: int

    @property
    def kernel(self) -> kernels.Rule:
        """The rule as the backends know it."""
        return KERNELS[self.optimizer]

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

    def bytes(self, dtype: torch.dtype, kind: str) -> int:
        """Per element."""
        return bytes_moved(self.optimizer, dtype, kind)

    def per_cycle(self, values: Mapping[str, float]) -> float:
        """The mean over a cycle of a value per kind of call."""
        return (values["first"] + (self.length - 2) * values["inner"] + values["last"]) / self.length


RULES = (
    Rule("EntropySGD", "EntropySGD", False, 20),
    Rule("EntropySGD, noise", "EntropySGD", True, 20),
    Rule("HJ", "HJ", False, 5),
    Rule("Heat", "Heat", True, 5),
    Rule("EntropyAdamW", "EntropyAdamW", False, 20),
)


class Memory:
    """Random weights, gradients and state of ``elements``, a multiple of 128, and a buffer to copy to. Calls run on
    slices of it in turn, so that no slice is used again while the cache holds it."""

    PASSES = 4  # of the cache's size are moved before the same memory is used again

    def __init__(self, elements: int, device: torch.device, cache: int | None = None) -> None:
        self.elements, self.device = elements, device
        self.cache = cache_of(device) if cache is None else cache
        self.wide = {name: torch.randn(elements + 1, device=device) for name in ("w", "g")}
        self.narrow = {name: t.to(torch.bfloat16) for name, t in self.wide.items()}
        self.x, self.y, self.average, self.target = (torch.randn(elements, device=device) for _ in range(4))
        self.square = torch.randn(elements, device=device).abs_()
        self.missed = torch.zeros(1, dtype=torch.int64, device=device)
        self._turn: dict[int, int] = {}

    def launch(
        self, backend: Backend, rule: Rule, dtype: torch.dtype, part: slice, unaligned: str = ""
    ) -> Callable[[Scalars | Tick], None]:
        """Makes calls on that slice; ``unaligned``: "w" or "g", weights or gradients begin one element later."""
        own = self.wide if dtype == torch.float32 else self.narrow
        state = {name: self.average[part] for name in ("z", "p", "s", "exp_avg")}
        state |= {"x": self.x[part], "y": self.y[part], "exp_avg_sq": self.square[part], "missed": self.missed}
        buffers = {name: state[name] for name in buffers_of(rule.kernel, dtype != torch.float32, False)}
        weight, grad = (own[name][part.start + (name == unaligned) :][: part.stop - part.start] for name in ("w", "g"))
        update = backend.bind(rule.kernel, Table([weight], [0]), buffers)
        grads, addresses = [grad], array("q", [grad.data_ptr()])

        def run(call: Scalars | Tick) -> None:
            (update.run_ticked if isinstance(call, Tick) else update.run)(call, grads, addresses)

        return run

    def slices(self, size: int, calls: int) -> list[slice]:
        """Slices of ``size`` elements: one for each call of a round, and more to empty the cache in between."""
        count = max(1, min(self.elements // size, calls + math.ceil(self.PASSES * self.cache / (COPY_BYTES * size))))
        return [slice(size * k, size * (k + 1)) for k in range(count)]

    def rotated(self, launches: list[Step], size: int, calls: int) -> Step:
        """Makes ``calls`` of the launches, one for each slice, in turn; launches of one size share the turns."""

        def step() -> None:
            first = self._turn.get(size, 0)
            self._turn[size] = first + calls
            for k in range(first, first + calls):
                launches[k % len(launches)]()

        return step

    def calls(
        self, backend: Backend, rule: Rule, call: Scalars, dtype: torch.dtype, size: int, n: int, unaligned: str = ""
    ) -> Step:
        """Makes ``n`` calls. Every slice gets one before this returns: tables are uploaded, and errors show."""
        runs = [self.launch(backend, rule, dtype, part, unaligned) for part in self.slices(size, n)]
        for run in runs:
            run(call)
        synchronize(self.device)
        return self.rotated([lambda run=run: run(call) for run in runs], size, n)

    def copies(self, size: int, count: int) -> Step:
        """Copies of fp32 elements on the same slices."""
        pairs = [(self.target[part], self.x[part]) for part in self.slices(size, count)]
        return self.rotated([lambda to=to, source=source: to.copy_(source) for to, source in pairs], size, count)

    def captured(self, backend: Backend, rule: Rule, dtype: torch.dtype, count: int) -> Step:
        """Inner calls on everything, as a captured step under a GradScaler makes them; the clock is not advanced."""
        clock, lr = ClockMemory(self.device), torch.tensor(1e-3, device=self.device)
        start = {"gamma": 1.0, "cycle_gamma": 1.0, "phase": 1, "step": 7, "cycle_steps": rule.length, "seed": 1}
        for name, value in start.items():
            clock.set(name, value)
        scale = torch.full((), 1024.0, device=self.device)
        tick = Tick(rule.kernel, rule.hyper(), clock, lr, lr, scale, torch.zeros_like(scale))
        run = self.launch(backend, rule, dtype, slice(0, self.elements))
        backend.tick(tick)
        run(tick)
        synchronize(self.device)
        return self.rotated([lambda: run(tick)], self.elements, count)


def cache_of(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache; 0 elsewhere."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timer_of(memory: Memory) -> Timer:
    """Times work on the device between events; copies before them keep the device from waiting for the host."""
    return DeviceTimer(Watch(), lambda: memory.target.copy_(memory.x))


def sample(contestants: dict[str, Step], timer: Timer, rounds: int) -> dict[str, list[Sample]]:
    """One sample of each a round, every round in a new random order; two rounds warm up."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    alternate({name: timer.timed(step, samples[name]) for name, step in contestants.items()}, rounds + 1)
    return {name: values[2:] for name, values in samples.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": median, "low": low, "high": high}


def ratios(samples: dict[str, list[Sample]], a: str, b: str) -> list[float]:
    """a's time over b's, round by round."""
    return [x.cost / y.cost for x, y in zip(samples[a], samples[b], strict=True)]


def figures(
    samples: dict[str, list[Sample]], name: str, calls: int, moved: float, copied: float = 0.0
) -> dict[str, Any]:
    """The figures of one contestant, whose step is ``calls`` calls that move ``moved`` bytes each.

    Args:
        samples: of all contestants.
        name, calls, moved: of this one.
        copied: bytes that one call of the contestant "copy" moves; 0 without one.
    """
    us = spread([1e6 * s.cost / calls for s in samples[name]])
    found = {
        "us": us,
        "gb_per_s": moved / us["median"] / 1e3,
        "waited": statistics.mean(s.waited for s in samples[name]),
    }
    found["host_us"] = statistics.median(1e6 * s.host / calls for s in samples[name])
    return found | ({"of_copy": spread([moved / copied * r for r in ratios(samples, "copy", name)])} if copied else {})


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
            self._write({"script": "about", **about(device)})

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def add(self, **row: Any) -> None:
        """One result."""
        self._write({"script": self.script, **row})

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """An exception inside becomes a row, and the script continues, unless the device is lost."""
        try:
            yield
        except Exception:
            said = traceback.format_exc()[-TRACEBACK:]
            self._write({"script": "error", "what": f"{self.script}, {what}", "said": said})
            print(f"{self.script}, {what}: {said}", flush=True)
            synchronize(self.device)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Sample clocks, power and reasons for throttling inside, and add them as a row."""
        fields = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active"]
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "-lms", "200"]
        try:
            smi = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            smi.terminate()
            lines = [line.split(", ") for line in smi.communicate()[0].splitlines()]
            columns = dict(zip(fields, zip(*(line for line in lines if len(line) == len(fields)))))
            reasons = sorted(set(columns.pop(fields[-1], ())))
            with contextlib.suppress(ValueError):  # "[N/A]"
                ranges = {name: spread([float(v) for v in values]) for name, values in columns.items()}
                self._write({"script": "clocks", "during": self.script, **ranges, "reasons": reasons})


def about(device: torch.device) -> dict[str, Any]:
    """GPU, driver, versions, commit (COMMIT names it outside of a repository), date."""
    try:
        built = importlib.import_module("deeprelax._cuda")
    except ImportError:
        built = None
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
        "--format=csv,noheader",
    ]
    try:
        driver = subprocess.run([*query, "--id=0"], capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return {
        **describe(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("COMMIT") or commit() or "unknown",
        "cuda": torch.version.cuda,
        "nvcc": getattr(built, "compiler", None),
        "driver, most clocks, power limit": driver,
        "cache": cache_of(device),
        "why_not": {name: kernels.why_not(name) for name in BACKENDS},
    }


def arguments(description: str, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """The arguments of a script: ``--out``, ``--backend``, and more."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    for name, options in more:
        parser.add_argument(name, **options)
    return parser.parse_args()


def gpu() -> torch.device:
    """The current GPU."""
    return torch.device("cuda", torch.cuda.current_device())
