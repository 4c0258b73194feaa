"""What the processes of the tests over gloo do, started by ``workers.processes``."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import runpy
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from simulation import OPTIONS, gradient, parameters, take_step
from torch.distributed.device_mesh import init_device_mesh

import deeprelax


def trained(kind: str, rank: int, steps: int = 9, **options: Any) -> dict[str, Any]:
    """Weights, centres and how many collectives each step had."""
    params = parameters()
    opt = getattr(deeprelax, kind)(params, **{**OPTIONS.get(kind, {}), **options})
    counted = {"n": 0}
    for name in ("all_reduce", "all_to_all_single", "all_gather_into_tensor", "broadcast", "broadcast_object_list"):
        real = getattr(dist, name)

        def counting(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            counted["n"] += 1
            return real(*args, **kwargs)

        setattr(dist, name, counting)
    calls, centres = [], []
    for number in range(steps):
        before = counted["n"]
        take_step(opt, params, rank, number)
        calls.append(counted["n"] - before)
        centres.append([opt.state[p]["x"].clone() for p in params])
    inner = [p.detach().clone() for p in params]
    opt.eval()
    shown = [p.detach().clone() for p in params]
    saved = opt.state_dict()
    opt.train()
    return {"params": inner, "centres": centres, "calls": calls, "shown": shown, "saved": saved}


def bits(rank: int) -> dict[str, Any]:
    """Both optimizers, plain, in the order of ranks and overlapped."""
    return {
        **{f"elastic {d}": trained("ElasticSGD", rank, deterministic=d) for d in (False, True)},
        "elastic bf16": trained("ElasticSGD", rank, comm_dtype=torch.bfloat16),
        "elastic mesh": trained("ElasticSGD", rank, replicas=init_device_mesh("cpu", (dist.get_world_size(),))),
        "parle": trained("Parle", rank, deterministic=True),
        "parle overlap": trained("Parle", rank, deterministic=True, overlap=True),
    }


def killed(rank: int) -> dict[str, Any]:
    """The last worker dies between two outer steps: what the others report, and after how long."""
    return lost(rank, hangs=False)


def hung(rank: int) -> dict[str, Any]:
    """The same with a worker that hangs."""
    return lost(rank, hangs=True)


def lost(rank: int, hangs: bool) -> dict[str, Any]:
    """What the others see of a worker that is lost."""
    params = parameters()
    dist.barrier()
    group = dist.new_group(timeout=timedelta(seconds=3))
    opt = deeprelax.ElasticSGD(params, **OPTIONS["ElasticSGD"], replicas=group)
    for number in range(9):
        if number == 6 and rank == dist.get_world_size() - 1:
            time.sleep(6 if hangs else 0)
            os._exit(1)
        if number == 8:
            time.sleep(0.5)  # it is dead by now
        begin = time.perf_counter()
        try:
            take_step(opt, params, rank, number)
        except RuntimeError as error:
            return {"said": str(error), "seconds": time.perf_counter() - begin}
    return {"said": "", "seconds": 0.0}


def uneven(rank: int) -> str:
    """Worker 0 has fewer batches than the others."""
    params = parameters()
    opt = deeprelax.ElasticSGD(params, **OPTIONS["ElasticSGD"])
    try:
        for number in range(5 if rank == 0 else 20):
            take_step(opt, params, rank, number)
        opt.finish()
    except RuntimeError as error:
        return str(error)
    return ""


def zero_run(kind: Callable[..., Any]) -> tuple[list[torch.nn.Parameter], Any]:
    """Three parameters, each in a group that says where its noise is, and their optimizer."""
    params = [torch.nn.Parameter(torch.zeros(size)) for size in (500, 300, 301)]
    groups = [{"params": [p], "noise_index": [(k, 0)]} for k, p in enumerate(params)]
    options = {"inner_lr": 0.1, "inner_steps": 4, "temperature": 1.0, "momentum": 0.5}
    return params, kind(groups, lr=0.5, seed=7, **options)


def advance(params: list[torch.nn.Parameter], opt: Any, steps: range) -> None:
    """Steps on gradients that are the same on every rank, as after DDP's average."""
    for step in steps:
        for p in params:
            p.grad = p.detach() * step
        opt.step()


def zero_redundancy(groups: Any, **options: Any) -> Any:
    """torch's ZeroRedundancyOptimizer of EntropySGD."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, deeprelax.EntropySGD, **options)


def zero(rank: int) -> dict[str, Any]:
    """A run that is saved in mid-cycle in the folder of the results, and continues."""
    params, opt = zero_run(zero_redundancy)
    advance(params, opt, range(6))
    opt.consolidate_state_dict(0)
    if rank == 0:
        torch.save((opt.state_dict(), params), "zero.pt")
    dist.barrier()
    advance(params, opt, range(6, 11))
    return {"end": params, "parts": sum(len(group["params"]) for group in opt.optim.param_groups)}


def resumed_from(path: str | Path, kind: Callable[..., Any]) -> list[torch.nn.Parameter]:
    """The weights at the end of a run that is resumed from that state."""
    params, opt = zero_run(kind)
    saved, weights = torch.load(path)
    opt.load_state_dict(saved)
    for p, value in zip(params, weights, strict=True):
        p.data.copy_(value)
    advance(params, opt, range(6, 11))
    return params


def zero_resumed(rank: int) -> list[torch.nn.Parameter]:
    """The same with ZeroRedundancyOptimizer."""
    return resumed_from("zero.pt", zero_redundancy)


def overflow(rank: int) -> dict[str, Any]:
    """An infinity on one rank only, with gradients that are averaged and with those that workers keep."""
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    found = {}
    for kind, shared in (("HJ", True), ("ElasticSGD", False)):
        for overflows in (True, False):
            params = parameters()
            options = OPTIONS["ElasticSGD"] if kind == "ElasticSGD" else {"lr": 0.1, "inner_steps": 3}
            opt = getattr(deeprelax, kind)(params, **options)
            kinds = {"init_scale": 256.0, "growth_interval": 1000}
            scaler: Any = torch.amp.GradScaler("cpu", **kinds) if shared else ShardedGradScaler(device="cpu", **kinds)
            scaler.scale(torch.zeros(()))
            phases = []
            for number in range(9):
                for bad in (True, False) if number == 4 and overflows else (False,):
                    for k, p in enumerate(params):
                        p.grad = gradient(p.detach(), rank, number, k) * scaler.get_scale()
                        if bad and rank == 1 and k == 0:
                            p.grad[0] = torch.inf
                        if shared:
                            dist.all_reduce(p.grad)
                            p.grad /= 2
                    scaler.step(opt)
                    scaler.update()
                    phases.append(opt.phase)
            found[kind, overflows] = [p.detach().clone() for p in params], phases
    return found


def fsdp1(rank: int) -> dict[str, Any]:
    """FSDP's first version, in which processes may have no element of a parameter, interrupted in mid-cycle."""
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    def new(kind: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        model = FullyShardedDataParallel(layers, use_orig_params=True, device_id=torch.device("cpu"))
        # A full state on CPUs is wrong in torch 2.13: every tensor of it lies in one buffer.
        FullyShardedDataParallel.set_state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
        options = {"inner_steps": 4, "temperature": 1e-3, "momentum": 0.5, "seed": 3 + rank}
        return model, getattr(deeprelax, kind)(model.parameters(), **options)

    def learn(model: Any, opt: Any, steps: range) -> None:
        for step in steps:
            opt.zero_grad()
            model(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            opt.step()

    found = {}
    for kind in ("EntropySGD", "EntropyAdamW"):
        model, opt = new(kind)
        learn(model, opt, range(6))
        other, resumed = new(kind)
        for p, value in zip(other.parameters(), model.parameters()):
            p.data.copy_(value)
        saved = FullyShardedDataParallel.optim_state_dict(model, opt)
        resumed.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(other, resumed, saved))
        resumed.param_groups[0]["seed"] = 3 + rank  # the saved groups are rank 0's
        learn(model, opt, range(6, 11))
        learn(other, resumed, range(6, 11))
        found[kind] = [[p.detach().clone() for p in each.parameters()] for each in (model, other)]
    return found


def program(rank: int) -> str:
    """What a program prints that torchrun would start with these variables."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [os.environ["PROGRAM"], *shlex.split(os.environ["ARGUMENTS"])])
        patch.setattr(os, "_exit", sys.exit)
        try:
            runpy.run_path(os.environ["PROGRAM"], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()


def partitions(rank: int) -> dict[str, Any]:
    """The scenarios of test_partitions.py."""
    return {"zero": zero(rank), "zero resumed": zero_resumed(rank), "fsdp1": fsdp1(rank), "overflow": overflow(rank)}


def sharded_workers(rank: int) -> dict[str, list[Any]]:
    """Two and three workers of one process each, and of two processes that share the weights: those of worker
    ``rank // 2`` after every step, and the centre at the end."""
    from sharded import fully_sharded, network, wholes
    from torch.distributed.device_mesh import DeviceMesh

    found: dict[str, list[Any]] = {}
    for size, kind in itertools.product((2, 3), ("ElasticSGD", "Parle")):
        mesh = DeviceMesh("cpu", torch.arange(2 * size).view(size, 2), mesh_dim_names=("replica", "shard"))
        alone = DeviceMesh("cpu", list(range(0, 2 * size, 2)))  # the workers of one process each
        for shared in (False, True):
            if rank >= 2 * size or (not shared and rank % 2):
                continue
            model = network()
            if shared:
                fully_sharded(model, mesh=mesh["shard"])
            replicas = mesh["replica"] if shared else alone
            opt = getattr(deeprelax, kind)(
                model.parameters(), **{**OPTIONS[kind], "replicas": replicas, "deterministic": True, "backend": "auto"}
            )
            after = found[f"{size} {kind} {'shared' if shared else 'whole'}"] = []
            for step in range(5):
                for k, p in enumerate(model.parameters()):
                    p.grad = p.detach() * 0.7 - 0.1 / (1 + rank // 2 + k + step)
                opt.step()
                after.append(wholes(model))
            opt.eval()
            after.append(wholes(model))
            opt.train()
    return found
