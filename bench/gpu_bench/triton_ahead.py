"""Compiles what will be launched in processes of its own: Triton leaves on the disk what it has compiled."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait

import torch

from deeprelax.kernels.triton.sizes import Kind, Sizes
from gpu_bench.triton_candidates import Work

ELEMENTS = 2**13  # few: kernels read their number from a table


def compile_one(kind: Kind, sizes: Sizes) -> None:
    """Compile that candidate for the current GPU, and launch nothing: a launch that goes wrong would end the process's
    use of the device."""
    work = Work(kind, ELEMENTS, torch.device("cuda", torch.cuda.current_device()))
    launch = work.launch(work.backend(sizes))
    launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options)


class Ahead:
    """Works through the candidates in their order.

    What fails is not told of: the same happens again, and is seen, where the candidate is run.

    Args:
        work: kinds with their candidates.
        processes: at a time.
        compile_one: what is done for each; the tests' is another.
    """

    def __init__(
        self,
        work: dict[Kind, list[Sizes]],
        processes: int,
        compile_one: Callable[[Kind, Sizes], object] = compile_one,
    ) -> None:
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
        self._futures: dict[Kind, Iterable[Future[object]]] = {
            kind: [self._pool.submit(compile_one, kind, sizes) for sizes in chosen] for kind, chosen in work.items()
        }

    def wait(self, kind: Kind) -> None:
        """Until that kind's candidates are compiled, or have failed to be."""
        wait(self._futures[kind])

    def stop(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
