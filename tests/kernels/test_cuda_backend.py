"""The CUDA backend without a GPU: how it and the CPU kernels are built, what it says, what its structures are."""

import contextlib
import os
import subprocess
import sys
import types
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deeprelax
from deeprelax import kernels
from deeprelax.kernels import ClockMemory, CycleState, Hyper, Table, Tick, cuda
from deeprelax.kernels.abi import CudaLaunch
from deeprelax.kernels.cuda import Cuda
from deeprelax.kernels.scalars import HJ

ROOT = Path(__file__).parent.parent.parent
HYPER = Hyper(inner_steps=4, keep=1.0, alpha=0.75)
SCALARS = HJ.scalars(HYPER, CycleState(0.1, 0.0, 0.1, 0.1, step=0, phase=0, cycle_steps=4, fresh=True, seed=0))


@pytest.fixture
def module() -> Any:
    return pytest.importorskip("deeprelax._cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_module_loads_without_a_driver_and_says_what_is_missing(module: Any) -> None:
    assert module.problem()
    reason = kernels.why_not("cuda")
    assert reason.startswith("looked for a GPU")
    assert module.problem() in reason
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot be used: looked for a GPU"):
        kernels.get("cuda", torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_launch_that_fails_names_the_kernel_its_sizes_and_the_error(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Cuda(module)
    monkeypatch.setattr(backend, "index", lambda device: 0)
    monkeypatch.setattr(backend, "stream", lambda index: 0)
    weight = torch.zeros(5000)
    table = Table([weight], [0])
    buffers = {"x": table.new_buffer(), "p": table.new_buffer()}
    expected = r"hj<float32>, 2 chunks of 4096 elements or fewer on cuda:0: .+ \(cudaError\w+\)"
    with pytest.raises(RuntimeError, match=expected):
        backend.bind(HJ, table, buffers).run(SCALARS, [weight], array("q", [weight.data_ptr()]))


class Recorder:
    """Stands in for the compiled module: notes each call with the CUDA device that is current in it."""

    tensors = 2

    def __init__(self) -> None:
        self.current = 0
        self.calls: list[tuple[str, int, Any]] = []

    def chunk(self, dtype: int) -> int:
        return 4096

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, self.current, arguments))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The backend's view of a machine with two: device 0 is current, and each has its own current stream."""
    recorder = Recorder()

    def upload(table: Table, chunk: int) -> Any:
        recorder.upload()
        chunks, counts = torch.zeros(3, 4, dtype=torch.int64), torch.tensor([3])
        return types.SimpleNamespace(tensors=torch.zeros(1, dtype=torch.int64), chunks=chunks, counts=counts)

    @contextlib.contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        before, recorder.current = recorder.current, device.index
        yield
        recorder.current = before

    monkeypatch.setattr(cuda, "DeviceTable", upload)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: recorder.current)
    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 7000 + index, raising=False)
    return recorder


def table_on(device: str) -> Any:
    """A table that says that it lies there."""
    table: Any = Table([torch.zeros(5000)], [0])
    table.device = torch.device(device)
    return table


@pytest.mark.parametrize(("device", "there"), [("cuda:0", 0), ("cuda:1", 1), ("cuda", 0)])
def test_a_launch_goes_to_the_current_stream_of_its_tensors_device(two_gpus: Recorder, device: str, there: int) -> None:
    """And that device is the current one while tables are uploaded and kernels launched, as before afterwards."""
    Cuda(two_gpus).bind(HJ, table_on(device), {}).run(SCALARS, [None], array("q", [0]))
    calls = [(name, current) for name, current, _ in two_gpus.calls]
    assert calls == [("upload", there), ("run", there)]
    launch = CudaLaunch.from_address(two_gpus.calls[-1][2][0])
    assert (launch.device, launch.emulated, two_gpus.calls[-1][2][-1]) == (there, 0, 7000 + there)
    assert two_gpus.current == 0


def test_a_tick_goes_to_the_current_stream_of_its_clocks_device(two_gpus: Recorder) -> None:
    memory = ClockMemory(torch.device("cpu"))
    words = types.SimpleNamespace(device=torch.device("cuda:1"), data_ptr=memory.words.data_ptr)
    on_device: Any = types.SimpleNamespace(words=words, scalars=memory.scalars)
    Cuda(two_gpus).tick(Tick(HJ, HYPER, on_device, torch.zeros(()), None, None, None))
    ((name, current, arguments),) = two_gpus.calls
    assert (name, current, arguments[0], arguments[-3:]) == ("tick", 1, HJ.number, (1, False, 7001))


def test_kernels_that_a_capture_may_launch_are_loaded_once_before_it(two_gpus: Recorder) -> None:
    backend, table = Cuda(two_gpus), table_on("cuda:1")
    backend.bind(HJ, table, {}, False)
    assert [name for name, *_ in two_gpus.calls] == ["upload"]
    for _ in range(2):
        backend.bind(HJ, table, {}, True)
    loads = [call for call in two_gpus.calls if call[0] == "load"]
    assert loads == [("load", 1, (1, 1))]  # float32 is number 1
    backend.bind(HJ, table_on("cuda:0"), {}, True)
    assert two_gpus.calls[-1] == ("load", 0, (1, 0))


def test_a_capturable_optimizer_loads_its_kernels_when_it_is_made(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first step may be a captured one."""
    loaded = []
    monkeypatch.setattr(Cuda, "load", lambda self, *arguments: loaded.append(arguments))
    backend = Cuda(module, emulated=True)
    deeprelax.HJ([torch.nn.Parameter(torch.zeros(8))], lr=0.1, capturable=True, backend=backend)
    assert (torch.float32, torch.device("cpu")) in loaded


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_kernels_that_cannot_be_loaded_are_named_with_the_error(module: Any) -> None:
    with pytest.raises(RuntimeError, match=r"loading the kernels for bfloat16 on cuda:0: .+ \(cudaError\w+\)"):
        module.load(2, 0)


def test_an_emulated_kernel_is_not_offered_as_a_backend(module: Any) -> None:
    assert torch.cuda.is_available() or "cuda" not in kernels.available()


# Building.


def build(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """``setup.py build_ext``, by default without the CPU kernels; what it printed and wrote to _build_info.py."""
    library = tmp_path / "lib"
    folders = f"--build-lib={library}", f"--build-temp={tmp_path}"
    inherited = {k: v for k, v in os.environ.items() if k != "CUDA_HOME" and not k.startswith("DEEPRELAX_")}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        env={**inherited, "DEEPRELAX_CPU": "0", "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    info: dict[str, str] = {}
    written = library / "deeprelax" / "_build_info.py"
    if written.exists():
        exec(written.read_text(), info)
    return done, info


def false_nvcc(tmp_path: Path, known: str = "compute_80 compute_90 compute_100 compute_120") -> Path:
    """A CUDA_HOME whose compiler writes down what it is asked for, and makes an empty file of it."""
    compiler = tmp_path / "cuda" / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && echo {known} && exit\n'
        f'echo "$@" >> "{tmp_path}/asked"\nwhile [ $# -gt 1 ]; do shift; done\ntouch "$1"\n'
    )
    compiler.chmod(0o755)
    return tmp_path / "cuda"


def test_no_flag_of_the_user_lets_the_whole_process_flush_denormals(tmp_path: Path) -> None:
    """While linking, g++ takes any of these to mean that denormals are zero in torch, too."""
    compiler = tmp_path / "g++"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\nwhile [ "$1" != -o ]; do shift; done\ntouch "$2"\n'
    )
    compiler.chmod(0o755)
    flags = "-Ofast -ffast-math -funsafe-math-optimizations -mdaz-ftz -DOURS"
    names = dict.fromkeys(("CC", "CXX"), str(compiler)) | dict.fromkeys(("CFLAGS", "CXXFLAGS", "LDFLAGS"), flags)
    done, _ = build(tmp_path, DEEPRELAX_CPU="1", DEEPRELAX_CUDA="0", **names)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    (link,) = [line for line in asked if " -shared " in line]
    assert "-DOURS" in link
    assert not [line for line in asked if set(flags.split()[:-1]) & set(line.split())]


def test_without_nvcc_the_package_installs_and_the_reason_is_kept(tmp_path: Path) -> None:
    done, info = build(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no nvcc: looked in CUDA_HOME and on the PATH" in info["CUDA_PROBLEM"]
    assert "DEEPRELAX_CPU=0" in info["CPU_PROBLEM"]


def test_requesting_cuda_without_nvcc_fails_the_installation(tmp_path: Path) -> None:
    done, _ = build(tmp_path, DEEPRELAX_CUDA="1")
    assert done.returncode != 0
    assert "no nvcc" in done.stderr


@pytest.mark.parametrize(
    ("wish", "known", "expected"),
    [
        (None, "compute_75 compute_80 compute_90 compute_100 compute_120", ["80", "90", "100", "120"]),
        (None, "compute_50 compute_80 compute_90", ["80", "90"]),  # nvcc 12.6
        (None, "", ["80", "90", "100", "120"]),
        ("90", "compute_80 compute_90", ["90"]),
        ("100;90a;80", "compute_80 compute_90", ["80", "90a", "100"]),
    ],
)
def test_machine_code_for_each_architecture_and_ptx_for_the_newest(
    tmp_path: Path, wish: str | None, known: str, expected: list[str]
) -> None:
    environment = {"DEEPRELAX_CUDA_ARCHS": wish} if wish else {}
    done, info = build(tmp_path, CUDA_HOME=str(false_nvcc(tmp_path, known)), DEEPRELAX_CUDA="1", **environment)
    assert done.returncode == 0, done.stderr
    assert info["CUDA_PROBLEM"] == ""
    asked = (tmp_path / "asked").read_text().splitlines()
    for rule in ("EntropySGD", "HJ", "Heat"):
        (line,) = [line for line in asked if f"-DDR_RULE={rule} " in line]
        assert "--fmad=false" in line
        codes = [word.split(",code=")[1] for word in line.split() if word.startswith("-gencode")]
        assert codes == [f"sm_{a}" for a in expected] + [f"compute_{expected[-1]}"]


def test_on_a_machine_with_a_gpu_only_its_architecture_is_built(tmp_path: Path) -> None:
    home, tools = false_nvcc(tmp_path), tmp_path / "tools"
    tools.mkdir()
    command = tools / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf '9.0\\n9.0\\n8.0\\n'\n")
    command.chmod(0o755)
    build(tmp_path, CUDA_HOME=str(home), PATH=f"{tools}:/usr/bin:/bin")
    assert "code=sm_80" in (tmp_path / "asked").read_text()
    assert "code=compute_90" in (tmp_path / "asked").read_text()
    assert "sm_100" not in (tmp_path / "asked").read_text()


def test_a_compiler_too_old_for_all_of_them_is_named(tmp_path: Path) -> None:
    home = false_nvcc(tmp_path, "compute_50 compute_70")
    done, info = build(tmp_path, CUDA_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert f"{home}/bin/nvcc knows none of sm_80, sm_90" in info["CUDA_PROBLEM"]


# Several GPUs.


def test_a_gpu_that_the_kernels_do_not_serve_leaves_the_others_to_them(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An sm_75 that drives the screen, next to an sm_90."""
    monkeypatch.setattr(module, "problem", lambda: "")
    monkeypatch.setattr(module, "architectures", "80;90;100;120")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(kernels, "_why_no_code", kernels._why_no_code.__wrapped__)  # which remembers

    def first(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5) if index else capability)

    first(9, 0)
    assert kernels.why_not("cuda") == ""
    names = [kernels.get("auto", torch.device(device)).name for device in ("cuda", "cuda:0", "cuda:1")]
    assert names == ["cuda", "cuda", "triton"]
    with pytest.raises(RuntimeError, match=r"GPU 1 \(sm_75\).*DEEPRELAX_CUDA_ARCHS=75"):
        kernels.get("cuda", torch.device("cuda:1"))
    first(7, 0)
    assert "GPU 0 (sm_70)" in kernels.why_not("cuda")
    first(13, 0)  # newer than all: by PTX
    assert kernels.why_not("cuda") == ""


def test_only_what_changed_is_compiled_again(tmp_path: Path) -> None:
    home = str(false_nvcc(tmp_path))
    build(tmp_path, CUDA_HOME=home)
    first = len((tmp_path / "asked").read_text().splitlines())
    build(tmp_path, CUDA_HOME=home)
    assert len((tmp_path / "asked").read_text().splitlines()) == first + 1  # linked again
    build(tmp_path, CUDA_HOME=home, DEEPRELAX_CUDA_ARCHS="90")
    assert len((tmp_path / "asked").read_text().splitlines()) == 2 * first + 1


def test_cuda_can_be_left_out_and_no_earlier_build_is_installed(tmp_path: Path) -> None:
    home = str(false_nvcc(tmp_path))
    build(tmp_path, CUDA_HOME=home)
    assert list(tmp_path.glob("lib/deeprelax/_cuda*.so"))
    (tmp_path / "asked").unlink()
    done, info = build(tmp_path, CUDA_HOME=home, DEEPRELAX_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "DEEPRELAX_CUDA=0" in info["CUDA_PROBLEM"]
    assert not (tmp_path / "asked").exists()
    assert not list(tmp_path.glob("lib/deeprelax/_cuda*.so"))
