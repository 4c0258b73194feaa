"""The ``cpu`` backend: hands addresses and scalars to the C++ kernels of ``csrc/``."""

from __future__ import annotations

import ctypes
import os
from array import array
from ctypes import addressof
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .abi import CpuLaunch, Flag, Scalars
from .clock import Tick
from .noise import Draw
from .scalars import Rule
from .table import Table

# Elements of one unit of work: with 4 to 7 operands in fp32 it fills about half of the second-level cache, and is long
# enough for the hardware prefetchers.
CHUNK = 16384

# From this many elements of a launch on, weights that a call writes without reading them bypass the caches: they will
# have been evicted before the next forward pass reads them. 16 MiB of fp32 weights, 64 MiB with gradients and state.
PAST_CACHE_FROM = 1 << 22

# The fewest elements per thread: smaller launches use fewer threads.
PER_THREAD = 32768

# Pieces of work per thread; a thread takes the next piece when it is done with one. Each is a call of the kernel, which
# a single small chunk would not be worth.
PIECES = 64


def preferred_instruction_set(available: list[str]) -> str:
    """The widest; ``DEEPRELAX_ISA`` overrides."""
    asked = os.environ.get("DEEPRELAX_ISA")
    if asked and asked not in available:
        raise RuntimeError(f"DEEPRELAX_ISA={asked}: this processor and build have {', '.join(available)}")
    return asked or available[-1]


def openmp_of_torch() -> int:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch runs on, or 0 if there is none.

    A second pool of threads would compete with torch's for the cores: torch's workers spin for a while after every
    parallel region.
    """
    library = Path(torch.__file__).parent / "lib"
    try:
        with open("/proc/self/maps") as maps:
            loaded = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    except OSError:
        return 0
    runtimes = [path for path in loaded if Path(path).name.startswith(("libgomp", "libiomp5", "libomp"))]
    # torch's own copy first: scikit-learn and others bring theirs.
    runtimes.sort(key=lambda path: (library not in Path(path).parents, "torch" not in Path(path).parent.name, path))
    for path in runtimes:
        try:
            function = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


class CPUUpdate:
    """A ``CpuLaunch``, complete except for the gradients and the number of threads."""

    __slots__ = ("_address", "_kept", "_launch", "_module_run", "_most_threads")

    def __init__(self, backend: NativeCPU, rule: Rule, table: Table, buffers: dict[str, Tensor]) -> None:
        chunks = table.chunks(backend.chunk)
        indices = array("q", table.indices)
        self._kept = table, buffers, chunks, indices  # the launch has their addresses
        self._launch = launch = CpuLaunch(
            weights=table.weight_addresses.buffer_info()[0],
            tensors=indices.buffer_info()[0],
            chunks=chunks.data_ptr(),
            n_chunks=len(chunks),
            flags=int(Flag.PAST_CACHE) if table.length >= backend.past_cache_from else 0,
            instruction_set=backend.number,
            threads=backend.threads or 1,
            pieces=PIECES,
            parallel=backend.parallel,
        )
        launch.bind(rule, table.dtype, buffers)
        self._address = addressof(launch)
        self._module_run = backend.module.run
        self._most_threads = 1 if backend.threads else table.length // PER_THREAD

    def run(self, scalars: Scalars, grads: list[Tensor | None], addresses: array[int]) -> None:
        """One update of every weight of the table, in place: see ``Update.run`` in ``__init__.py``."""
        launch = self._launch
        launch.grads = addresses.buffer_info()[0]
        if self._most_threads > 1:
            launch.threads = min(torch.get_num_threads(), self._most_threads)
        self._module_run(self._address, addressof(scalars))

    def run_ticked(self, tick: Tick, grads: list[Tensor | None], addresses: array[int]) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        if tick.clock.host_scalars is not None:
            self.run(tick.clock.host_scalars, grads, addresses)


class NativeCPU:
    """C++ on CPU tensors.

    Args:
        module: the compiled module.
        instruction_set: one of ``module.instruction_sets()``; default the widest.
        chunk: elements of one unit of work.
        threads: default ``torch.get_num_threads()`` at every call.
        past_cache_from: see ``PAST_CACHE_FROM``.
    """

    name = "cpu"
    capturable = True

    def __init__(
        self,
        module: Any,
        instruction_set: str | None = None,
        chunk: int = CHUNK,
        threads: int | None = None,
        past_cache_from: int = PAST_CACHE_FROM,
    ) -> None:
        self.module = module
        self.chunk, self.threads, self.past_cache_from = chunk, threads, past_cache_from
        self.parallel = openmp_of_torch()
        available = module.instruction_sets()
        self.instruction_set = instruction_set or preferred_instruction_set(available)
        self.number = available.index(self.instruction_set)

    def bind(self, rule: Rule, table: Table, buffers: dict[str, Tensor], capturable: bool = False) -> CPUUpdate:
        """Prepare what stays the same from call to call: see ``Backend.bind`` in ``__init__.py``."""
        return CPUUpdate(self, rule, table, buffers)

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call, and advance its clock."""
        tick.on_host()

    def normal(self, draw: Draw, index: int, start: int, count: int) -> Tensor:
        """What ``noise.normal`` returns, from the vectorised generator; for tests."""
        out = torch.empty(count, dtype=torch.float32)
        words = [*draw.key, draw.step & 0xFFFFFFFF]
        self.module.normals(self.number, out.data_ptr(), words, index, start, count)
        return out
