"""What processes of the tests with sharded parameters do, started by ``workers.processes``."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from interpreter import INTERPRETED
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import deeprelax
from deeprelax.kernels.cuda import Cuda
from deeprelax.optim.replicas import Alone
from deeprelax.optim.schedules import AdaptiveGamma

STEPS, L = 5 if INTERPRETED else 9, 4
COMMON = {"inner_steps": L, "momentum": 0.6, "weight_decay": 0.02}
NOISE = {"temperature": 1e-3, "seed": 3}
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "EntropySGD": (deeprelax.EntropySGD, {"lr": 0.3, "inner_momentum": 0.5, **COMMON, **NOISE}),
    "HJ": (deeprelax.HJ, {"lr": 0.3, **COMMON}),
    "Heat": (deeprelax.Heat, {"lr": 0.3, "seed": 3, **COMMON}),
    "EntropyAdamW": (deeprelax.EntropyAdamW, {"gamma": 2.0, **COMMON, **NOISE}),
    "ElasticSGD": (deeprelax.ElasticSGD, {"inner_lr": 0.1, "replicas": Alone(), **COMMON, **NOISE}),
    "Parle": (deeprelax.Parle, {"lr": 0.3, "replicas": Alone(), **COMMON, **NOISE}),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (1, 3), (57, 37), (5, 6, 7), (2, 3, 1026), (3, 8, 4, 4)] if not INTERPRETED else [(4, 5), (3, 2, 2, 2)]


def backends() -> dict[str, Any]:
    """Those of CPU tensors, with the CUDA kernels' code run on the host."""
    if INTERPRETED:
        return {"triton": "triton"}
    found: dict[str, Any] = {"cpu": "cpu", "eager": "eager"}
    with contextlib.suppress(ImportError):
        found["cuda"] = Cuda(importlib.import_module("deeprelax._cuda"), emulated=True)
    return found


def whole_tensors(dtype: torch.dtype) -> list[Tensor]:
    """The same on every process; the last one channels_last."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    tensors[-1] = tensors[-1].to(memory_format=torch.channels_last)
    return tensors


def trained(name: str, params: list[Tensor], steps: int = STEPS, first_train: bool = False, **options: Any) -> Any:
    """The optimizer after so many steps. A gradient is a function of the weight, element by element, of operations that
    are rounded alike everywhere. ``first_train``: the first gradient is at Heat's first inner point."""
    opt = OPTIMIZERS[name][0](params, **{**OPTIMIZERS[name][1], **options})
    if first_train:
        opt.train()
    step_all(opt, steps)
    return opt


def step_all(opt: Any, steps: int) -> None:
    for step in range(steps):
        for group in opt.param_groups:
            for k, p in enumerate(group["params"]):
                p.grad = None if step and (step + k) % 7 == 5 else p.detach() * 0.7 - 0.1
        opt.step()


def layouts(rank: int) -> Iterator[tuple[str, DeviceMesh, Callable[[int], list[Placement]]]]:
    """Meshes that this process is in, with the placements of a tensor of so many dimensions."""

    def inner(ndim: int) -> Shard:
        return Shard(min(1, ndim - 1))

    for size in range(1, dist.get_world_size() + 1):
        mesh = DeviceMesh("cpu", list(range(size)))
        if rank < size:
            yield f"{size} parts", mesh, lambda ndim: [Shard(0)]
            yield f"{size} parts of the second dimension", mesh, lambda ndim: [inner(ndim)]
            yield f"{size} parts of the last dimension", mesh, lambda ndim: [Shard(ndim - 1)]
    if dist.get_world_size() < 4:
        return
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    yield "replicated and sharded", square, lambda ndim: [Replicate(), Shard(0)]
    yield "twice", square, lambda ndim: [Shard(0), inner(ndim)]
    yield "twice the other way round", square, lambda ndim: [inner(ndim), Shard(0)]


def same(whole: Tensor, part: DTensor) -> bool:
    """Whether a DTensor's part has the bits of the whole tensor's, as torch would distribute that."""
    expected = distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None).to_local()
    return torch.equal(expected, part.to_local())


def bits(rank: int) -> dict[str, list[str]]:
    """What differs from the run with whole tensors, of each backend; and how many comparisons there were."""
    found: dict[str, list[str]] = {}
    count = 0
    made = list(layouts(rank))
    turn = itertools.cycle(made)
    names = os.environ.get("NAMES", " ".join(OPTIMIZERS)).split()
    for (backend, on), name, dtype in itertools.product(backends().items(), names, DTYPES):
        cases: list[dict[str, Any]] = [{}]
        if dtype == torch.bfloat16 and name in ("EntropySGD", "EntropyAdamW", "ElasticSGD"):
            cases.append({"stochastic_rounding": True})
        if name == "Heat":
            cases.append({"first_train": True})
        if backend != "cpu" and dtype not in (torch.float32, torch.bfloat16):
            continue
        for options in cases:
            whole = [nn.Parameter(t) for t in whole_tensors(dtype)]
            reference = trained(name, whole, backend="cpu", **options)
            for layout, mesh, placements in itertools.islice(turn, 3 if backend == "cpu" else 1):
                parts = [
                    nn.Parameter(distribute_tensor(t, mesh, placements(t.ndim), src_data_rank=None))
                    for t in whole_tensors(dtype)
                ]
                opt = trained(name, parts, backend=on, **options)
                for t, (a, b) in enumerate(zip(whole, parts)):
                    pairs = {"weight": (a.detach(), b.detach())}
                    pairs |= {n: (v, opt.state[b][n]) for n, v in reference.state[a].items() if n != "missed"}
                    for what, (one, other) in pairs.items():
                        count += 1
                        if not same(one, other):
                            found.setdefault(backend, []).append(f"{name} {dtype} {layout}: {what} of {SHAPES[t]}")
    return {"count": [str(count)], **found}


class Block(nn.Module):
    """For tensor parallelism: the first layer by rows, the second by columns."""

    def __init__(self, hidden: int = 20) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(12, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)).relu())


def network(seed: int = 0, hidden: int = 20) -> nn.Module:
    """The same on every process."""
    torch.manual_seed(seed)
    return nn.Sequential(Block(hidden), Block(hidden))


def fully_sharded(model: nn.Module, **options: Any) -> nn.Module:
    """FSDP2 on every block and on the whole."""
    return [fully_shard(each, **options) for each in (*model, model)][-1]


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """The first layer of every block by rows, the second by columns."""
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def gathered(t: Tensor) -> Tensor:
    """The whole tensor."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def wholes(model: nn.Module) -> list[Tensor]:
    """The weights, gathered."""
    return [gathered(p).detach().clone() for p in model.parameters()]


def compositions(rank: int) -> dict[str, Any]:
    """What differs from whole tensors under FSDP, HSDP and tensor parallelism inside FSDP, even and uneven."""
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    line = init_device_mesh("cpu", (4,))

    def second(p: Tensor) -> Shard | None:
        return Shard(1) if p.ndim == 2 else None

    make: dict[str, Callable[[int], nn.Module]] = {
        "FSDP": lambda hidden: fully_sharded(network(0, hidden), mesh=line),
        "FSDP along the second dimension": lambda hidden: fully_sharded(
            network(0, hidden), mesh=line, shard_placement_fn=second
        ),
        "HSDP": lambda hidden: fully_sharded(network(0, hidden), mesh=square),
        "tensor parallel": lambda hidden: tensor_parallel(network(0, hidden), line),
        "tensor parallel in FSDP": lambda hidden: fully_sharded(
            tensor_parallel(network(0, hidden), square["b"]), mesh=square["a"]
        ),
    }
    found, kinds, turn = [], set(), itertools.cycle(make)
    even = {"tensor parallel", "FSDP along the second dimension"}  # torch wants these even
    for name, hidden in [*((name, 20) for name in OPTIMIZERS), ("EntropySGD", 21)]:
        whole = network(0, hidden)
        reference = trained(name, list(whole.parameters()))
        for what in itertools.islice(turn, 2) if name != "EntropySGD" else make if hidden == 20 else make.keys() - even:
            build = make[what]
            model = build(hidden)
            opt = trained(name, list(model.parameters()))
            for (label, a), b in zip(whole.named_parameters(), model.parameters()):
                # Tensor parallelism leaves some alone.
                kinds.add(str(b.placements) if isinstance(b, DTensor) else "plain")
                pairs = [(a.detach(), b.detach()), *((reference.state[a][n], v) for n, v in opt.state[b].items())]
                if not all(torch.equal(one, gathered(two)) for one, two in pairs):
                    found.append(f"{what}, {name}, {hidden}: {label}")
            watched = [torch.stack([*each.diagnostics().values()]) for each in (reference, opt)]
            if not torch.allclose(*watched, rtol=1e-12, atol=0.0):
                found.append(f"{what}, {name}, {hidden}: diagnostics {watched}")
    return {"wrong": found, "kinds": sorted(kinds)}


def learn(model: nn.Module, opt: Any, steps: int, begin: int = 0) -> None:
    """Steps on gradients of the model."""
    for step in range(begin, begin + steps):
        inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        model(inputs).square().mean().backward()
        opt.step()


def uses(model: nn.Module, twin: nn.Module, params: list[Tensor], inputs: Tensor) -> bool:
    """Whether a forward pass of the model is with these weights, as one of its twin in a single process is."""
    for p, x in zip(twin.parameters(), params):
        p.copy_(gathered(x))
    return torch.allclose(model(inputs), twin(inputs), atol=1e-6)


def validation(rank: int) -> dict[str, Any]:
    """With FSDP: whether validation is at x and leaves no trace; the ways to gather weights take turns. The last layer
    is the root's, which is gathered longer than others."""
    inputs, found = torch.randn(4, 12, generator=torch.Generator().manual_seed(9)), {}
    for name, reshard in zip(OPTIMIZERS, itertools.cycle((None, True, False))):
        (kind, options), after, right = OPTIMIZERS[name], [], True
        for validate in (False, True):
            twin, model = (nn.Sequential(*network(), nn.Linear(12, 12)) for _ in range(2))
            for each in (*model[:2], model):
                fully_shard(each, reshard_after_forward=reshard)
            params = list(model.parameters())  # the parts; a forward pass may put gathered weights in their place
            opt = kind(params, **options)
            learn(model, opt, 6)
            if validate:
                with torch.no_grad():
                    model(inputs)  # gathers the inner point, and keeps it
                    opt.eval()
                    right = uses(model, twin, params, inputs) and right
                    shown = model(inputs)
                    opt.train()
                    with opt.at_x():
                        right = torch.equal(shown, model(inputs)) and right
            learn(model, opt, 4, begin=6)
            with torch.no_grad():
                model(inputs)
                opt.finish()
                right = uses(model, twin, params, inputs) and right
                after.append(list(map(gathered, params)))
        found[f"{name} {reshard}"] = right and all(map(torch.equal, *after))
    return found


def sequence_parallel(rank: int) -> dict[str, Any]:
    """Norms whose gradients are sums over the processes, against one process."""
    mesh, whole = init_device_mesh("cpu", (dist.get_world_size(),)), network()
    model = network()
    plan = {
        "up": ColwiseParallel(output_layouts=Shard(0), use_local_output=False),
        "norm": SequenceParallel(sequence_dim=0, use_local_output=False),
        "down": RowwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    }
    for block in model:
        parallelize_module(block, mesh, plan)
    kind, options = OPTIMIZERS["HJ"]
    opts = [kind(m.parameters(), **options) for m in (whole, model)]
    learn(whole, opts[0], 6)
    learn(model, opts[1], 6)
    partial = {str(p.grad.placements) for p in model.parameters() if isinstance(p, DTensor)}
    found = dict(zip((n for n, _ in model.named_parameters()), wholes(model)))
    errors = [float((found[n] - p.detach()).abs().max()) for n, p in whole.named_parameters()]
    return {"gradients": sorted(partial), "error": max(errors), "norms": [w for n, w in found.items() if "norm" in n]}


# Runs that are saved at phase 2 of 4 and resumed: optimizer, its options, and what is special about the model.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], str]] = {
    **{name: (name, {}, "") for name in OPTIMIZERS},
    "bf16": ("EntropySGD", {}, "bf16"),
    "capturable": ("EntropySGD", {"capturable": True}, ""),
    "frozen": ("HJ", {}, "frozen"),
    "two groups": ("HJ", {}, "two groups"),
    "named": ("Heat", {}, "named"),
}


def checkpoint_run(case: str) -> tuple[nn.Module, Any]:
    """A new model, sharded if there is a process group, and its optimizer."""
    name, options, special = CHECKPOINTS[case]
    model = network(5).to(torch.bfloat16 if special == "bf16" else torch.float32)
    if dist.is_initialized():
        fully_sharded(model)
    params: Any = list(model.parameters())
    if special == "frozen":
        params[0].requires_grad = False
    elif special == "two groups":
        params = [{"params": params[:3], "gamma": 0.5}, {"params": params[3:], "weight_decay": 0.3}]
    elif special == "named":
        params = list(model.named_parameters())
    return model, OPTIMIZERS[name][0](params, **{**OPTIMIZERS[name][1], **options})


def ways() -> dict[str, StateDictOptions]:
    """How a state may be saved and loaded."""
    return {
        "as it is": StateDictOptions(),
        "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
        "full": StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized()),
    }


def save(rank: int) -> dict[str, Any]:
    """Checkpoints of every kind in the folder of the results; and the weights at the end of runs that continue."""
    folder, after = Path.cwd(), {}
    for case in CHECKPOINTS:
        model, opt = checkpoint_run(case)
        step_all(opt, 6)
        for way, options in ways().items():
            weights, state = get_state_dict(model, opt, options=options)
            if way == "full":
                if rank == 0:
                    torch.save((weights, state), folder / f"{case} full.pt")
            else:
                checkpoint.save({"weights": weights, "state": state}, checkpoint_id=folder / f"{case} {way}")
        step_all(opt, 5)
        after[case] = wholes(model)
    return after


def load(rank: int) -> dict[str, Any]:
    """The weights at the end of runs that were resumed from checkpoints: of each case from one, the ways take turns."""
    folder, after, first = Path.cwd(), {}, int(os.environ["FIRST"])
    for case, way in zip(CHECKPOINTS, itertools.islice(itertools.cycle(ways()), first, None)):
        options = ways()[way]
        model, opt = checkpoint_run(case)
        if way == "full":
            weights, state = torch.load(folder / f"{case} full.pt") if rank == 0 else ({}, {})
        else:
            weights, state = get_state_dict(model, opt, options=options)
            both = {"weights": weights, "state": state}
            checkpoint.load(both, checkpoint_id=folder / f"{case} {way}", no_dist=not dist.is_initialized())
            weights, state = both["weights"], both["state"]
        set_model_state_dict(model, weights, options=options)
        set_optimizer_state_dict(model, opt, state, options=options)
        step_all(opt, 5)
        after[f"{case} {way}"] = wholes(model)
    return after


def said(call: Callable[[], Any]) -> str:
    """The error that it raises."""
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def refusals(rank: int) -> dict[str, Any]:
    """What is refused on every process, and whether something changed."""
    mesh, found = init_device_mesh("cpu", (dist.get_world_size(),)), {}

    def tensor(*placements: Placement) -> Tensor:
        return nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh, placements))

    partial = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Partial()]))
    found["partial"] = said(lambda: deeprelax.HJ([partial]))
    opt = trained("EntropySGD", [p := tensor(Shard(0))], 6)
    found["adaptive gamma"] = said(lambda: AdaptiveGamma(deeprelax.HJ([p], scoping=0.0)))
    other = trained("EntropySGD", [tensor(Shard(1))], 6)
    before = [v.to_local().clone() for v in opt.state[p].values()]
    found["another placement"] = said(lambda: opt.load_state_dict(other.state_dict()))
    plain = trained("EntropySGD", [nn.Parameter(torch.ones(8, 8))], 6)
    found["whole tensors"] = said(lambda: opt.load_state_dict(plain.state_dict()))
    opt.eval()
    found["eval mode"] = said(opt.state_dict)
    opt.train()
    found["unchanged"] = all(map(torch.equal, before, (v.to_local() for v in opt.state[p].values())))
    return found
