"""Whether the CUDA source compiles at run time, without nvcc: seconds and size for one fast kernel of each rule.

Needs no GPU, but NVRTC (torch's CUDA wheels bring it; else the package nvidia-cuda-nvrtc) and CUDA's headers.

Run: python bench/codegen/nvrtc.py --library FOLDER_OF_LIBNVRTC --include CUDA_INCLUDE_FOLDER

It writes bench/results/nvrtc/compile.json; docs/benchmarks.md says what follows from it.
"""

from __future__ import annotations

import ctypes
import json
import re
import time
from pathlib import Path
from typing import Any

import click

from deeprelax.kernels import RULES, Flag

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "bench" / "results" / "nvrtc" / "compile.json"
# Of each rule the type, the header, and the options of its most expensive fast kernel.
KERNELS = [
    (rule, header, int(Flag.NOISE) if True in RULES[header].draws else 0)
    for rule, header in re.findall(r"\bRULE\((\w+), (\w+)\)", (ROOT / "csrc" / "abi.h").read_text())
]
# NVRTC has no standard library; libcu++ stands in for the headers that csrc/ includes.
HEADERS = {
    name: f"#pragma once\n#include <cuda/std/{name}>\nnamespace std {{ using namespace cuda::std; }}\n"
    for name in ("type_traits", "utility", "cmath", "cstring")
} | {
    "cstdint": "#pragma once\n#include <cuda/std/cstdint>\n"
    + "".join(f"using cuda::std::{t}_t;\n" for t in ("uint16", "int32", "uint32", "int64", "uint64", "uintptr"))
}


def device_code() -> str:
    """csrc/cuda_rule.cu without what launches the kernels."""
    source = (ROOT / "csrc" / "cuda_rule.cu").read_text().partition("// The runtime loads a kernel when")[0]
    return source.replace("#include <algorithm>\n", "") + "}\n"


def strings(texts: list[str]) -> Any:
    return (ctypes.c_char_p * len(texts))(*[text.encode() for text in texts])


def compiled(nvrtc: Any, options: list[str], name: str) -> dict[str, Any]:
    """Seconds and bytes of the kernel of that name; RuntimeError with what the compiler said."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    texts, names = strings(list(HEADERS.values())), strings(list(HEADERS))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), device_code().encode(), b"cuda_rule.cu", len(HEADERS), texts, names)
    nvrtc.nvrtcAddNameExpression(program, name.encode())
    begin = time.perf_counter()
    error = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    seconds = time.perf_counter() - begin
    if error:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.value.decode())
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    return {"seconds": round(seconds, 2), "bytes": size.value}


@click.command(help=__doc__)
@click.option("--library", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--include", type=click.Path(exists=True, path_type=Path), required=True)
def main(library: Path, include: Path) -> None:
    for path in (*library.glob("libnvrtc-builtins.so.*"), *library.glob("libnvrtc.so.*")):
        nvrtc = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    found = {}
    for rule, header, on in KERNELS:
        options = ["-arch=sm_90", "--fmad=false", "-std=c++17", "-default-device", f"-I{ROOT / 'csrc'}"]
        options += [f"-I{include}", f"-I{include / 'cccl'}", f"-DDR_RULE={rule}", f'-DDR_HEADER="{header}.h"']
        blocks = f"deeprelax::cuda::{rule}::blocks(sizeof(float), true, {on}u)"
        name = f"deeprelax::cuda::update<float, float, deeprelax::cuda::{rule}, {on}u, true, {blocks}>"
        found[f"{rule} float32{', noise' if on else ''}, sm_90"] = compiled(nvrtc, options, name)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps({"nvrtc": f"{major.value}.{minor.value}", "kernels": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
