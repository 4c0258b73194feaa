"""The CUDA kernels with other constants, built beside the other parts for the GPU that is here."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import pybind11

from deeprelax.kernels import Backend
from deeprelax.kernels.cuda import Cuda
from gpu_bench.jobs import ROOT
from gpu_bench.lifetime import bound_to_parent

# Macros of csrc/cuda.h and csrc/scalar.h. Four packs a thread and 460 tensors are what the kernels are built with.
VARIANTS: dict[str, dict[str, str]] = {
    "128 threads, 8 KiB of weights": {"DR_CUDA_THREADS": "128", "DR_CUDA_CHUNK_BYTES": "8192"},
    "8 KiB of weights (two packs a thread)": {"DR_CUDA_CHUNK_BYTES": "8192"},
    "32 KiB of weights (eight packs a thread)": {"DR_CUDA_CHUNK_BYTES": "32768"},
    "4,000 tensors a launch": {"DR_CUDA_TENSORS": "4000"},
    "plain loads and stores": {"DR_CUDA_LOAD": "__ldca", "DR_CUDA_STORE": "__stwb"},
    "loads streamed, stores plain": {"DR_CUDA_STORE": "__stwb"},
}
# csrc/cuda_rule.cu for each rule of csrc/abi.h, (type, header), and the module.
RULES = re.findall(r"\bRULE\((\w+), (\w+)\)", (ROOT / "csrc" / "abi.h").read_text())
SOURCES: dict[str, list[str]] = {
    **{rule: [f"-DDR_RULE={rule}", f'-DDR_HEADER="{header}.h"'] for rule, header in RULES},
    "module": [],
}
AT_A_TIME = 8


@cache
def constant(name: str) -> Any:
    """A constant of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise ValueError(f"setup.py has no constant {name}")


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = Path(home, "bin", "nvcc")
    return str(found) if found.is_file() else shutil.which("nvcc")


def load(path: Path) -> Any:
    """A module that was built as ``_cuda``, beside others of that name."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(built: Iterable[tuple[str, Path | None, str]], file: Path) -> None:
    """For ``stored``, in another process."""
    file.write_text(json.dumps([[name, library and str(library), why] for name, library, why in built]))


def stored(file: Path) -> Iterator[tuple[str, Callable[[], Backend]]]:
    """Of each its name and what loads it, or raises."""
    for name, library, why in json.loads(file.read_text()):

        def get(library: str | None = library, why: str = why) -> Backend:
            if library is None:
                raise RuntimeError(why)
            return Cuda(load(Path(library)))

        yield name, get


class Builder:
    """Builds variants in the background, with low priority.

    Args:
        folder: for what is built.
        architecture: of the GPU, "90".
        variants: by name the macros.
        sources: keys of ``SOURCES``.
    """

    def __init__(
        self,
        folder: Path,
        architecture: str,
        variants: dict[str, dict[str, str]] = VARIANTS,
        sources: tuple[str, ...] = tuple(SOURCES),
    ) -> None:
        self._folder, self._architecture = folder, architecture
        self._includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        constant("NVCC_FLAGS")  # Python 3.11 cannot parse in several threads at once
        self._pool = ThreadPoolExecutor(AT_A_TIME)
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._objects: dict[str, dict[str, Future[Path]]] = {name: {} for name in variants}
        for i in range(len(variants)):
            (folder / f"variant{i}").mkdir(parents=True, exist_ok=True)
        for source in sources:
            for i, (name, macros) in enumerate(variants.items()):
                self._objects[name][source] = self._pool.submit(self._compile, source, macros, folder / f"variant{i}")

    def _compile(self, source: str, macros: dict[str, str], folder: Path) -> Path:
        target = (
            [] if source == "module" else [f"-gencode=arch=compute_{self._architecture},code=sm_{self._architecture}"]
        )
        defines = [*SOURCES[source], *(f"-D{name}={value}" for name, value in macros.items())]
        if self._stopped:
            raise RuntimeError("given up: the time was over")
        made = folder / f"{source}.o"
        file = str(ROOT / "csrc" / ("cuda_module.cu" if source == "module" else "cuda_rule.cu"))
        self._call(
            ["nice", "-n", "19"], [*constant("NVCC_FLAGS"), *target, *self._includes, *defines, "-c", file], made
        )
        return made

    def _call(self, before: list[str], arguments: list[str], made: Path) -> None:
        compiler = nvcc()
        if compiler is None:
            raise RuntimeError("no nvcc: looked in CUDA_HOME and on the PATH")
        command = [*before, compiler, *arguments, "-o", str(made)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=bound_to_parent(),
        )
        self._running.add(process)
        try:
            said, _ = process.communicate()
        finally:
            self._running.discard(process)
        if process.returncode != 0:
            raise RuntimeError(f"nvcc failed: {said.strip()[-1000:]}")

    def wait(self, seconds: float) -> None:
        """Until all is compiled, or for so long; what is not compiled by then is given up."""
        pending = wait([f for objects in self._objects.values() for f in objects.values()], timeout=seconds).not_done
        if pending:
            self.stop()

    def built(self) -> Iterator[tuple[str, Path | None, str]]:
        """Of each, in order: name, library, and where there is none why not."""
        for name, objects in self._objects.items():
            try:
                files = [future.result() for future in objects.values()]
                library = files[0].parent / "_cuda.so"
                self._call([], ["-shared", "-cudart=static", *map(str, files)], library)
                yield name, library, ""
            except Exception as error:
                yield name, None, str(error) or type(error).__name__

    def stop(self) -> None:
        """Give up what is not compiled yet."""
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):  # nvcc's own children too
                os.killpg(process.pid, signal.SIGTERM)
