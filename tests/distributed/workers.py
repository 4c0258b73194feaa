"""Workers for the tests: threads of one process that meet at barriers, and processes over gloo."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).parents[2]
LOSE_SOME = ("killed", "hung", "uneven")  # scenarios in which not all processes reach the end


class Meeting:
    """Where threads put their tensors together, in the order of ranks."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.slots = size, threading.Barrier(size, timeout=60), [torch.empty(0)] * size


class Thread:
    """One worker's view of a meeting: what an optimizer takes as ``replicas``."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, meeting.size

    def mean_(self, flat: Tensor) -> None:
        meeting = self.meeting
        meeting.slots[self.rank] = flat.clone()
        meeting.barrier.wait()
        total = meeting.slots[0].clone()
        for other in meeting.slots[1:]:
            total += other
        meeting.barrier.wait()
        flat.copy_(total / self.size)


def threads(size: int, work: Callable[[Thread], Any]) -> list[Any]:
    """What ``work`` returns on each worker, or the exception that it raised."""
    meeting, results = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(meeting, rank))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]
            time.sleep(0.5)  # the others may be about to raise the same
            meeting.barrier.abort()

    running = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for each in running:
        each.start()
    for each in running:
        each.join()
    return results


def processes(
    size: int, scenario: str, folder: Path, timeout: float = 100.0, program: str = "scenarios.py", **settings: str
) -> list[Any]:
    """What the scenario of the program returns on each of so many processes; None of one that left nothing."""
    command = [sys.executable, str(ROOT / "tests" / "distributed" / program), scenario]
    environment = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "STORE": str(folder / f"store-{scenario}-{size}"),
        "RESULT": str(folder / f"{scenario}-{size}"),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder, timeout=timeout)
    results = []
    for rank in range(size):
        path = folder / f"{scenario}-{size}-{rank}.pickle"
        results.append(pickle.loads(path.read_bytes()) if path.exists() else None)
    assert any(result is not None for result in results), done.stderr
    return results


def serve(scenarios: Mapping[str, Callable[[int], Any]], prepare: Callable[[], object] = lambda: None) -> None:
    """Run the scenario that the command line names in WORLD_SIZE processes, and leave what it returns on each of them.

    The processes share what this one has imported, which takes seconds. At the end they wait for each other, unless
    some never get there, and leave without torch's own clean-up, which sometimes crashes.

    Args:
        scenarios: by name; each is called with the rank.
        prepare: called in each process before it joins the group. GROUP=0: there is none.
    """
    name, size, children = sys.argv[1], int(os.environ["WORLD_SIZE"]), []
    for rank in range(size):
        children.append(os.fork())
        if children[-1]:
            continue
        try:
            prepare()
            if group := os.environ.get("GROUP") != "0":
                store, minute = f"file://{os.environ['STORE']}", timedelta(seconds=60)
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=minute)
            Path(f"{os.environ['RESULT']}-{rank}.pickle").write_bytes(pickle.dumps(scenarios[name](rank)))
            if group and name not in LOSE_SOME:
                dist.barrier()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    for child in children:
        os.waitpid(child, 0)
