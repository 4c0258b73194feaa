"""The ``cpu`` and ``cuda`` backends return the bits of the ``eager`` reference, call by call and over whole runs."""

import functools
import importlib
import itertools
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import deeprelax
from deeprelax.kernels import Backend, Call, Eager, EntropySGDCall, HeatCall, HJCall, Outer, Stream, Table, noise

_cpu = pytest.importorskip("deeprelax._cpu")
from deeprelax.kernels.cuda_backend import Cuda  # noqa: E402
from deeprelax.kernels.native import NativeCPU  # noqa: E402

try:  # the CUDA kernels' code, run on the host thread by thread
    EMULATED: Cuda | None = Cuda(importlib.import_module("deeprelax._cuda"), emulated=True)
except ImportError:
    EMULATED = None

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
SETS = _cpu.instruction_sets()
# Instruction set, chunk, threads: the default chunk, and chunks that cut vectors and Philox calls.
VARIANTS = [(name, chunk, threads) for name in SETS for chunk, threads in [(16384, 1), (21, 1), (64, 1)]]
SIZES = [0, 1, 3, 4, 5, 37, 131, 517]
STARTS = [0, 5, 1, 7, 2**34 - 3, 2**34 + 2, 2**36 + 9, 3]
STREAM = Stream(0xFEDCBA9876543210, 0xFFFFFFFE, 0x89ABCDEF)
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -3e-39, 6e-8, 5e-324, 65519.0, 3.39e38, -1e300]
BOOLS = (False, True)
SCALES = (1.0, 0.30000001192092896)  # a float32: what unscales a gradient


@pytest.fixture(autouse=True)
def _one_thread_outside_the_kernels() -> Iterator[None]:
    """Waking threads for a few elements takes longer than the tests; the kernels are told theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _draw_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference draws the same noise in thousands of calls, slowly."""
    monkeypatch.setattr(noise, "normal", functools.lru_cache(512)(noise.normal))
    monkeypatch.setattr(noise, "words", functools.lru_cache(512)(noise.words))


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = INTEGERS[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


def at_offset(values: Tensor, offset: int) -> Tensor:
    """A copy that begins ``offset`` elements into its storage: not even the elements of a vector's start align."""
    storage = torch.zeros(values.numel() + offset, dtype=values.dtype, device=values.device)
    storage[offset:] = values
    return storage[offset:]


@dataclass
class Case:
    """Weights, gradients and buffers from which every backend starts."""

    weights: list[Tensor]
    grads: list[Tensor | None]
    buffers: dict[str, Tensor]
    starts: list[int]

    @staticmethod
    def make(call: Call, dtype: torch.dtype, seed: int, sizes: list[int], special: bool, offset: int) -> "Case":
        generator = torch.Generator().manual_seed(seed)

        def numbers(n: int) -> Tensor:
            values = torch.randn(n, dtype=torch.float64, generator=generator)
            if special:
                where = torch.randint(n, (n // 3,), generator=generator) if n else []
                values[where] = torch.tensor(random.Random(seed + n).choices(SPECIAL, k=n // 3), dtype=torch.float64)
            return values

        weights = [at_offset(numbers(n).to(dtype), offset) for n in sizes]
        table = Table(weights, list(range(len(sizes))))
        missing = {seed % len(sizes), (seed + 3) % len(sizes)}
        grads = [None if t in missing else at_offset(numbers(n).to(dtype), offset) for t, n in enumerate(sizes)]
        kept = [b for b in call.buffers if b != "y" or (table.compute_dtype != dtype and not stochastic(call))]
        buffers = {name: numbers(table.length).to(table.compute_dtype) for name in kept}
        for w, start in zip(weights, table.offsets):  # half of the x round to their weights
            x = buffers["x"][start : start + w.numel()]
            x[::2] = w[::2].to(x.dtype) * (1 + 2**-15)
        return Case(weights, grads, buffers, STARTS[: len(sizes)])

    def run(self, backend: Backend, call: Call, offset: int, device: str = "cpu") -> list[Tensor]:
        """What the weights and the buffers hold after the call, on the CPU."""
        weights = [at_offset(w.to(device), offset) for w in self.weights]
        buffers = {name: b.to(device, copy=True) for name, b in self.buffers.items()}
        grads = [None if g is None else at_offset(g.to(device), offset) for g in self.grads]
        table = Table(weights, [5 * t + 1 for t in range(len(weights))], starts=self.starts)
        addresses = array("q", [0 if g is None else g.data_ptr() for g in grads])
        backend.run(call, table, grads, addresses, buffers)
        return [t.cpu() for t in (*weights, *buffers.values())]


def stochastic(call: Call) -> bool:
    return isinstance(call, EntropySGDCall) and call.stochastic_rounding


def outer(momentum: bool, nesterov: bool) -> Outer:
    return Outer(step=0.31, scale=1.7, lr=0.13, momentum=0.9 * momentum, nesterov=nesterov)


def entropy_sgd_calls(dtype: torch.dtype) -> Iterator[EntropySGDCall]:
    """Every phase with every combination of what costs an operand; the signs and forms turn through theirs."""
    rng = random.Random(1)
    for first, last, noisy, decay, momentum, inner, implicit in itertools.product(BOOLS, repeat=7):
        maximize, nesterov, inner_nesterov, fresh, rounding = (rng.random() < 0.5 for _ in range(5))
        yield EntropySGDCall(
            first=first,
            last=last,
            inner_lr=0.11,
            inv_gamma=1.3,
            pull=0.17,
            denominator=1.17,
            alpha=0.7,
            one_minus_alpha=0.3,
            noise_scale=0.05 * noisy,
            weight_decay=0.03 * decay,
            maximize=maximize,
            implicit=implicit,
            inner_momentum=0.8 * inner,
            inner_nesterov=inner_nesterov,
            fresh_velocity=fresh,
            stochastic_rounding=rounding and dtype == torch.bfloat16,
            outer=outer(momentum, nesterov),
            stream=STREAM,
            inv_scale=SCALES[rng.random() < 0.5],
        )


def hj_calls(dtype: torch.dtype) -> Iterator[HJCall]:
    for first, last, warm, decay, maximize, momentum, nesterov in itertools.product(BOOLS, repeat=7):
        read = decay and maximize != nesterov
        scale = SCALES[warm != momentum]
        yield HJCall(first, last, warm, 0.37, 0.7, 0.3, 0.03 * decay, maximize, read, outer(momentum, nesterov), scale)


def heat_calls(dtype: torch.dtype) -> Iterator[HeatCall]:
    for first, last, take, decay, maximize, momentum, nesterov in itertools.product(BOOLS, repeat=7):
        scale = SCALES[take != momentum]
        yield HeatCall(first, last, take, 0.21, 0.03 * decay, maximize, outer(momentum, nesterov), STREAM, scale)


CALLS: list[Callable[[torch.dtype], Iterator[Call]]] = [entropy_sgd_calls, hj_calls, heat_calls]


def check(call: Call, dtype: torch.dtype, seed: int, sizes: list[int], special: bool, offset: int, variants) -> None:
    case = Case.make(call, dtype, seed, sizes, special, offset)
    expected = case.run(Eager(), call, offset)
    for name, chunk, threads in variants:
        # Stores past the cache are for large tensors; seed % 2 has the small ones of these tests take them too.
        native = NativeCPU(_cpu, name, chunk, threads, past_cache_from=0 if seed % 2 else 1 << 22)
        found = case.run(native, call, offset)
        for i, (a, b) in enumerate(zip(expected, found)):
            assert same_bits(a, b), (name, chunk, threads, i, call)
    if EMULATED is not None:
        for i, (a, b) in enumerate(zip(expected, case.run(EMULATED, call, offset))):
            assert same_bits(a, b), ("cuda", i, call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_every_call_gives_the_bits_of_the_reference(calls: Callable[..., Iterator[Call]], dtype: torch.dtype) -> None:
    for seed, call in enumerate(calls(dtype)):
        check(call, dtype, seed, SIZES, special=False, offset=seed % 4, variants=VARIANTS[seed % 3 :: 3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_nans_infinities_and_denormals_give_the_bits_of_the_reference(
    calls: Callable[..., Iterator[Call]], dtype: torch.dtype
) -> None:
    for seed, call in list(enumerate(calls(dtype)))[::3]:
        check(call, dtype, seed, SIZES, special=True, offset=0, variants=VARIANTS[seed // 3 % 3 :: 3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("calls", CALLS)
def test_chunk_sizes_threads_and_instruction_sets_do_not_change_the_bits(
    calls: Callable[..., Iterator[Call]], dtype: torch.dtype
) -> None:
    every = itertools.product(SETS, [7, 100, 4096, 16384], [1, 2, 5])
    sizes = [33, 16384 + 5, 3 * 4096, 1]
    chosen = list(calls(dtype))[37::60]
    for call, offset in zip(chosen, (0, 1, 3)):
        check(call, dtype, 2, sizes, special=False, offset=offset, variants=every)
        every = itertools.product(SETS, [5, 16384], [1, 3])


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5, 7])
def test_gradients_at_any_element_offset_give_the_bits_of_the_reference(offset: int) -> None:
    for dtype, calls in itertools.product(DTYPES, CALLS):
        for call in list(calls(dtype))[21::53]:
            check(call, dtype, 1, [259, 64, 5], special=False, offset=offset, variants=[(s, 16384, 1) for s in SETS])


def test_only_the_named_step_draws_this_noise() -> None:
    """A comparison of two constants would agree as well."""
    call = next(c for c in entropy_sgd_calls(torch.float32) if c.noise_scale and not c.last)
    case = Case.make(call, torch.float32, 0, SIZES, special=False, offset=0)
    native = NativeCPU(_cpu)
    before = case.run(native, call, 0)
    for other in (replace(STREAM, seed=1), replace(STREAM, replica=1), replace(STREAM, step=1)):
        after = case.run(native, replace(call, stream=other), 0)
        assert any(not same_bits(a, b) for a, b in zip(before, after))


# Whole runs.


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """A channels_last convolution, a matrix with gaps, its bias, a number, nothing, and a transposed matrix."""
    g = torch.Generator().manual_seed(5)
    make = lambda *shape: 0.4 * torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    convolution = make(6, 3, 3, 3).to(memory_format=torch.channels_last)
    tensors = [convolution, make(5, 18)[:, ::3], make(5), make(()), make(0, 4), make(7, 6).t()]
    return [torch.nn.Parameter(t) for t in tensors]


def loss(params: list[torch.nn.Parameter], inputs: Tensor) -> Tensor:
    convolution, matrix, bias, number, nothing, last = (p.to(inputs.dtype) for p in params)
    hidden = torch.tanh(torch.nn.functional.conv2d(inputs, convolution)).mean((2, 3))
    out = torch.nn.functional.linear(hidden, matrix, bias) * number + (hidden @ last)[:, :5]
    return torch.logsumexp(out, 1).mean() - out[:, 0].mean() + nothing.sum()


def fill_gradients(params: list[torch.nn.Parameter], step: int, inputs: Tensor) -> None:
    for p in params:
        p.grad = None
    loss(params, inputs).backward()
    if step % 3 == 0:  # a gradient of another layout than its parameter's
        params[0].grad = params[0].grad.contiguous()
        params[5].grad = params[5].grad.contiguous()
    if step % 2:  # an unaligned gradient
        params[2].grad = at_offset(params[2].grad, 1)
    for i, p in enumerate(params):
        if (step * 7 + i * 5) % 11 == 0 or step % 23 == 22:
            p.grad = None


CHANGES = [{"lr": 0.03, "weight_decay": 0.02}, {"momentum": 0.6, "gamma": 0.7}, {"nesterov": True}, {"maximize": True}]
CHANGES += [{"maximize": False, "momentum": 0.0, "nesterov": False}, {"lr": 0.2, "weight_decay": 0.0, "inner_steps": 5}]
ENTROPY = {"temperature": 1e-3, "inner_lr": 0.2, "gamma": 0.5, "scoping": 0.01, "seed": 2**40 + 7, "inner_steps": 7}
OPTIMIZERS = {
    "EntropySGD": (deeprelax.EntropySGD, {**ENTROPY, "inner_momentum": 0.5, "lr": 0.05}),
    "EntropySGD, implicit": (
        deeprelax.EntropySGD,
        {**ENTROPY, "coupling": "implicit", "carry_inner_momentum": True, "absorb_gamma": True, "inner_momentum": 0.7},
    ),
    "HJ": (deeprelax.HJ, {"gamma": 0.3, "scoping": 0.02, "inner_steps": 4}),
    "HJ, warm start": (deeprelax.HJ, {"gamma": 0.3, "warm_start": True, "weight_decay": 0.1, "inner_steps": 3}),
    "Heat": (deeprelax.Heat, {"gamma": 0.01, "scoping": 0.02, "seed": 3, "inner_steps": 4}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_long_run_gives_the_bits_of_the_reference_in_parameters_and_state(name: str, dtype: torch.dtype) -> None:
    make, options = OPTIMIZERS[name]
    mine, theirs = parameters(dtype), parameters(dtype)
    eager, cpu = (
        make([{"params": p[:3]}, {"params": p[3:], "lr": 0.02}], **options, backend=backend)
        for p, backend in ((mine, "eager"), (theirs, "cpu"))
    )
    data = torch.Generator().manual_seed(9)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for step in range(200 if dtype == torch.float32 else 60):
        fill_gradients(mine, step, torch.randn(4, 3, 6, 6, generator=data, dtype=wide))
        for p, q in zip(mine, theirs):
            q.grad = None if p.grad is None else p.grad.detach()
        if step % 13 == 12:
            for opt in (eager, cpu):
                opt.param_groups[step % 2].update(CHANGES[step // 13 % len(CHANGES)])
                opt.param_groups[1]["inner_steps"] = opt.param_groups[0]["inner_steps"]
        eager.step()
        cpu.step()
        for p, q in zip(mine, theirs):
            assert same_bits(p.detach().reshape(-1), q.detach().reshape(-1)), step
        if step % 10 == 9:
            a, b = eager.state_dict(), cpu.state_dict()
            assert a["param_groups"] == b["param_groups"]
            for key, entry in a["state"].items():
                assert entry.keys() == b["state"][key].keys()
                assert all(same_bits(v.reshape(-1), b["state"][key][n].reshape(-1)) for n, v in entry.items()), step
        if step % 31 == 30:
            for opt in (eager, cpu):
                opt.eval()
                opt.train()
    assert all(bool(p.isfinite().all()) for p in mine)
    assert any(not same_bits(p.detach().reshape(-1), q.reshape(-1)) for p, q in zip(mine, parameters(dtype)))


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_gradients_of_another_layout_reach_their_own_elements(backend: str) -> None:
    params = parameters(torch.float64)
    expected = []
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype)
        expected.append(p.detach() - 0.1 * p.grad)
    deeprelax.HJ(params, lr=0.1, inner_steps=1, alpha=0.0, backend=backend).step()
    torch.testing.assert_close([p.detach() for p in params], expected)
