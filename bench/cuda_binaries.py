"""What nvcc made of the CUDA kernels: registers, spills, the width of their accesses. Needs no GPU.

Run: python bench/cuda_binaries.py   (writes bench/results/nvcc/registers.json; tests/test_cuda_binaries.py compares)
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "results" / "nvcc" / "registers.json"
DTYPES = {"d": "float64", "f": "float32", "NS0_8bfloat16E": "bfloat16", "NS0_7float16E": "float16"}
RULES = {"10EntropySGD": "EntropySGD", "2HJ": "HJ", "4Heat": "Heat"}
MANGLED = re.compile(
    r"_ZN9deeprelax4cuda6updateI(?P<dtype>d|f|NS0_\d+b?float16E)[df]NS0_(?P<rule>10EntropySGD|2HJ|4Heat)I\S*?"
    r"(?:Lb(?P<noise>[01])ELb(?P<rounding>[01])E)?EELb(?P<plain>[01])ELi\d+EEEv"
)


@dataclass(frozen=True)
class Kernel:
    """One instance of ``update`` in csrc/cuda_kernels.h."""

    rule: str
    dtype: str
    plain: bool
    noise: bool
    rounding: bool

    def __str__(self) -> str:
        options = "" if self.plain else ", options"
        noise = ", noise" if self.noise else ""
        return f"{self.rule} {self.dtype}{noise}{', stochastic rounding' if self.rounding else ''}{options}"


def kernel(mangled: str) -> Kernel | None:
    """The kernel of that symbol; None for the clock's."""
    found = MANGLED.match(mangled)
    if found is None:
        return None
    rule = RULES[found["rule"]]
    noise = rule == "Heat" or found["noise"] == "1"
    return Kernel(rule, DTYPES[found["dtype"]], found["plain"] == "1", noise, found["rounding"] == "1")


def module() -> Any:
    """The compiled module; ImportError where it was not built."""
    return importlib.import_module("deeprelax._cuda")


def cuobjdump() -> str | None:
    """NVIDIA's disassembler: on the PATH, else the one in Triton's package."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    try:
        triton = Path(importlib.import_module("triton").__file__ or "")
    except ImportError:
        return None
    inside = triton.parent / "backends/nvidia/bin/cuobjdump"
    return str(inside) if inside.is_file() else None


@cache
def dump(*options: str) -> str:
    """What it says about the compiled module."""
    command = [cuobjdump() or "cuobjdump", *options, module().__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    local: int


def usage() -> dict[str, dict[str, Usage]]:
    """By architecture and symbol."""
    found: dict[str, dict[str, Usage]] = {}
    architecture = symbol = ""
    for line in dump("-res-usage").splitlines():
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            found.setdefault(architecture, {})[symbol] = Usage(*map(int, match.groups()))
    return found


def accesses(architecture: str) -> Iterator[tuple[str, Counter[str]]]:
    """Of each kernel its symbol and how often each kind of memory instruction stands in its SASS."""
    for part in dump("-sass", "-arch", architecture).split("Function : ")[1:]:
        symbol, _, code = part.partition("\n")
        yield symbol.strip(), Counter(re.findall(r"\s((?:LD|ST)[GL]?\.[A-Z0-9.]+|(?:LD|ST)[GL]?) ", code))


def record() -> dict[str, Any]:
    """Registers by kernel and architecture, with the compiler's version."""
    table: dict[str, dict[str, int]] = {}
    for architecture, symbols in usage().items():
        for symbol, used in symbols.items():
            name = str(kernel(symbol) or "clock")
            table.setdefault(name, {})[architecture] = used.registers
    return {"nvcc": module().compiler, "registers": dict(sorted(table.items()))}


def main() -> None:
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record(), indent=1) + "\n")


if __name__ == "__main__":
    main()
