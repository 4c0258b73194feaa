"""``deeprelax doctor``."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

import click
import torch

from deeprelax import environment, kernels


@click.command()
def doctor() -> None:
    """What this machine has: versions, instruction sets, backends, and what to do about missing ones."""
    about = environment.describe()
    lines = [("python", about["python"])]
    lines += [(name, environment.version(name) or "not installed") for name in environment.PACKAGES]
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:  # operators of a build for another torch
            lines.append(("", f"torchvision is not a build for this torch, CPU or CUDA: install one ({error})"))
    lines += [("system", about["system"]), ("cpu", about["cpu"])]
    used, known = environment.instruction_sets()
    lines.append(("instruction set", f"{used} (this CPU runs {', '.join(known)})" if used else "none: no cpu backend"))
    lines.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} (torch.set_num_threads)"))
    lines.append(("cuda kernels", environment.cuda_kernels() or "not built"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    nodes = bool(gpus) or any(Path("/dev").glob("nvidia[0-9]*"))
    lines.append(("gpu", ", ".join(gpus) or ("none that torch can use" if nodes else "no GPU found")))
    for name, value in lines:
        click.echo(f"{name:16} {value}")
    click.echo()
    for name in kernels.NAMES:
        reason = kernels.why_not(name)
        if reason and name in ("cuda", "triton") and not nodes:
            # Without a GPU, the only reason worth showing is that the kernels were not built.
            built = environment.cuda_kernels() if name == "cuda" else environment.version("triton")
            reason = "no GPU found" if built else f"no GPU found; {reason}"
        mark = click.style("works", fg="green") if not reason else click.style("not here", fg="yellow")
        click.echo(f"backend {name:8} {mark}" + (f": {reason}" if reason else ""))
    wish = os.environ.get("DEEPRELAX_BACKEND")
    for device in ["cpu", "cuda"] if gpus else ["cpu"]:
        try:
            click.echo(f'backend="auto" takes {kernels.get("auto", torch.device(device)).name} for {device} tensors')
        except (RuntimeError, ValueError) as error:
            click.echo(f"DEEPRELAX_BACKEND={wish}: {error}")
