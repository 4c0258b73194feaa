"""What the scripts of ``make gpu`` share: the optimizers, contestants, their comparison, and the file of results.

A result is one JSON line of OUT/rows.jsonl, appended as soon as it is measured: an interrupted run loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax import kernels
from deeprelax.benchmark.profiler import sample
from deeprelax.benchmark.timing import DeviceTimer, Step, Timer, Watch
from deeprelax.benchmark.traffic import bytes_moved
from deeprelax.environment import cuda_kernels, describe
from deeprelax.kernels import Backend

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("OUT") or "out") / "gpu"
GPU = torch.device("cuda", 0)
BACKENDS, KINDS = ("cuda", "triton"), ("first", "inner", "last")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORKLOADS = ("resnet50", "decoder-1.3b")
LARGE = 2**25  # elements; a call on as many leaves no operand of a call before it in a cache
TRACEBACK = 1500  # characters: its end says what went wrong and where


@dataclass(frozen=True)
class Rule:
    """An optimizer with these options, and its cycle's length; ``noise``: whether its calls draw some."""

    name: str
    optimizer: str
    noise: bool
    length: int
    options: Mapping[str, Any]

    @property
    def kernel(self) -> kernels.Rule:
        """The rule as the backends know it."""
        return getattr(deeprelax, self.optimizer).rule

    def make(self, params: Any, backend: str | Backend, **options: Any) -> Any:
        """The optimizer, with rates so small that weights keep their size."""
        known = {"lr": 1e-6, "inner_steps": self.length, **self.options, **options}
        return getattr(deeprelax, self.optimizer)(params, backend=backend, **known)

    def bytes(self, dtype: str, kind: str) -> int:
        """What a call of that kind moves per element."""
        return bytes_moved(self.optimizer, DTYPES[dtype], kind)

    def per_cycle(self, values: Mapping[str, float]) -> float:
        """The mean over a cycle of a value per kind of call."""
        return (values["first"] + (self.length - 2) * values["inner"] + values["last"]) / self.length


QUIET = {"inner_lr": 1e-6, "gamma": 1.0, "temperature": 0.0}
RULES = (
    Rule("EntropySGD", "EntropySGD", False, 20, QUIET),
    Rule("EntropySGD, noise", "EntropySGD", True, 20, {**QUIET, "temperature": 1e-8, "seed": 0}),
    Rule("HJ", "HJ", False, 5, {}),
    Rule("Heat", "Heat", True, 5, {"seed": 0}),
    Rule("EntropyAdamW", "EntropyAdamW", False, 20, {"momentum": 0.0, "weight_decay": 0.0}),
)


@dataclass(frozen=True)
class Contestant:
    """A step that is ``calls`` calls, each of which moves ``bytes``."""

    step: Step
    calls: int
    bytes: float


def in_turn(runs: list[Step], calls: int) -> None:
    """Make so many calls of the runs."""
    for k in range(calls):
        runs[k % len(runs)]()


def apart(size: int, calls: int) -> int:
    """On how many tensors calls are made in turn, so that none finds its operands in a cache. Before the first, the
    timer copies more than a cache holds."""
    return calls if size < LARGE else 1


def parameter(size: int, dtype: str, unaligned: str = "") -> Tensor:
    """Random, with a random gradient; ``unaligned``: "w" or "g", which of them begins one element into its memory."""
    w, g = (torch.randn(size + 1, device=GPU, dtype=DTYPES[dtype])[name == unaligned :][:size] for name in ("w", "g"))
    p: Tensor = torch.nn.Parameter(w)
    p.grad = g
    return p


def inner(
    rule: Rule, backend: str | Backend, dtype: str, size: int, calls: int, unaligned: str = "", **options: Any
) -> Contestant:
    """Inner calls on tensors of that size, each an optimizer's only one."""
    steps = []
    for _ in range(apart(size, calls)):
        opt = rule.make([parameter(size, dtype, unaligned)], backend, inner_steps=10**9, **options)
        if options.get("capturable"):
            opt.grad_scale, opt.found_inf = torch.full((), 1024.0, device=GPU), torch.zeros((), device=GPU)
        opt.step()  # the first call of the cycle; errors show
        steps.append(opt.step)
    synchronize()
    return Contestant(partial(in_turn, steps, calls), calls, rule.bytes(dtype, "inner") * size)


def copies(size: int, calls: int) -> Contestant:
    """Copies of as many fp32 elements."""
    pairs = [torch.randn(2, size, device=GPU) for _ in range(apart(size, calls))]
    return Contestant(partial(in_turn, [partial(to.copy_, source) for to, source in pairs], calls), calls, 8 * size)


def synchronize() -> None:
    """Wait for the device."""
    if GPU.type == "cuda":
        torch.cuda.synchronize(GPU)


def timer() -> Timer:
    """Times work on the device between events. Copies of 2 GiB moved before it empty the caches, and keep the device
    from waiting for the host: ``DeviceTimer`` makes 64 at most, and a slow host takes 10 ms for 64 short calls."""
    return DeviceTimer(Watch(), copies(8 * LARGE, 1).step)


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": median, "low": low, "high": high}


def compare(
    contestants: Mapping[str, Contestant], rounds: int, other: str, kinds: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Figures of the calls of all, from a sample of each in every round, in a new random order; those in ``kinds`` are
    the calls of one optimizer's cycle, told apart by their order.

    Returns:
        For each ``us`` and ``host_us``; the fraction of samples in which the device ``waited`` for the host; the bytes
        moved, the bandwidth, and the bandwidth relative to that of ``other``, a ratio for each round.
    """
    cycle = contestants[kinds[0]].step if kinds else synchronize  # without kinds it is not called
    others = {name: c.step for name, c in contestants.items() if name not in kinds}
    samples = sample(cycle, kinds, others, timer(), rounds)
    seconds = {name: [s.cost / c.calls for s in samples[name]] for name, c in contestants.items()}
    found = {}
    for name, this in contestants.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
        found[name] = {
            "us": spread([1e6 * t for t in seconds[name]]),
            "host_us": statistics.median(1e6 * s.host / this.calls for s in samples[name]),
            "waited": statistics.mean(s.waited for s in samples[name]),
            "bytes": this.bytes,
            "gb_per_s": this.bytes / statistics.median(seconds[name]) / 1e9,
            "bandwidth_ratio": spread([this.bytes / contestants[other].bytes / ratio for ratio in ratios]),
            "relative_to": other,
        }
    return found


class Rows:
    """A script's results in a folder's rows.jsonl, whose first line says what they were produced with. A last line
    that an interruption truncated is removed."""

    def __init__(self, out: Path, script: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.script = out / "rows.jsonl", script
        self.path.touch()
        whole = self.path.read_bytes().rfind(b"\n") + 1
        os.truncate(self.path, whole)
        if not whole:
            self.add(script="about", **about())

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
            synchronize()

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Sample clocks, power and reasons for throttling inside, and add them as a row."""
        smi = nvidia_smi(LOAD, "--format=csv,noheader,nounits --loop-ms=200")
        try:
            yield
        finally:
            smi.terminate()
            printed = smi.communicate()[0]
            samples = [line.split(", ") for line in printed.splitlines() if line.count(",") == LOAD.count(",")]
            try:
                *columns, reasons = zip(*samples)
                ranges = {name: spread(list(map(float, values))) for name, values in zip(LOAD.split(","), columns)}
                self.add(script="clocks", during=self.script, **ranges, reasons=sorted(set(reasons)))
            except ValueError:  # no nvidia-smi, or one that does not know a field, or "[N/A]"
                self.add(script="clocks", during=self.script, said=printed[-TRACEBACK:])


LOAD = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"


def nvidia_smi(fields: str, options: str) -> subprocess.Popen[str]:
    """Prints these fields; nothing where there is no nvidia-smi."""
    command = f"exec nvidia-smi --query-gpu={fields} {options}"
    return subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def about() -> dict[str, Any]:
    """GPU, driver, versions, commit (COMMIT names it outside of a repository), date."""
    found = describe(GPU)
    driver = nvidia_smi("driver_version,clocks.max.sm,power.limit", "--format=csv,noheader")
    return {
        **found,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": os.environ.get("COMMIT") or found["commit"] or "unknown",
        "kernels": cuda_kernels(),
        "driver": driver.communicate()[0].strip(),
        "why_not": {name: kernels.why_not(name) for name in BACKENDS},
    }


def arguments(description: str, *flags: str) -> argparse.Namespace:
    """The arguments of a script: ``--backend``, and flags."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()
