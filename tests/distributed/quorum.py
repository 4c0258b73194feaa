"""Workers under torchft's manager, started by ``workers.processes``.

Workers 0, 1 and 2 begin. 2 is killed after the third outer step. 3 joins then, and is killed in its fourth exchange,
before it sends anything. What each holds after every outer step is in RANK.pickle, by the step's number.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from simulation import parameters, take_step
from torch.distributed import TCPStore
from torchft import Manager, ProcessGroupGloo

import deeprelax
from deeprelax.integrations.torchft import Workers

OPTIONS: dict[str, Any] = {"lr": 0.3, "inner_lr": 0.05, "inner_steps": 3, "gamma": 0.5, "scoping": 0.0, "seed": 1}


def wait_for(*paths: Path) -> None:
    """Until the files exist."""
    while not all(path.exists() for path in paths):
        time.sleep(0.01)


def die(*_: Any, **__: Any) -> None:
    """As a machine that loses power."""
    os.kill(os.getpid(), signal.SIGKILL)


def worker(rank: int) -> bool:
    """Take steps until the last worker is gone, and two more outer steps."""
    folder = Path.cwd()
    if rank == 3:
        wait_for(folder / "a worker may join")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=20)),
        load_state_dict=None,
        state_dict=None,
        min_replica_size=1,
        replica_id=f"worker{rank}",
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=os.environ["LIGHTHOUSE"],
        hostname="127.0.0.1",
    )
    (folder / f"{rank} is there").touch()
    if rank < 3:
        wait_for(*(folder / f"{other} is there" for other in range(3)))
    params, held = parameters(), {}
    if rank > 0:
        with torch.no_grad():  # init_sync puts that right
            params[0] += rank
    workers = Workers(manager, rank)
    opt = deeprelax.ElasticSGD(params, **OPTIONS, backend="eager", replicas=workers)
    number, sizes = 0, []
    while sizes.count(3) < 4 or sizes[-2:] != [2, 2]:
        take_step(opt, params, rank, number)
        number += 1
        if not opt.outer_step_happened:
            continue
        held[manager.current_step()] = {
            "point": [p.detach().clone() for p in params],
            "centre": [opt.state[p]["x"].clone() for p in params],
            "size": workers.size,
            "joining": workers.joining,
        }
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(held))
        sizes.append(workers.size)
        if rank == 2 and len(held) == 3:
            die()
        if rank == 3 and len(held) == 3:
            manager.allreduce = die  # type: ignore[method-assign]
        if sizes[-1] == 2:  # nobody waits for a worker that is not there
            (folder / "a worker may join").touch()
            time.sleep(0.05)
    return True
