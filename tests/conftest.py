"""What the tests share: operators that a mismatched torchvision lacks, small models, gradients, comparison of bits."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import deeprelax
from deeprelax.kernels import layout
from deeprelax.terminal import SIGNALS


def define_torchvision_operators() -> None:
    """Let ``import torchvision`` succeed where its compiled part does not fit this torch.

    It registers fake versions of nms at import and fails when the operator is missing. One that works stays.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):  # built for another torch, or for a CUDA that is not here
            continue
    if hasattr(torch.ops.torchvision, "nms"):
        return
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    TORCHVISION.append(operators)


TORCHVISION: list[torch.library.Library] = []  # a library that is collected takes its operators along
define_torchvision_operators()

# Every hyper-parameter away from its neutral value; inner_steps 4 for all.
SETTINGS: dict[str, dict[str, Any]] = {
    "EntropySGD": {
        **{"lr": 0.4, "inner_lr": 0.05, "inner_steps": 4, "gamma": 0.5, "alpha": 0.6, "temperature": 1e-3},
        **{"scoping": 0.03, "momentum": 0.8, "inner_momentum": 0.7, "nesterov": True, "weight_decay": 1e-2, "seed": 7},
    },
    "HJ": {
        **{"lr": 0.2, "inner_steps": 4, "gamma": 0.3, "alpha": 0.6, "scoping": 0.03, "warm_start": True},
        **{"momentum": 0.8, "weight_decay": 1e-2},
    },
    "Heat": {
        **{"lr": 0.2, "inner_steps": 4, "gamma": 1e-2, "scoping": 0.03, "momentum": 0.8, "nesterov": True},
        **{"weight_decay": 1e-2, "seed": 7},
    },
    "EntropyAdamW": {
        **{"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "inner_steps": 4, "gamma": 0.5, "alpha": 0.6},
        **{"temperature": 1e-3, "scoping": 0.03, "outer_lr": 0.6, "momentum": 0.7, "weight_decay": 1e-2, "seed": 7},
    },
}
SETTINGS["ElasticSGD"] = {name: value for name, value in SETTINGS["EntropySGD"].items() if name != "alpha"}
SETTINGS["Parle"] = {**SETTINGS["EntropySGD"], "gamma_min": 1e-3, "rho": 0.5, "rho_min": 0.1, "absorb_gamma": False}
OPTIMIZERS = list(SETTINGS)
# Settings without noise, and those without momenta.
QUIET: dict[str, dict[str, Any]] = {
    "EntropySGD": {"temperature": 0.0},
    "HJ": {},
    "Heat": {"gamma": 1e-30},
    "EntropyAdamW": {"temperature": 0.0},
    "ElasticSGD": {"temperature": 0.0},
    "Parle": {"temperature": 0.0},
}
PLAIN = {name: {"momentum": 0.0, "nesterov": False} for name in OPTIMIZERS}
for _name in ("EntropySGD", "ElasticSGD", "Parle"):
    PLAIN[_name]["inner_momentum"] = 0.0
# What ``make`` gives an optimizer in the place of a backend's name: tests put objects here.
BACKENDS: dict[str, Any] = {}
SLOWEST = [
    *("test_sharded.py", "test_theory.py", "test_triton.py", "test_reproduce.py", "test_torchrun.py"),
    *("test_reproduce_cli.py", "test_compare.py", "test_examples.py", "test_backends_agree.py"),
    *("test_two_processes.py", "test_cuda_binaries.py", "test_elastic.py"),
]
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def make(name: str, params: Any, **changes: Any) -> Any:
    """The optimizer of that name with its unusual settings, and these changes."""
    asked = changes.pop("backend", "auto")
    return getattr(deeprelax, name)(params, **{**SETTINGS[name], **changes, "backend": BACKENDS.get(asked, asked)})


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Parameter]:
    """Contiguous, channels_last, transposed, with gaps, empty and zero-dimensional."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    tensors = [
        normal(129),
        normal(3, 2, 3, 3).contiguous(memory_format=torch.channels_last),
        normal(5, 7).t(),
        normal(4, 6)[:, ::2],
        normal(0),
        normal(),
    ]
    return [Parameter(t) for t in tensors]


def set_gradients(params: Iterable[Tensor], step: int, without: Sequence[int] = ()) -> None:
    """Gradients that depend on the weights, the step and the place, in the weights' layouts."""
    for i, p in enumerate(params):
        draw = torch.Generator().manual_seed(1000 * step + i)
        noise = torch.randn(p.shape, generator=draw).to(p.dtype)
        p.grad = None if i in without else torch.empty_like(p).copy_(noise + p.detach() / 2)


def run(opt: Any, params: Sequence[Tensor], steps: range) -> None:
    """One ``step()`` for each number, with the gradients of that step."""
    for step in steps:
        set_gradients(params, step)
        opt.step()


def started(
    name: str, steps: int = 0, *, dtype: torch.dtype = torch.float32, weights: int = 0, **changes: Any
) -> tuple[Any, list[Parameter]]:
    """The optimizer of that name on ``parameters(dtype, weights)``, and these, after so many steps."""
    params = parameters(dtype, weights)
    opt = make(name, params, **changes)
    run(opt, params, range(steps))
    return opt, params


def twins(name: str, steps: int = 0, **options: Any) -> tuple[tuple[Any, list[Parameter]], tuple[Any, list[Parameter]]]:
    """Two that are ``started`` alike."""
    return started(name, steps, **options), started(name, steps, **options)


def values(params: Iterable[Tensor]) -> list[Tensor]:
    """Copies of what they hold."""
    return [p.detach().clone() for p in params]


def bits(t: Tensor) -> Tensor:
    """The elements as integers, so that -0.0 and NaN count."""
    return t.detach().contiguous().view(INTEGERS[t.element_size()])


def same_bits(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether two lists of tensors hold the same bits, in the same dtypes and shapes."""
    pairs = list(zip(first, second, strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in pairs)


def plain(state: Any) -> Any:
    """A state_dict as plain Python values, to compare with ``==``."""
    if isinstance(state, Tensor):
        return (str(state.dtype), tuple(state.shape), bits(state).flatten().tolist())
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """tests/gpu needs a GPU; DEEPRELAX_EMULATE_GPU=1 runs there what can be emulated."""
    if not torch.cuda.is_available() and os.environ.get("DEEPRELAX_EMULATE_GPU") != "1":
        for item in items:
            if item.path.parent.name == "gpu":
                item.add_marker(pytest.mark.skip(reason="needs a GPU (torch.cuda.is_available() is False): make gpu"))
    for item in items:
        if item.path.name in SLOWEST:
            item.add_marker(pytest.mark.slow)
    # What takes longest comes first, so that no worker ends up alone with it.
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def pytest_collection_finish() -> None:
    """Thousands of tests and all that they import stay: the garbage collector need not visit them again and again."""
    gc.freeze()


@pytest.fixture(params=OPTIMIZERS)
def name(request: pytest.FixtureRequest) -> str:
    """Each optimizer in turn."""
    return str(request.param)


@pytest.fixture
def unchanged() -> Callable[[Any, Sequence[Tensor]], Callable[[], bool]]:
    """``check = unchanged(opt, params)`` … ``assert check()``: weights, state and clock are what they were."""

    def remember(opt: Any, params: Sequence[Tensor]) -> Callable[[], bool]:
        before = (plain(values(params)), plain(opt.state_dict()), opt.phase)
        return lambda: (plain(values(params)), plain(opt.state_dict()), opt.phase) == before

    return remember


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """torch.compile knows nothing of what other tests have compiled, and they nothing of this one's.

    A test that compiles nothing fails: it would compare a function with itself.
    """
    import torch._dynamo  # which takes seconds
    from torch._dynamo.utils import counters
    from torch._dynamo.variables import ConstantVariable

    torch._dynamo.reset()
    counters.clear()
    yield
    assert counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    # torch 2.13 notes where it found a gradient that is None in the None of all graphs (pytorch/pytorch#194749).
    ConstantVariable.create(None).source = None


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of this process alone, which is its own process group."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture(params=["by DLPack", "by torch alone"])
def addresses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to learn where tensors lie: the second is for older torches, and where nothing was compiled."""
    if request.param != "by DLPack":
        monkeypatch.setattr(layout, "_native", lambda: None)


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPRELAX_BACKEND", raising=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny models: waking a second thread takes longer than all of its work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals reach Python as from a terminal: shells start background jobs with some of them ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
