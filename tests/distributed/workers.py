"""Workers for the tests: threads of one process that meet at barriers, and processes over gloo."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import shlex
import socket
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

FORKED, SPAWNED = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
FORKED.set_forkserver_preload(["deeprelax", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp"])
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
    size: int,
    scenario: str,
    folder: Path,
    timeout: float = 100.0,
    program: str = "scenarios",
    fresh: bool = False,
    **settings: str,
) -> list[Any]:
    """What the scenario of the program returns in each process; None for one that left no result.

    Args:
        size: of the process group.
        scenario: a function of the program; it is called with the rank.
        folder: of the results, and where the processes run.
        timeout: in seconds, of all of them together.
        program: the module.
        fresh: whether they begin with nothing imported, or with the modules that take seconds to import.
        settings: variables of their environment. GROUP=0: there is no process group.
    """
    context: Any = SPAWNED if fresh else FORKED
    stem = folder / f"{scenario}-{size}"
    paths = [stem.with_name(f"{stem.name}-{rank}.pickle") for rank in range(size)]
    running = [
        context.Process(target=work, args=(program, scenario, stem, rank, size, settings)) for rank in range(size)
    ]
    for each in running:
        each.start()
    end = time.monotonic() + timeout
    for each in running:
        each.join(max(end - time.monotonic(), 0))
        each.kill()
    results = [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]
    assert any(result is not None for result in results), stem.with_suffix(".stderr").read_text()
    return results


def launched(size: int, program: Path, *arguments: object, folder: Path) -> list[str]:
    """What each process prints of a program for torchrun, forked with torchrun's variables: the program's imports and
    torchrun's own take seconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    where = {"GROUP": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    said = processes(
        size, "program", folder, 240.0, PROGRAM=str(program), ARGUMENTS=shlex.join(map(str, arguments)), **where
    )
    assert None not in said, (folder / f"program-{size}.stderr").read_text()
    return said


def work(program: str, scenario: str, stem: Path, rank: int, size: int, settings: dict[str, str]) -> None:
    """One of the processes. At the end they wait for each other, unless some never get there, and leave without torch's
    own clean-up, which sometimes crashes."""
    try:
        os.chdir(stem.parent)
        os.dup2(os.open(stem.with_suffix(".stderr"), os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
        os.environ.update(settings, WORLD_SIZE=str(size))
        torch.set_num_threads(1)
        module = importlib.import_module(program)
        if group := settings.get("GROUP") != "0":
            store, minute = f"file://{stem}.store", timedelta(seconds=60)
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=minute)
        stem.with_name(f"{stem.name}-{rank}.pickle").write_bytes(pickle.dumps(getattr(module, scenario)(rank)))
        if group and scenario not in LOSE_SOME:
            dist.barrier()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
