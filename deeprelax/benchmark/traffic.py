"""The bytes that one call has to read and write per element: the floor that a kernel is judged against.

``w`` is the parameter and ``g`` its gradient, in the parameter's dtype; x, y, z, p, s, the momenta m (outer) and v
(inner), and AdamW's averages e and q are state, in the dtype that the kernels compute in. The noise, unscaling and
tables move nothing per element.
"""

from __future__ import annotations

from typing import Any

import torch

from deeprelax.kernels.abi import COMPUTE_DTYPE

#: The calls of a cycle of L: L = 1 has one "only", L = 2 a "first" and a "last".
KINDS = ("first", "inner", "last", "only")

# What a call reads and what it writes, where the state has the parameter's dtype: the parameter is y or x itself.
OPERANDS: dict[str, dict[str, tuple[str, str]]] = {
    "EntropySGD": {
        "first": ("g w", "w x z"),
        "inner": ("g w x z", "w z"),
        "last": ("g w x z", "w"),
        "only": ("g w", "w"),
    },
    "HJ": {
        "first": ("g w", "w x p"),
        "inner": ("g x p", "w p"),
        "last": ("g x p", "w"),
        "only": ("g w", "w"),
    },
    "Heat": {
        "first": ("g x", "w s"),
        "inner": ("g x s", "w s"),
        "last": ("g x s", "w x"),
        "only": ("g x", "w x"),
    },
    # With its defaults: no pull, and z is y.
    "EntropyAdamW": {
        "first": ("g w e q", "w x e q"),
        "inner": ("g w e q", "w e q"),
        "last": ("g w x e q", "w e q"),
        "only": ("g w e q", "w e q"),
    },
    # Its kernel alone; the exchange of the last call adds its own passes.
    "ElasticSGD": dict.fromkeys(KINDS, ("g w x", "w")),
    # Its own pass alone, after the inner optimizer's.
    "OuterLoop": {"first": ("", ""), "inner": ("", ""), "last": ("w x", "w"), "only": ("w x", "w")},
}

#: torch's optimizers, from their second step on; their state has the parameter's dtype.
PEER_OPERANDS = {
    "torch.optim.SGD(fused=True)": ("g w", "w"),
    "torch.optim.SGD(momentum, fused=True)": ("g w m", "w m"),
    "torch.optim.AdamW(fused=True)": ("g w m v", "w m v"),
}


def operands(
    optimizer: str,
    dtype: torch.dtype,
    kind: str,
    *,
    momentum: float = 0.0,
    inner_momentum: float = 0.0,
    carry_inner_momentum: bool = False,
    weight_decay: float = 0.0,
    stochastic_rounding: bool = False,
    gamma: float = float("inf"),
    alpha: float = 0.0,
) -> tuple[set[str], set[str]]:
    """What one call on a weight with a gradient reads and writes.

    Args:
        optimizer: "EntropySGD", "HJ", "Heat", "EntropyAdamW", "ElasticSGD", "Parle" (without its exchange) or
            "OuterLoop".
        dtype: the parameters'.
        kind: one of ``KINDS``.
        momentum, inner_momentum, carry_inner_momentum, weight_decay, stochastic_rounding: as the optimizer has them.
        gamma: EntropyAdamW's.
        alpha: EntropyAdamW's and OuterLoop's.

    Returns:
        The names of the operands that are read, and of those that are written.

    Raises:
        ValueError: there is no such optimizer, kind or dtype.
    """
    for value, known in ((optimizer, [*OPERANDS, "Parle"]), (kind, list(KINDS)), (dtype, list(COMPUTE_DTYPE))):
        if value not in known:
            raise ValueError(f"unknown {value!r}; expected one of {', '.join(map(str, known))}")
    optimizer = "EntropySGD" if optimizer == "Parle" else optimizer
    reads, writes = (set(names.split()) for names in OPERANDS[optimizer][kind])
    begins, ends = kind in ("first", "only"), kind in ("last", "only")
    if optimizer == "ElasticSGD" and COMPUTE_DTYPE[dtype] != dtype:
        if not (stochastic_rounding and dtype == torch.bfloat16):  # y is read, and rounded again
            reads, writes = reads - {"w"} | {"y"}, writes | {"y"}
    elif COMPUTE_DTYPE[dtype] != dtype and optimizer != "OuterLoop":
        # x is more than the parameter shows. (Heat moves it in any dtype.)
        if begins:
            reads |= {"x"}
        if ends:
            writes |= {"x"}
        if optimizer.startswith("Entropy") and not (stochastic_rounding and dtype == torch.bfloat16):
            if not begins and "w" in reads:  # the kernels round y again rather than read the parameter
                reads = reads - {"w"} | {"y"}
            if not ends:
                writes |= {"y"}
    if momentum != 0 and ends and optimizer != "ElasticSGD":
        reads, writes = reads | {"m"}, writes | {"m"}
    if optimizer in ("EntropySGD", "ElasticSGD") and inner_momentum != 0:
        if carry_inner_momentum or not begins:
            reads |= {"v"}
        writes |= {"v"}
    if optimizer == "Heat" and weight_decay != 0:
        reads |= {"w"}
    if optimizer == "EntropyAdamW" and not begins and gamma != float("inf"):
        reads |= {"x"}
    if optimizer == "EntropyAdamW" and alpha != 0:
        reads, writes = reads | (set() if begins else {"z"}), writes | (set() if ends else {"z"})
    if optimizer == "OuterLoop" and alpha != 0:
        reads, writes = reads | {"w", "x" if begins else "z"}, writes | (set() if ends else {"z"})
    if optimizer == "OuterLoop" and ends and COMPUTE_DTYPE[dtype] != dtype:
        writes |= {"x"}
    return reads, writes


def bytes_moved(optimizer: str, dtype: torch.dtype, kind: str, **options: Any) -> int:
    """Bytes per element that one call reads and writes; arguments and errors as for ``operands``."""
    moved = operands(optimizer, dtype, kind, **options)
    return sum(width(name, dtype) for names in moved for name in names)


def width(name: str, dtype: torch.dtype) -> int:
    """Bytes per element of an operand, for parameters of that dtype."""
    return (dtype if name in ("w", "g") else COMPUTE_DTYPE[dtype]).itemsize


def peer_bytes_moved(peer: str, dtype: torch.dtype) -> int:
    """Bytes per element that one step of a key of ``PEER_OPERANDS`` reads and writes."""
    return dtype.itemsize * sum(len(names.split()) for names in PEER_OPERANDS[peer])
