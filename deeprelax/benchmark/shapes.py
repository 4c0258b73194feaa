"""What a step is measured on: lists of parameter shapes, built in, torchvision's, or typed by hand, and parameters."""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Workload:
    """A list of parameter shapes."""

    name: str
    shapes: Shapes

    @property
    def elements(self) -> int:
        """Of all tensors together."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)


def parameters(
    shapes: Iterable[tuple[int, ...]], device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Random weights, each with a random gradient; ``device`` defaults to torch's."""
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(shape, device=device, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def resnet50_shapes() -> Shapes:
    """The 161 parameters of ResNet-50 (He et al. 2016, table 1; batch norm with weight and bias)."""
    shapes: list[tuple[int, ...]] = []

    def convolution(out: int, into: int, size: int) -> None:
        shapes.extend([(out, into, size, size), (out,), (out,)])

    convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(width, into, 1)
            convolution(width, width, 3)
            convolution(4 * width, width, 1)
            if block == 0:
                convolution(4 * width, into, 1)
            into = 4 * width
    shapes.extend([(1000, 2048), (1000,)])
    return tuple(shapes)


def decoder_shapes(layers: int = 24, width: int = 2048, vocabulary: int = 50257, positions: int = 2048) -> Shapes:
    """The parameters of a decoder as GPT-2 and 3 have them: learned positions, biases everywhere, an output that is
    tied to the embedding. By default the 292 of GPT-3 XL, 1.3 billion elements (Brown et al. 2020, table 2.1)."""
    norm = [(width,), (width,)]

    def linear(out: int, into: int) -> list[tuple[int, ...]]:
        return [(out, into), (out,)]

    attention = linear(3 * width, width) + linear(width, width)
    mlp = linear(4 * width, width) + linear(width, 4 * width)
    layer = [*norm, *attention, *norm, *mlp]
    return ((vocabulary, width), (positions, width), *(layer * layers), *norm)


BUILT_IN: dict[str, Callable[[], Shapes]] = {"resnet50": resnet50_shapes, "decoder-1.3b": decoder_shapes}


def near(model: str, known: Iterable[str]) -> str:
    """Similar names, as part of an error message."""
    found = difflib.get_close_matches(model, list(known))
    return f" (near: {', '.join(found)})" if found else ""


def torchvision_shapes(model: str) -> Shapes:
    """The parameters of one of torchvision's classification models, built without allocating them.

    Raises:
        RuntimeError: torchvision cannot be imported.
        ValueError: it has no model of that name.
    """
    instead = f"use {' or '.join(BUILT_IN)}, or give the shapes themselves: --shapes 4096x4096,4096"
    try:
        from torchvision import models
    except (ImportError, OSError, RuntimeError) as error:  # its compiled part works with one version of torch only
        raise RuntimeError(
            f"{model!r} is not built in{near(model, BUILT_IN)}, and torchvision, which may have it, cannot be imported "
            f"here ({type(error).__name__}: {error}): install the torchvision built for torch {torch.__version__}, "
            f"or {instead}"
        ) from error
    known = models.list_models(module=models)
    if model not in known:
        raise ValueError(f"no model is called {model!r}{near(model, [*known, *BUILT_IN])}; {instead}")
    with parameters_without_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about initial values: the tensors have none
        return tuple(tuple(p.shape) for p in models.get_model(model, weights=None).parameters())


@contextlib.contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Modules built inside have their parameters on torch's meta device, but no other tensors: some models compute
    their widths with tensors, whose values are needed."""

    def without_memory(module: torch.nn.Module, name: str, p: torch.nn.Parameter) -> torch.nn.Parameter:
        return torch.nn.Parameter(p.to("meta"), p.requires_grad)

    hook = register_module_parameter_registration_hook(without_memory)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def named(model: str) -> Workload:
    """The shapes of a model: a key of ``BUILT_IN`` or a name of torchvision's.

    Raises:
        RuntimeError, ValueError: as ``torchvision_shapes``.
    """
    shapes = BUILT_IN[model]() if model in BUILT_IN else torchvision_shapes(model)
    return Workload(f"{model}, {len(shapes)} tensors", shapes)


def typed(text: str) -> Workload:
    """``"4096x4096,4096"``: shapes separated by commas, sizes by x.

    Raises:
        ValueError: the text is not of that form, or a size is 0.
    """
    shapes = []
    for shape in text.split(","):
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape.strip(), re.ASCII):
            raise ValueError(f"{shape!r} in {text!r} is not a shape; expected sizes joined by x: 4096x4096,4096")
        shapes.append(tuple(int(size) for size in shape.split("x")))
    return Workload(text if len(text) <= 40 else f"{len(shapes)} tensors", tuple(shapes))
