"""Builds the native kernels; everything else about the package stands in pyproject.toml.

Without a C++ compiler the package installs all the same: the reason is written to deeprelax/_build_info.py, where
``deeprelax doctor`` finds it, and the optimizers run on the ``eager`` backend.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, has_flag
from setuptools import setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")

# One source per instruction set, compiled with its flags; csrc/cpu_module.cpp chooses among them at run time.
# The AVX-512 intrinsics of g++ 12 read variables that they leave undefined on purpose, and warn of it.
# -march comes first, and last on the command line: a default or CFLAGS of -march=native must not widen the baseline.
INSTRUCTION_SETS = {
    "baseline": ["-march=x86-64"],
    "avx2": ["-march=x86-64", "-mavx2", "-mf16c"],
    "avx512": ["-march=x86-64", "-mavx512f", "-mf16c", "-Wno-uninitialized", "-Wno-maybe-uninitialized"],
}
if not X86:  # there the baseline is NEON or what else the compiler makes of vectors of 16 bytes
    INSTRUCTION_SETS = {"baseline": []}

# The noise needs its loops unrolled; for the rules -O2 gives the same speed in a third of the compiler's time.
OPTIMISATION = {"cpu_noise": ["-O3"], "cpu_rules": ["-O2"], "cpu_stream": ["-O3"]}

# The noise's chains are longer than a processor's scheduler is deep. Scheduling before the allocation of registers,
# which g++ leaves off on x86, brings the normals from 1.08 to 0.95 ns each on one thread (AVX2, AMD EPYC).
SCHEDULING = ["-fschedule-insns", "-fsched-pressure"]

# Bit-identical results need every multiplication and addition rounded on its own: no contraction, no fast-math.
FLAGS = ["-O2", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"]


def flags_of(source: str) -> list[str]:
    """The flags that one source needs beyond FLAGS, from its name."""
    part, _, instruction_set = Path(source).stem.rpartition("_")
    portable = INSTRUCTION_SETS["baseline"]
    return OPTIMISATION.get(part, OPTIMISATION.get(Path(source).stem, [])) + INSTRUCTION_SETS.get(
        instruction_set, portable
    )


class BuildKernels(build_ext):
    """Compiles each source with its instruction set's flags, and records why where that fails."""

    def run(self):
        problem = ""
        if os.environ.get("DEEPRELAX_CPU") == "0":
            self.extensions = []
            problem = "switched off by DEEPRELAX_CPU=0"
        try:
            super().run()
        except Exception as error:  # a missing or broken compiler must not stop the installation
            if os.environ.get("DEEPRELAX_CPU") == "1":
                raise
            problem = f"{type(error).__name__}: {error}"
            print(f"deeprelax: the CPU kernels were not built ({problem}); 'eager' will be used", file=sys.stderr)
        package = Path(__file__).parent if self.inplace or self.editable_mode else Path(self.build_lib)
        info = package / "deeprelax" / "_build_info.py"
        info.parent.mkdir(parents=True, exist_ok=True)
        info.write_text(f'"""Written by setup.py."""\n\nCPU_PROBLEM = {problem!r}\n')

    def build_extension(self, ext):
        compile_all = self.compiler.compile
        scheduling = SCHEDULING if all(has_flag(self.compiler, flag) for flag in SCHEDULING) else []

        def compile_each(sources, extra_postargs=None, **kwargs):
            def compile_one(source):
                flags = [*(extra_postargs or []), *flags_of(source)]
                if "cpu_noise" in source:
                    flags += scheduling
                return compile_all([source], extra_postargs=flags, **kwargs)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [obj for objects in pool.map(compile_one, sources) for obj in objects]

        self.compiler.compile = compile_each
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all


def cpu_extension() -> Pybind11Extension:
    sources = ["cpu_module.cpp", "cpu_stream.cpp"]
    sources += [f"cpu_{part}_{name}.cpp" for name in INSTRUCTION_SETS for part in ("rules", "noise")]
    return Pybind11Extension(
        "deeprelax._cpu",
        [f"csrc/{name}" for name in sources],
        cxx_std=17,
        extra_compile_args=FLAGS,
        depends=sorted(str(p) for p in Path("csrc").glob("*.h")),
    )


setup(ext_modules=[cpu_extension()], cmdclass={"build_ext": BuildKernels})
