"""Builds the native kernels; everything else about the package is in pyproject.toml.

Without a C++ compiler or without nvcc the package installs all the same: the reasons are written to
deeprelax/_build_info.py, where ``deeprelax doctor`` finds them, and the optimizers run on the backends that are left.
DEEPRELAX_CPU and DEEPRELAX_CUDA: 0 leaves the kernels out, 1 makes a failure an error.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from pybind11.setup_helpers import Pybind11Extension, has_flag
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")

# Sources that are compiled once per instruction set, with its flags; csrc/cpu_module.cpp chooses among them.
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
OPTIMISATION = {"cpu_noise": ["-O3"], "cpu_yardstick": ["-O3"]}

# The noise's chains are longer than a processor's scheduler is deep. Scheduling before the allocation of registers,
# which g++ leaves off on x86, brings the normals from 1.08 to 0.95 ns each on one thread (AVX2, AMD EPYC).
SCHEDULING = ["-fschedule-insns", "-fsched-pressure"]

# Bit-identical results need every multiplication and addition rounded on its own: no contraction, no fast-math.
FLAGS = ["-O2", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"]

# What a user's CFLAGS and LDFLAGS must not bring along: while linking, g++ takes these to mean that denormals are zero
# in the whole process, torch included (crtfastmath.o).
FAST_MATH = {"-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-mdaz-ftz"}

# The update rules, (type, header) each, of csrc/abi.h.
RULES = re.findall(r"\bRULE\((\w+), (\w+)\)", Path("csrc/abi.h").read_text())


def rule_flags(rule: str, header: str) -> list[str]:
    """The flags that compile csrc/cpu_rule.cpp and csrc/cuda_rule.cu for one rule."""
    return [f"-DDR_RULE={rule}", f'-DDR_HEADER="{header}.h"']


def cpu_units(source: str) -> dict[str, list[str]]:
    """What a source is compiled to: the name of each object, and its flags beyond FLAGS."""
    part = Path(source).stem
    flags = OPTIMISATION.get(part, [])
    if part == "cpu_noise":
        return {f"noise_{name}": flags + march for name, march in INSTRUCTION_SETS.items()}
    if part == "cpu_rule":
        return {
            f"{rule[1]}_{name}": flags + march + rule_flags(*rule)
            for name, march in INSTRUCTION_SETS.items()
            for rule in RULES
        }
    return {part: flags + INSTRUCTION_SETS["baseline"]}


def cuda_units(source: str) -> dict[str, list[str]]:
    """The same for a CUDA source, beyond NVCC_FLAGS."""
    if Path(source).stem == "cuda_rule":
        return {header: rule_flags(rule, header) for rule, header in RULES}
    return {Path(source).stem: []}


def without_fast_math(compiler) -> None:
    """Remove FAST_MATH from the commands that a distutils compiler runs."""
    for name, command in vars(compiler).items():
        if isinstance(command, list) and all(isinstance(word, str) for word in command):
            setattr(compiler, name, [word for word in command if word not in FAST_MATH])


# Machine code for the GPUs that are here, else for these, and PTX of the newest for what comes after.
# DEEPRELAX_CUDA_ARCHS="90;100" names others.
CUDA_ARCHITECTURES = "80;90;100;120"
# -O3 is nvcc's default for the GPU. The option would also be for the host's copy of the kernels, which only tests run:
# g++ would spend more time on it than all other work takes.
NVCC_FLAGS = [
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "--fmad=false",
    "-Xcompiler=-O0,-fPIC,-fvisibility=hidden,-ffp-contract=off",
]


def known_to(compiler: str, architectures: str) -> list[str]:
    """Those of the architectures that this nvcc knows; all of them if it does not say."""
    listed = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    known = [a for a in architectures.split(";") if f"compute_{a}" in listed or not listed]
    if not known:
        raise RuntimeError(f"{compiler} knows none of sm_{architectures.replace(';', ', sm_')}: it has {listed}")
    return known


def present() -> str:
    """The architectures of this machine's GPUs, as "90;100"; empty without a GPU."""
    try:
        asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ";".join(sorted({f"{major}{minor}" for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", said, re.MULTILINE)}))


def nvcc() -> str | None:
    """The CUDA compiler: of CUDA_HOME, else on the PATH."""
    home = os.environ.get("CUDA_HOME")
    found = Path(home, "bin", "nvcc") if home else None
    return str(found) if found and found.is_file() else shutil.which("nvcc")


class BuildKernels(build_ext):
    """Builds each extension by itself, and records why where that fails."""

    def run(self):
        self.problems = {"CPU": "", "CUDA": ""}
        super().run()
        package = Path(__file__).parent if self.inplace or self.editable_mode else Path(self.build_lib)
        info = package / "deeprelax" / "_build_info.py"
        info.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name}_PROBLEM = {problem!r}\n" for name, problem in self.problems.items()]
        info.write_text('"""Written by setup.py."""\n\n' + "".join(lines))

    def build_extensions(self):
        for ext in list(self.extensions):
            name = ext.name.rpartition("_")[2].upper()
            wish = os.environ.get(f"DEEPRELAX_{name}")
            try:
                if wish == "0":
                    raise RuntimeError(f"switched off by DEEPRELAX_{name}=0")
                if name == "CUDA":
                    self.build_cuda(ext)
                else:
                    self.build_cpu(ext)
            except Exception as error:  # a missing or broken compiler must not stop the installation
                self.remove_earlier(ext)
                if wish == "1":
                    raise
                self.problems[name] = f"{type(error).__name__}: {error}"
                self.extensions.remove(ext)
                print(f"deeprelax: no {name} kernels ({self.problems[name]})", file=sys.stderr)

    def remove_earlier(self, ext):
        """Remove the results of an earlier build, which would be installed in place of what could not be built."""
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        Path(self.build_lib, self.get_ext_filename(ext.name)).unlink(missing_ok=True)

    def build_cpu(self, ext):
        without_fast_math(self.compiler)
        compile_all = self.compiler.compile
        scheduling = SCHEDULING if all(has_flag(self.compiler, flag) for flag in SCHEDULING) else []

        def compile_each(sources, output_dir=None, extra_postargs=None, **kwargs):
            def compile_one(source, name, flags):
                flags = [*(extra_postargs or []), *flags, *(scheduling if "noise" in name else [])]
                return compile_all([source], output_dir=f"{output_dir}/{name}", extra_postargs=flags, **kwargs)

            every = [(source, name, flags) for source in sources for name, flags in cpu_units(source).items()]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [obj for objects in pool.map(lambda unit: compile_one(*unit), every) for obj in objects]

        self.compiler.compile = compile_each
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_all

    def build_cuda(self, ext):
        """By nvcc alone: the CUDA runtime is linked statically, so that the module loads where there is no driver."""
        compiler = nvcc()
        if compiler is None:
            raise RuntimeError("no nvcc: looked in CUDA_HOME and on the PATH")
        wish = os.environ.get("DEEPRELAX_CUDA_ARCHS")
        architectures = wish.split(";") if wish else known_to(compiler, present() or CUDA_ARCHITECTURES)
        architectures.sort(key=lambda a: int(a.rstrip("af")))  # the newest last: its PTX is for what comes after
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
        includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        define = f'-DDR_CUDA_ARCHITECTURES="{";".join(architectures)}"'
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        newest = max(Path(p).stat().st_mtime for p in ext.depends)

        def compile_one(source, name, flags):
            device = targets[:1] if "module" in source else targets  # the module has no device code
            command = [compiler, *NVCC_FLAGS, *flags, *device, *includes, define, "-c", source]
            made, stamp = folder / f"{name}.o", folder / f"{name}.command"
            fresh = made.exists() and made.stat().st_mtime > max(newest, Path(source).stat().st_mtime)
            if not fresh or not stamp.exists() or stamp.read_text() != str(command):
                call([*command, "-o", str(made)])
                stamp.write_text(str(command))
            return str(made)

        every = [(source, name, flags) for source in ext.sources for name, flags in cuda_units(source).items()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: compile_one(*unit), every))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        call([compiler, "-shared", "-cudart=static", *objects, "-o", str(output)])


def call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


HEADERS = sorted(str(p) for p in Path("csrc").glob("*.h"))


def cpu_extension() -> Pybind11Extension:
    return Pybind11Extension(
        "deeprelax._cpu",
        [f"csrc/cpu_{part}.cpp" for part in ("rule", "noise", "module", "yardstick")],
        cxx_std=17,
        extra_compile_args=FLAGS,
        depends=HEADERS,
    )


def cuda_extension() -> Extension:
    return Extension("deeprelax._cuda", ["csrc/cuda_rule.cu", "csrc/cuda_module.cu"], depends=HEADERS)


def long_description() -> str:
    """README.md for a package index, which has no other file: relative pictures go, relative links leave their text."""
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n+", "", text)
    return re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    ext_modules=[cpu_extension(), cuda_extension()],
    cmdclass={"build_ext": BuildKernels},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
