"""Builds the native kernels; everything else about the package stands in pyproject.toml.

Without a C++ compiler the package installs all the same: the reason is written to deeprelax/_build_info.py, where
``deeprelax doctor`` finds it, and the optimizers run on the ``eager`` backend.
"""

import os
import platform
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")

# One source per instruction set, compiled with its flags; csrc/cpu_module.cpp chooses among them at run time.
INSTRUCTION_SETS = {
    "cpu_baseline.cpp": [],
    "cpu_avx2.cpp": ["-mavx2", "-mf16c"],
    "cpu_avx512.cpp": ["-mavx512f", "-mf16c"],
}
if not X86:
    INSTRUCTION_SETS = {"cpu_baseline.cpp": []}

# Bit-identical results need every multiplication and addition rounded on its own: no contraction, no fast-math.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"]


class BuildKernels(build_ext):
    """Compiles each source with its instruction set's flags, and records why where that fails."""

    def run(self):
        problem = ""
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

        def compile_each(sources, extra_postargs=None, **kwargs):
            objects = []
            for source in sources:
                flags = [*(extra_postargs or []), *INSTRUCTION_SETS.get(Path(source).name, [])]
                objects += compile_all([source], extra_postargs=flags, **kwargs)
            return objects

        self.compiler.compile = compile_each
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all


def built_in_the_project() -> bool:
    return os.environ.get("DEEPRELAX_CPU", "") != "0"


extensions = (
    [
        Pybind11Extension(
            "deeprelax._cpu",
            ["csrc/cpu_module.cpp", *(f"csrc/{name}" for name in INSTRUCTION_SETS)],
            cxx_std=17,
            extra_compile_args=FLAGS,
            depends=sorted(str(p) for p in Path("csrc").glob("*.h")),
        )
    ]
    if built_in_the_project()
    else []
)

setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
