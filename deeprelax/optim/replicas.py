"""What the workers of Elastic-SGD and Parle exchange: a mean of one flat buffer, in one collective an outer step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from deeprelax.optim.sharding import part

CHECKED = 4  # numbers at the buffer's end, from which workers notice that they are at different steps


@runtime_checkable
class Replicas(Protocol):
    """The workers, as an optimizer sees them.

    If workers can join and leave, an object also has ``join(opt)``, which is called before the first exchange instead
    of comparing the workers, and ``joining``: whether this worker took no part in the last mean, and has since loaded
    the others' state into ``opt``. It then begins at the centre.

    Attributes:
        rank: this worker's number.
        size: how many there are.
    """

    rank: int
    size: int

    def mean_(self, flat: Tensor) -> None:
        """Put the mean over all workers into the tensor, the same bits on every worker."""


class Alone:
    """One worker."""

    rank, size = 0, 1

    def mean_(self, flat: Tensor) -> None:
        """The tensor is the mean."""


class Processes:
    """The processes of a group of ``torch.distributed``.

    Args:
        group: the group.
        deterministic: sum in the order of ranks, so that the bits depend neither on the buffer's layout nor on the
            backend's algorithm: two collectives that move the bytes of one. With two workers no sum depends on either.
    """

    def __init__(self, group: dist.ProcessGroup, deterministic: bool) -> None:
        self.group, self.deterministic = group, deterministic
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def mean_(self, flat: Tensor) -> None:
        """Sum and divide.

        Raises:
            RuntimeError: a worker has stopped, or did not answer within the group's timeout.
        """
        self.begin(flat)()

    def begin(self, flat: Tensor) -> Callable[[], None]:
        """Start the exchange, and return a function that waits for the mean."""
        in_order = self.deterministic and self.size > 2
        share = -(-flat.numel() // self.size)
        with self._named():
            if not in_order:
                work = dist.all_reduce(flat, group=self.group, async_op=True)
            else:
                padded = torch.cat([flat, flat.new_zeros(share * self.size - flat.numel())])
                shares = torch.empty_like(padded)
                work = dist.all_to_all_single(shares, padded, group=self.group, async_op=True)

        def end() -> None:
            with self._named():
                work.wait()
                if in_order:
                    mine = shares[:share].clone()
                    for other in range(1, self.size):
                        mine += shares[share * other : share * (other + 1)]
                    dist.all_gather_into_tensor(padded, mine, group=self.group)
                    flat.copy_(padded[: flat.numel()])
            flat.div_(torch.tensor(float(self.size), dtype=flat.dtype, device=flat.device))

        return end

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"worker {self.rank} of {self.size}: the exchange with the other workers failed; one has stopped, or "
                f"did not answer within the process group's timeout ({error})"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return replicas_of, (None, self.deterministic)


def replicas_of(given: Any, deterministic: bool) -> Replicas:
    """The workers that a user named.

    Args:
        given: None (the default process group, or one worker without it), a ``ProcessGroup``, a ``DeviceMesh`` of one
            dimension, or an object with ``rank``, ``size`` and ``mean_(flat)``.
        deterministic: as for ``Processes``.

    Raises:
        TypeError: it is none of these.
        ValueError: a mesh has more than one dimension; None, and ``WORLD_SIZE`` says that there are other processes.
    """
    if given is None and dist.is_available() and dist.is_initialized():
        return Processes(dist.group.WORLD, deterministic)  # type: ignore[arg-type]
    if given is None:
        if (size := os.environ.get("WORLD_SIZE", "1")) != "1":
            raise ValueError(
                f"this is one of {size} processes (WORLD_SIZE), and there is no process group: call "
                "torch.distributed.init_process_group() before constructing the optimizer"
            )
        return Alone()
    if isinstance(given, dist.ProcessGroup):
        return Processes(given, deterministic)
    if isinstance(given, dist.device_mesh.DeviceMesh):
        if given.ndim != 1:
            raise ValueError(f"replicas is a mesh of {given.ndim} dimensions; name the one over which workers average")
        return Processes(given.get_group(), deterministic)
    if isinstance(given, Replicas):
        return given
    raise TypeError(
        f"replicas must be None, a ProcessGroup, a DeviceMesh of one dimension, or an object with rank, size and "
        f"mean_(flat), not {type(given).__name__}"
    )


def agree(replicas: Replicas, values: Sequence[int], device: torch.device) -> list[bool]:
    """For each of some integers below 2^20 whether it is the same on every worker; all workers get the same answer."""
    flat = torch.tensor(values, dtype=torch.float64)
    pair = torch.cat([flat, flat * flat]).to(device)
    replicas.mean_(pair)
    mean, square = pair.cpu().chunk(2)
    # For integers the mean of squares is the square of the mean if all are equal, else at least 1/size² more.
    return (abs(square - mean * mean) < 0.5 / replicas.size**2).tolist()


def checksum(t: Tensor) -> int:
    """20 bits of a tensor, or of this process's part of it."""
    t = part(t)
    if t.numel() == 0:
        return 0
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[t.element_size()]
    words = t.detach().contiguous().view(integers).flatten().long()
    places = torch.arange(1, words.numel() + 1, device=t.device) % 8191 + 1
    total = int((words * places).sum()) & (1 << 63) - 1
    return (total ^ total >> 20 ^ total >> 40) & 0xFFFFF


class Exchange:
    """The flat buffer with which a step's tensors are exchanged, and numbers that give each worker's step.

    Args:
        replicas: the workers.
        overlap: whether to exchange while the next cycle is computed.
        dtype: of what is sent; None: the widest of the parts.

    Attributes:
        alone: whether this is the only worker, and none can join.
        joined: whether the workers have been compared, and began alike.
        sent: the parts of the exchange that has begun and not ended.
    """

    def __init__(self, replicas: Replicas, overlap: bool = False, dtype: torch.dtype | None = None) -> None:
        self.replicas, self.overlap, self._dtype = replicas, overlap, dtype
        self.alone = self.joined = replicas.size == 1 and not hasattr(replicas, "join")
        self.sent: Sequence[Tensor] = ()
        self._flat: Tensor | None = None
        self._wait: Callable[[], None] | None = None
        self._turn = 0

    @property
    def pending(self) -> bool:
        """Whether an exchange has begun and not ended."""
        return self._flat is not None

    def begin(
        self, parts: Sequence[Tensor], *, finishing: bool = False, active: bool = True, aside: bool = False
    ) -> None:
        """Send the parts, one-dimensional and on one device.

        Args:
            parts: what is averaged.
            finishing: whether this worker has no more gradients.
            active: whether it has had any since the last exchange.
            aside: whether this is not an outer step, but only an evaluation at the mean.
        """
        dtype = self._dtype or max((part.dtype for part in parts), key=lambda d: d.itemsize)
        # Sums of small integers are exact.
        turn = -1 if aside else self._turn % (2 if dtype.itemsize == 2 else 64)
        numbers = [float(finishing), float(active), turn, turn * turn]
        self._flat = torch.cat(
            [*(part.to(dtype) for part in parts), torch.tensor(numbers, dtype=dtype, device=parts[0].device)]
        )
        self.sent = parts
        if self.overlap and isinstance(self.replicas, Processes):
            self._wait = self.replicas.begin(self._flat)
        self._turn += 1

    @property
    def joining(self) -> bool:
        """Whether this worker begins at the centre, and not at its x of the last exchange."""
        return getattr(self.replicas, "joining", False)

    def drop(self) -> None:
        """Discard a pending exchange: this worker is no longer at the point that it sent."""
        wait = self._wait
        self._flat, self._wait, self.sent = None, None, ()
        if wait is not None:  # the collective is running
            wait()

    def end(self) -> list[Tensor] | None:
        """The means over the workers, in the parts' dtypes; None if no worker was active.

        Raises:
            RuntimeError: on every worker: they are at different steps, some have finished, or one has stopped.
        """
        assert self._flat is not None
        flat, sent, wait = self._flat, self.sent, self._wait
        self._flat, self._wait, self.sent = None, None, ()
        if wait is not None:
            wait()
        else:
            self.replicas.mean_(flat)
        finished, active, mean, square = flat[-CHECKED:].double().tolist()
        size = self.replicas.size
        if 0 < finished < 1:
            raise RuntimeError(
                f"{round(finished * size)} of {size} workers have called finish(), while the others have more "
                "gradients: give every worker the same number of batches, or call finish() on all at the same step"
            )
        if abs(square - mean * mean) > 0.4 / size**2:
            raise RuntimeError(f"the {size} workers are at different outer steps; this one has made {self._turn}")
        if self.joining:
            if mean < 0:
                raise RuntimeError("the other workers are evaluating: start this one again")
            self._turn = round(mean) + 1
        pieces = torch.split(flat[:-CHECKED], [each.numel() for each in sent])
        return [piece.to(each.dtype).clone() for piece, each in zip(pieces, sent)] if active else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_flat": None, "_wait": None, "sent": ()}
