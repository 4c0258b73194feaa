"""What each of two processes does: both Trainers, interrupted and resumed. two_processes.py FOLDER OPTIMIZER…"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import test_lightning
import test_transformers
import torch
import torch.distributed as dist
from conftest import plain, values


def transformers_run(folder: Path, name: str) -> dict[str, Any]:
    """With accumulation and clipping; the seed is agreed on by the ranks, which would each draw another."""
    changes = {"optimizer": {} if name == "HJ" else {"seed": None}, "save_strategy": "steps", "save_steps": 3}
    run, recorder = test_transformers.trainer(folder, name, "accumulation", max_steps=7, **changes)
    run.train()
    dist.barrier()
    end = values(run.model.parameters())
    checkpoint = folder / "checkpoint-6"
    saved = test_transformers.saved(checkpoint, run.model)
    resumed, again = test_transformers.trainer(folder / "again", name, "accumulation", max_steps=7, **changes)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    states = [plain(each.optimizer.state_dict()) for each in (run, resumed)]
    return {"x": recorder.found, "saved": saved, "end": end, "resumed": again.found, "same": states[0] == states[1]}


class Sharing(test_lightning.Network):
    """Each rank has its own batches, as a distributed sampler gives them."""

    def loss(self, seed: int) -> torch.Tensor:
        return super().loss(2 * seed + dist.get_rank())


def lightning_run(folder: Path, name: str) -> dict[str, Any]:
    """A run under DDP."""
    ddp = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    run, recorder = test_lightning.trainer(folder, max_steps=7, val_check_interval=3, **ddp)
    module = Sharing(name)
    run.fit(module, test_lightning.loader(), test_lightning.loader())
    dist.barrier()
    resumed, again = test_lightning.trainer(folder, checkpoints=False, max_steps=7, **ddp)
    resumed.first = 6
    other = Sharing(name)
    resumed.fit(other, test_lightning.loader(), ckpt_path=folder / "6.ckpt")
    same = plain(module.opt.state_dict()) == plain(other.opt.state_dict())
    saved = test_lightning.saved(folder / "6.ckpt")
    return {
        **{"x": recorder.found, "saved": saved, "end": values(module.parameters()), "resumed": again.found},
        **{"same": same, "shown": module.shown},
    }


def main() -> None:
    """Both, for every optimizer; the result of each rank in a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.manual_seed(rank)
    found: dict[str, Any] = {}
    for name in sys.argv[2:]:
        found[f"transformers {name}"] = transformers_run(folder / "transformers" / name, name)
        found[f"lightning {name}"] = lightning_run(folder / "lightning" / name, name)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
