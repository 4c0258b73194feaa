"""Part ``steps``: whole steps of the optimizers over a cycle, by those of torch's and by plain torch."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import deeprelax
from deeprelax.benchmark.baselines import CompiledEntropySGD, EagerEntropySGD, ForeachEntropySGD
from deeprelax.benchmark.shapes import Workload
from deeprelax.benchmark.traffic import bytes_moved, peer_bytes_moved
from gpu_bench.calls import RULES, Rule
from gpu_bench.context import Context
from gpu_bench.host_part import is_capturable
from gpu_bench.timing import Contestant, measure, ratios, spread

ADAMW = "torch.optim.AdamW(fused=True)"
PEERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    ADAMW: lambda params, **options: torch.optim.AdamW(params, lr=1e-6, fused=True, **options),
    "torch.optim.SGD(fused=True)": lambda params, **_: torch.optim.SGD(params, lr=1e-6, fused=True),
    "torch.optim.SGD(momentum, fused=True)": lambda params, **_: torch.optim.SGD(
        params, lr=1e-6, momentum=0.9, fused=True
    ),
}
COMPILED = "EntropySGD, noise, torch.compile"  # compiling takes most of a minute
PLAIN: dict[str, Callable[[list[Tensor]], Any]] = {
    "EntropySGD, noise, eager torch": EagerEntropySGD,
    "EntropySGD, noise, torch._foreach": ForeachEntropySGD,
    COMPILED: CompiledEntropySGD,
}
PEER_STEPS = 5  # between two events


def make(rule: Rule, params: list[Tensor], backend: str, capturable: bool) -> Any:
    """The optimizer with a cycle of the rule's length. Rates so small that weights keep their size."""
    options: dict[str, Any] = {"lr": 1e-6, "inner_steps": rule.length, "backend": backend, "capturable": capturable}
    if rule.optimizer == "EntropySGD":
        options |= {"inner_lr": 1e-6, "temperature": 1e-8 if rule.noise else 0.0, "gamma": 1.0}
    if rule.optimizer == "EntropyAdamW":
        options |= {"momentum": 0.0}
    if rule.optimizer != "HJ":
        options |= {"seed": 0}
    return getattr(deeprelax, rule.optimizer)(params, **options)


def bytes_per_cycle(rule: Rule) -> float:
    """Per element and step of a cycle, fp32."""
    kinds = ("first", "inner", "last")
    return rule.per_cycle({kind: bytes_moved(rule.optimizer, torch.float32, kind) for kind in kinds})


def run(context: Context) -> None:
    """Group by group, each with a backend's optimizers and torch's: fewer would fit into memory together."""
    results = context.record.results("steps")
    results["rows"] = []
    for which in context.scale.workloads:
        workload = context.scale.workload(which)
        params = parameters(workload, context.device)
        for backend_name, backend in context.backends.items():
            for captured in (False, True) if is_capturable(backend) else (False,):
                what = f"{workload.name} [{backend_name}{', graph' * captured}]"
                if context.budget.left() < 25:
                    results.setdefault("left_out", []).append(what)
                    continue
                with context.record.attempt("steps", what):
                    results["rows"] += group(context, workload, params, backend_name, captured)
                context.record.save()
                gc.collect()


def run_plain(context: Context, names: list[str]) -> None:
    """Entropy-SGD's inner step in plain torch on the first of the workloads; ``names`` are keys of PLAIN."""
    results = context.record.results("steps")
    workload = context.scale.workload(context.scale.workloads[0])
    results["rows"] = plain(context, workload, names)


def parameters(workload: Workload, device: torch.device) -> list[Tensor]:
    params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in workload.shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return list(params)


def steps(step: Callable[[], object], count: int) -> Contestant:
    def enqueue() -> None:
        for _ in range(count):
            step()

    return Contestant(enqueue, count)


def captured_step(opt: Any, device: torch.device) -> Callable[[], object]:
    """One step in a CUDA graph, replayed. Where there are no graphs (the CPU of the tests), the step itself."""
    if device.type != "cuda":
        step: Callable[[], object] = opt.step
        return step
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            opt.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    return graph.replay


def group(
    context: Context, workload: Workload, params: list[Tensor], backend: str, captured: bool
) -> list[dict[str, Any]]:
    """A backend's optimizers and torch's, all on the same parameters."""
    contestants: dict[str, Contestant] = {}
    per_element: dict[str, float] = {}
    kept: list[Any] = []
    for rule in RULES:
        with context.record.attempt("steps", f"{rule.name}, {workload.name} [{backend}{', graph' * captured}]"):
            kept.append(make(rule, params, backend, captured))
            step = captured_step(kept[-1], context.device) if captured else kept[-1].step
            step()
            context.synchronize()  # what does not run at all must not take the others with it
            contestants[rule.name] = steps(step, rule.length)
            per_element[rule.name] = bytes_per_cycle(rule)
    for name, build in PEERS.items():
        capture = captured and name == ADAMW
        kept.append(build(params, capturable=True) if capture else build(params))
        kept[-1].step()  # makes its state
        contestants[name] = steps(captured_step(kept[-1], context.device) if capture else kept[-1].step, PEER_STEPS)
        per_element[name] = peer_bytes_moved(name, torch.float32)
    return rows(context, workload, backend, captured, contestants, per_element)


def rows(
    context: Context,
    workload: Workload,
    backend: str,
    captured: bool,
    contestants: dict[str, Contestant],
    per_element: dict[str, float],
) -> list[dict[str, Any]]:
    """Time of a step, its bandwidth, and time and bytes by AdamW's."""
    samples = measure(contestants, context.timer, max(3, context.scale.rounds // 3), warm_up=1)
    found = []
    for name in contestants:
        seconds = spread([s.seconds for s in samples[name]])
        time_ratio = statistics.median(ratios(samples, name, ADAMW))
        found.append(
            {
                "workload": workload.name,
                "elements": workload.elements,
                "backend": backend,
                "captured": captured,
                "name": name,
                "us": {key: 1e6 * value for key, value in seconds.items()},
                "host_us": 1e6 * statistics.median(s.host for s in samples[name]),
                "waited": statistics.mean(s.waited for s in samples[name]),
                "gb_per_s": per_element[name] * workload.elements / seconds["median"] / 1e9,
                "by_adamw": time_ratio,
                "by_adamw_per_byte": time_ratio / (per_element[name] / per_element[ADAMW]),
            }
        )
    return found


def plain(context: Context, workload: Workload, names: list[str]) -> list[dict[str, Any]]:
    """Those of PLAIN, beside AdamW."""
    params = parameters(workload, context.device)
    adamw = PEERS[ADAMW](params)
    contestants = {ADAMW: steps(adamw.step, PEER_STEPS)}
    for name in names:
        with context.record.attempt("steps", name):
            step = PLAIN[name](params).step
            step()
            context.synchronize()
            contestants[name] = steps(step, 2)
    moved = bytes_moved("EntropySGD", torch.float32, "inner")
    per_element = {name: float(moved) for name in PLAIN} | {ADAMW: float(peer_bytes_moved(ADAMW, torch.float32))}
    return rows(context, workload, "plain torch", False, contestants, per_element)
