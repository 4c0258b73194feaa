"""Workers that come and go, under torchft's ``Manager``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp
from torchft import Manager

from deeprelax.optim.relaxation import Relaxation


class Workers:
    """What ``ElasticSGD`` and ``Parle`` take as ``replicas`` where torchft's lighthouse says who the workers are.

    Every exchange is a quorum and a step of the manager's. The mean is over those who are in the quorum then: a worker
    that died since the last exchange is left out, and with it what it learned since. A mean that the manager does not
    commit is not used: the exchange is repeated with the workers that remain, until one is committed or the manager
    gives up (its ``max_retries`` and ``quorum_timeout``). A new worker, or one that fell behind, takes over the state
    of another at its first exchange, has no part in that mean, and begins at the centre; with the manager's
    ``init_sync`` that also makes all of them begin like one. So the workers are not compared before the first step.
    Batch norm statistics do not travel: recalibrate them, or register them with the manager.

    Args:
        manager: one for this optimizer alone. Its functions for the state may be None: the optimizer's are registered
            here.
        rank: of the noise: another number for every worker, and for a worker always the same.

    Attributes:
        size: workers in the last mean; 0 before the first.
        joining: whether this worker took over the state at the last exchange.
    """

    def __init__(self, manager: Manager, rank: int) -> None:
        self.manager, self.rank = manager, rank
        self.size, self.joining = 0, False

    def join(self, opt: Relaxation) -> None:
        """Let the manager save and load the optimizer."""

        def load(state: dict[str, Any]) -> None:
            opt.load_state_dict(state)
            self.joining = True

        self.manager.register_state_dict_fn("deeprelax", load, opt.state_dict)

    def mean_(self, flat: Tensor) -> None:
        """Put the mean over the workers of a quorum into the tensor.

        Raises:
            RuntimeError: no quorum; the workers whose state this one took over are gone before they exchanged anything.
        """
        committed, self.joining = False, False
        while not committed:
            self.manager.start_quorum()
            # The last number counts who took part: the manager counts those who send zeros as well.
            sums = torch.cat([flat, flat.new_ones(1)])
            if self.joining:  # at this quorum, or at one that was not committed: flat is of another state
                sums.zero_()
            self.manager.allreduce(sums, reduce_op=ReduceOp.SUM).wait()
            committed = self.manager.should_commit()
        self.size = int(sums[-1])
        if self.size == 0:
            raise RuntimeError("the workers from which this one took over the state are gone: resume from a checkpoint")
        flat.copy_(sums[:-1] / sums[-1])
