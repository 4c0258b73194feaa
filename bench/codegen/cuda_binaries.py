"""What nvcc made of the CUDA kernels: registers, spills, accesses, and the order of their loads. Needs no GPU.

Run: python bench/codegen/cuda_binaries.py

It writes bench/results/nvcc/registers.json, and tests/kernels/test_cuda_binaries.py compares.
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

from deeprelax.kernels.abi import Flag

RECORD = Path(__file__).parents[1] / "results" / "nvcc" / "registers.json"
DTYPES = {"d": "float64", "f": "float32", "NS0_8bfloat16E": "bfloat16", "NS0_7float16E": "float16"}
MANGLED = re.compile(
    r"_ZN9deeprelax4cuda6updateI(?P<dtype>d|f|NS0_\d+b?float16E)[df]NS0_\d+(?P<rule>\w+?)ELj(?P<on>\d+)E"
    r"Lb(?P<fast>[01])ELi\d+EEEv"
)
CLOCK = re.compile(r"_ZN9deeprelax4cuda9tick_onceINS0_\d+(?P<rule>\w+?)EEEv")


@dataclass(frozen=True)
class Kernel:
    """One instance of ``update`` in csrc/cuda_rule.cu."""

    rule: str
    dtype: str
    fast: bool
    noise: bool
    rounding: bool

    def __str__(self) -> str:
        options = "" if self.fast else ", options"
        noise = ", noise" if self.noise else ""
        return f"{self.rule} {self.dtype}{noise}{', stochastic rounding' if self.rounding else ''}{options}"


def kernel(mangled: str) -> Kernel | None:
    """The kernel of that symbol; None for a clock's."""
    found = MANGLED.match(mangled)
    if found is None:
        return None
    on = int(found["on"])  # the options that it is compiled with
    noise, rounding = bool(on & Flag.NOISE), bool(on & Flag.STOCHASTIC_ROUNDING)
    return Kernel(found["rule"], DTYPES[found["dtype"]], found["fast"] == "1", noise, rounding)


def name_of(mangled: str) -> str:
    """What the record calls the kernel of that symbol."""
    clock = CLOCK.match(mangled)
    return f"clock of {clock['rule']}" if clock else str(kernel(mangled))


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

    @staticmethod
    def of(text: str) -> Usage | None:
        """What cuobjdump reports in that text, if it does."""
        match = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
        return Usage(*map(int, match.groups())) if match else None


def usage() -> dict[str, dict[str, Usage]]:
    """By architecture and symbol."""
    found: dict[str, dict[str, Usage]] = {}
    architecture = symbol = ""
    for line in dump("-res-usage").splitlines():
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif used := Usage.of(line):
            found.setdefault(architecture, {})[symbol] = used
    return found


def code(architecture: str) -> Iterator[tuple[str, str]]:
    """Of each kernel its symbol and its SASS."""
    for part in dump("-sass", "-arch", architecture).split("Function : ")[1:]:
        symbol, _, text = part.partition("\n")
        yield symbol.strip(), text


def accesses(text: str) -> Counter[str]:
    """How often each kind of memory instruction occurs in a kernel's SASS."""
    return Counter(re.findall(r"\s((?:LD|ST)[GL]?\.[A-Z0-9.]+|(?:LD|ST)[GL]?) ", text))


@dataclass(frozen=True)
class Instruction:
    address: int
    operation: str
    operands: str

    def wide_load(self) -> bool:
        return self.operation.startswith("LDG") and ".128" in self.operation

    def loaded(self) -> set[int]:
        """The four registers that a wide load writes."""
        first = int(re.match(r"R(\d+)", self.operands)[1])  # type: ignore[index]
        return set(range(first, first + 4))

    def read(self) -> set[int]:
        operands = self.operands
        if not re.match(r"ST|[A-Z]SETP|R2P", self.operation):  # the others' first register is written
            operands = re.sub(r"^((?:U?P\w+, )*)U?R\w+", "", operands)
        return {int(n) for n in re.findall(r"\bR(\d+)", operands)}


INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?(\S+)\s*(.*?)\s*;", re.MULTILINE)


@dataclass(frozen=True)
class Loop:
    """A loop around wide loads.

    Attributes:
        instructions: how many.
        batches: numbers of wide loads in flight together. A thread stalls at the first instruction that reads a
            register which is not loaded yet; loads after it are a new batch.
        narrow_loads: how many are narrower.
        stores_aligned: whether no store is.
    """

    instructions: int
    batches: tuple[int, ...]
    narrow_loads: int
    stores_aligned: bool

    @property
    def aligned(self) -> bool:
        """Whether all loads are wide."""
        return not self.narrow_loads

    def __str__(self) -> str:
        return f"{self.instructions}: {' + '.join(map(str, self.batches))}"


def batches(body: list[Instruction]) -> tuple[int, ...]:
    found: list[int] = []
    under_way: set[int] = set()
    for instruction in body:
        if instruction.read() & under_way:
            under_way = set()
        if instruction.wide_load():
            if not under_way:
                found.append(0)
            found[-1] += 1
            under_way |= instruction.loaded()
    return tuple(found)


def loops(text: str) -> list[Loop]:
    """The innermost loops around wide loads, in the order of a kernel's SASS."""
    every = [Instruction(int(address, 16), *rest) for address, *rest in INSTRUCTION.findall(text)]
    jumps = [(re.search(r"0x([0-9a-f]+)", i.operands), i.address) for i in every if i.operation.startswith("BRA")]
    back = [(int(to[1], 16), address) for to, address in jumps if to is not None and int(to[1], 16) < address]
    found = []
    for start, end in back:
        if any((s, e) != (start, end) and start <= s and e <= end for s, e in back):
            continue
        body = [i for i in every if start <= i.address <= end]
        loads = [i for i in body if i.operation.startswith("LDG")]
        if any(i.wide_load() for i in loads):
            stored = all(".128" in i.operation for i in body if i.operation.startswith("STG"))
            found.append(Loop(len(body), batches(body), sum(not i.wide_load() for i in loads), stored))
    return found


def record() -> dict[str, Any]:
    """By kernel and architecture registers and loops, with the compiler's version.

    A loop stands as "instructions: batches of wide loads". Those of the fast kernels are for aligned memory.
    """
    registers: dict[str, dict[str, int]] = {}
    found: dict[str, dict[str, str]] = {}
    for architecture, symbols in usage().items():
        for symbol, used in symbols.items():
            registers.setdefault(name_of(symbol), {})[architecture] = used.registers
        for symbol, text in code(architecture):
            if instance := kernel(symbol):
                shown = [str(loop) for loop in loops(text) if loop.aligned or not instance.fast]
                found.setdefault(str(instance), {})[architecture] = ", ".join(shown)
    return {
        "nvcc": module().compiler,
        "registers": dict(sorted(registers.items())),
        "loops": dict(sorted(found.items())),
    }


def main() -> None:
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record(), indent=1) + "\n")


if __name__ == "__main__":
    main()
