"""The layout that Python and the compiled kernels exchange is the same in ``kernels/abi.py`` and in ``csrc/abi.h``."""

import ctypes
from typing import Any

import pytest

from deeprelax.kernels import RULES, abi
from deeprelax.kernels.device_table import LEADS

SCALARS = [abi.Scalars, abi.NarrowScalars, abi.DeviceScalars, abi.Hyper, abi.ClockWords, abi.Sources]
SHARED = [*SCALARS, abi.CpuLaunch, abi.CudaLaunch]
STRUCTURES = {"_cpu": [*SHARED, abi.Expected], "_cuda": SHARED}


def exported(name: str) -> dict[str, Any]:
    found: dict[str, Any] = pytest.importorskip(f"deeprelax.{name}").abi()
    return found


def fields(structure: type[ctypes.Structure]) -> list[tuple[str, Any]]:
    """Those of the structures that it inherits from come first."""
    found = []
    for cls in reversed(structure.__mro__):
        found += cls.__dict__.get("_fields_", [])
    return found


def described(structure: type[ctypes.Structure]) -> tuple[int, dict[str, tuple[int, int, bool]]]:
    """What csrc/describe.h says of a struct: its size; of each field the offset, the size, and whether it is a real."""
    return ctypes.sizeof(structure), {
        name: (getattr(structure, name).offset, ctypes.sizeof(kind), kind in (ctypes.c_double, ctypes.c_float))
        for name, kind in fields(structure)
    }


@pytest.mark.parametrize("module", STRUCTURES)
def test_every_structure_has_the_same_fields_at_the_same_offsets(module: str) -> None:
    assert exported(module)["structs"] == {s.__name__: described(s) for s in STRUCTURES[module]}


@pytest.mark.parametrize("module", STRUCTURES)
def test_flags_rules_and_dtypes_have_the_same_numbers(module: str) -> None:
    found = exported(module)
    assert found["flags"] == {flag.name: flag.value for flag in abi.Flag}
    assert found["rules"] == {rule.name: rule.number for rule in RULES.values()}
    assert found["dtypes"] == {str(dtype).removeprefix("torch."): number for dtype, number in abi.DTYPES.items()}


def test_the_tables_of_the_cuda_kernels_count_in_the_same_units() -> None:
    module = pytest.importorskip("deeprelax._cuda")
    assert module.leads == LEADS
