"""What limits each kernel: an inner call of every rule and dtype under Nsight Compute, at the clocks as they are.

python bench/gpu/ncu.py --backend cuda     # --calls only makes the calls, for ncu
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator

import torch
from common import DTYPES, LARGE, OUT, RULES, TRACEBACK, Rows, arguments, inner, synchronize

STALLS = "long_scoreboard short_scoreboard wait math_pipe_throttle lg_throttle mio_throttle no_instruction not_selected"
METRICS = {
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "ns": "gpu__time_duration.sum",
    **{f"stall {name}": f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in STALLS.split()},
}
WORK = [(rule, dtype) for dtype in DTYPES for rule in RULES]
NAMES = ("update", *(rule.kernel.name for rule in RULES))  # in those of CUDA's kernels, and of Triton's


def calls(backend: str) -> None:
    """Make each call once to compile it, and once more for the profiler."""
    for rule, dtype in WORK:
        call = inner(rule, backend, dtype, LARGE, 1)
        call.step()
        torch.cuda.profiler.start()
        call.step()
        synchronize()
        torch.cuda.profiler.stop()


def parsed(printed: str) -> Iterator[dict[str, float]]:
    """Metrics of each launch of an update, from ncu's raw page as CSV: names, units, then a line a launch."""
    lines = [line for line in printed.splitlines() if line.startswith('"')]
    for launch in list(csv.DictReader(lines))[1:]:
        if any(name in launch["Kernel Name"] for name in NAMES):
            found = ((name, launch.get(metric)) for name, metric in METRICS.items())
            yield {name: float(value.replace(",", "")) for name, value in found if value}


def main() -> None:
    given = arguments(str(__doc__), "--calls")
    if given.calls:
        calls(given.backend)
        return
    rows = Rows(OUT, "ncu")
    # Nsight Compute fixes clocks by default: what it measures would not be what the other scripts measure.
    options = ["--clock-control=none", "--profile-from-start=off", "--csv", "--page=raw", "--print-units=base"]
    command = ["ncu", *options, "--metrics", ",".join(METRICS.values()), sys.executable, __file__, "--calls"]
    with rows.attempt(given.backend):
        done = subprocess.run([*command, "--backend", given.backend], capture_output=True, text=True)
        found = list(parsed(done.stdout))
        if len(found) != len(WORK):
            raise RuntimeError(f"ncu: {(done.stdout + done.stderr)[-TRACEBACK:]}")
        for (rule, dtype), metrics in zip(WORK, found):
            rows.add(backend=given.backend, rule=rule.name, dtype=dtype, **metrics)


if __name__ == "__main__":
    main()
