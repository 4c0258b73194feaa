"""The ``cpu`` backend: hands addresses and scalars to the C++ kernels of ``csrc/``."""

from __future__ import annotations

import ctypes
import os
from array import array
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .calls import Call, EntropySGDCall, HeatCall, HJCall, Table
from .clock import REALS, Tick
from .noise import Stream
from .settings import AnySettings, EntropySGDSettings, HeatSettings, HJSettings, Settings

RULES = {"entropy_sgd": 0, "hj": 1, "heat": 2}
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# Numbers::flags in csrc/call.h.
FIRST, LAST, MAXIMIZE, IMPLICIT, NESTEROV, FRESH_VELOCITY = 1, 2, 4, 8, 16, 32
STOCHASTIC_ROUNDING, WARM_START, READ_PARAM, TAKE_PARAM, INNER_NESTEROV, PAST_CACHE = 64, 128, 256, 512, 1024, 2048
NOISE = 4096

# Elements of one unit of work: with 4 to 7 streams of fp32 it fills the second-level cache about half, and the
# prefetchers run through it; bench/kernels.py --sweep-chunk measures it.
CHUNK = 16384

# From this many elements of a launch on, weights that a call writes without reading them bypass the caches: they will
# have been evicted before the next forward pass reads them. 16 MiB of fp32 weights, 64 MiB with gradients and state.
PAST_CACHE_FROM = 1 << 22

# Elements that must be waiting for each thread before one more is woken.
PER_THREAD = 32768

# Pieces of the work for each thread, which takes the next when it is done with one. Each is a call of the kernel, which
# converts its scalars anew: a chunk of a few elements is not worth one.
PIECES = 64


def preferred_instruction_set(available: list[str]) -> str:
    """The widest that a test machine has proved; ``DEEPRELAX_ISA`` overrides (AVX-512 is off unless asked for)."""
    asked = os.environ.get("DEEPRELAX_ISA")
    if asked:
        if asked not in available:
            raise RuntimeError(f"DEEPRELAX_ISA={asked}: this processor and build have {', '.join(available)}")
        return asked
    return [name for name in available if name != "avx512"][-1]


def openmp_of_torch() -> int:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch runs on, or 0 where it has none.

    A second pool of threads beside torch's fights it for the cores: torch's workers spin for a while after every
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


def encode(call: Call) -> tuple[int, list[float], list[int]]:
    """(flags, reals, stream) as ``csrc/call.h`` lays them out."""
    outer = call.outer
    flags = FIRST * call.first | LAST * call.last | MAXIMIZE * call.maximize | NESTEROV * outer.nesterov
    inner_lr = inv_gamma = pull = denominator = alpha = one_minus_alpha = gamma = inner_momentum = noise_scale = 0.0
    stream: Stream | None = None
    if isinstance(call, EntropySGDCall):
        flags |= IMPLICIT * call.implicit | FRESH_VELOCITY * call.fresh_velocity
        flags |= STOCHASTIC_ROUNDING * call.stochastic_rounding | INNER_NESTEROV * call.inner_nesterov
        inner_lr, inv_gamma, pull, denominator = call.inner_lr, call.inv_gamma, call.pull, call.denominator
        alpha, one_minus_alpha = call.alpha, call.one_minus_alpha
        inner_momentum, noise_scale, stream = call.inner_momentum, call.noise_scale, call.stream
    elif isinstance(call, HJCall):
        flags |= WARM_START * call.warm_start | READ_PARAM * call.read_param
        alpha, one_minus_alpha, gamma = call.alpha, call.one_minus_alpha, call.gamma
    else:
        assert isinstance(call, HeatCall)
        flags |= TAKE_PARAM * call.take_param
        noise_scale, stream = call.noise_scale, call.stream
    reals = [inner_lr, inv_gamma, pull, denominator, alpha, one_minus_alpha, gamma, call.weight_decay, inner_momentum]
    reals += [noise_scale, outer.step, outer.scale, outer.lr, outer.momentum, call.inv_scale]
    flags |= NOISE * (noise_scale != 0)
    return flags, reals, [0, 0, 0] if stream is None else [*stream.key, stream.step & 0xFFFFFFFF]


NO_NUMBERS = [0.0] * REALS
NO_STREAM = [0, 0, 0]


def static_flags(settings: AnySettings) -> int:
    """The flags that do not depend on the moment, and NOISE where the call may draw any."""
    flags = MAXIMIZE * settings.maximize | NESTEROV * settings.nesterov
    if isinstance(settings, EntropySGDSettings):
        flags |= IMPLICIT * settings.implicit | INNER_NESTEROV * settings.nesterov
        flags |= STOCHASTIC_ROUNDING * settings.stochastic_rounding | NOISE * (settings.temperature != 0)
    elif isinstance(settings, HJSettings):
        flags |= WARM_START * settings.warm_start
    else:
        flags |= NOISE
    return flags


def is_fast(options: Call | AnySettings) -> bool:
    """Whether the CUDA kernels' faster variant may serve a call: no option with a formula of its own is on.

    What only the device knows of a captured call, its kernel finds out: ``is_fast`` in csrc/cuda_kernels.h.
    """
    # A cycle of one call has a body in the other variant only.
    if options.inner_steps == 1 if isinstance(options, Settings) else options.first and options.last:
        return False
    if isinstance(options, EntropySGDCall | EntropySGDSettings):
        return not (options.implicit or options.inner_momentum)
    if isinstance(options, HJCall):
        return not (options.warm_start or (options.read_param and not options.first))
    if isinstance(options, HJSettings):
        return not options.warm_start
    return not (isinstance(options, HeatCall) and options.take_param)


def encode_tick(tick: Tick) -> tuple[int, tuple[Any, ...], tuple[Any, ...]]:
    """(rule, settings, sources) as csrc/module.h takes them."""
    s = tick.settings
    alpha = 0.0 if isinstance(s, HeatSettings) else s.alpha
    temperature, inner_momentum, absorb, carry = 0.0, 0.0, False, False
    if isinstance(s, EntropySGDSettings):
        temperature, inner_momentum = s.temperature, s.inner_momentum
        absorb, carry = s.absorb_gamma, s.carry_inner_momentum
    reals = [s.keep, s.momentum, s.weight_decay, alpha, temperature, inner_momentum]
    settings = s.inner_steps, reals, static_flags(s) & ~NOISE, absorb, carry, tick.missing
    tensors = tick.lr, tick.inner_lr, tick.grad_scale, tick.found_inf
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    doubles = [t is not None and t.dtype == torch.float64 for t in tensors[:2]]
    return RULES[s.rule], settings, (addresses, doubles)


def buffer_addresses(buffers: dict[str, Tensor]) -> list[int]:
    """Of x, y, the average (z, p or s), the momentum and the inner velocity; 0 where there is none."""
    kept = [buffers.get("x"), buffers.get("y"), buffers.get("z", buffers.get("p", buffers.get("s")))]
    kept += [buffers.get("momentum_buffer"), buffers.get("inner_momentum_buffer")]
    return [0 if b is None else b.data_ptr() for b in kept]


class NativeCPU:
    """C++ on CPU tensors.

    Args:
        module: the compiled module.
        instruction_set: one of ``module.instruction_sets()``; default the widest that is proved.
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
        self._module = module
        self._chunk = chunk
        self._threads = threads
        self._past_cache_from = past_cache_from
        self._parallel = openmp_of_torch()
        self.instruction_set = instruction_set or preferred_instruction_set(module.instruction_sets())

    def run(
        self,
        call: Call,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """One update of every weight of the table, in place: see ``eager.Eager.run``."""
        flags, reals, stream = encode(call)
        flags |= PAST_CACHE * (table.length >= self._past_cache_from)
        self._module.run(
            self.instruction_set,
            RULES[call.rule],
            DTYPES[table.dtype],
            flags,
            reals,
            stream,
            *self._memory(table, addresses, buffers),
        )

    def _memory(self, table: Table, addresses: array[int], buffers: dict[str, Tensor]) -> tuple[Any, ...]:
        """Where everything lies, and how the work is shared."""
        chunks = table.chunks(self._chunk)
        threads = self._threads or max(1, min(torch.get_num_threads(), table.length // PER_THREAD))
        return (
            table.weight_addresses,
            addresses,
            table.meta.data_ptr(),
            chunks.data_ptr(),
            chunks.shape[0],
            buffer_addresses(buffers),
            threads,
            max(1, chunks.shape[0] // (PIECES * threads if threads > 1 else 1)),
            self._parallel,
        )

    def prepare(self, table: Table, capturable: bool) -> None:
        """Nothing: there are no graphs of CPU work."""

    def tick(self, tick: Tick) -> None:
        """Derive the scalars of the group's next call, and advance its clock, without reading either to Python."""
        self._module.tick(*encode_tick(tick), tick.clock.words.data_ptr(), tick.clock.numbers.data_ptr())

    def run_ticked(
        self,
        tick: Tick,
        table: Table,
        grads: list[Tensor | None],
        addresses: array[int],
        buffers: dict[str, Tensor],
    ) -> None:
        """``run`` with the scalars that ``tick`` has derived."""
        self._module.run_ticked(
            self.instruction_set,
            RULES[tick.settings.rule],
            DTYPES[table.dtype],
            PAST_CACHE * (table.length >= self._past_cache_from),
            tick.clock.numbers.data_ptr(),
            *self._memory(table, addresses, buffers),
        )

    def normal(self, stream: Stream, index: int, start: int, count: int) -> Tensor:
        """What ``noise.normal`` returns, from the vectorised generator; for tests."""
        out = torch.empty(count, dtype=torch.float32)
        words = [*stream.key, stream.step & 0xFFFFFFFF]
        self._module.normals(self.instruction_set, out.data_ptr(), words, index, start, count)
        return out
