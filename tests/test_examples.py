"""The programs of examples/ run as they stand, small."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import pyplot
from test_cli import write_mnist
from test_whitening import write_cifar
from workers import launched

EXAMPLES = Path(__file__).parent.parent / "examples"
RUNS = {
    "digits.py": (["--epochs", "2"], "epoch 2: ", "digits.pt"),
    "mnist.py": (["--data", "data", "--epochs", "2"], "epoch 2: ", "mnist.png"),
    "cifar10_resnet.py": (["--data", "data", "--epochs", "1"], "EntropySGD, epoch 1: ", "cifar10.png"),
    "transformer.py": (["--gradients", "5"], "EntropyAdamW: 5 gradients", None),
    "trainer.py": (["--steps", "3"], "x_z_norm", "tuned/model.safetensors"),
    "lightning_digits.py": (["--epochs", "2"], "digits.ckpt", "digits/metrics.csv"),
    "elastic.py": (["--epochs", "2"], "% at the centre", None),
    "smoothing.py": ([], "local entropy", "smoothing.png"),
}


def program(name: str, arguments: list[str]) -> str:
    """What an example prints. It runs in this process, where torch is loaded and any torchvision can be imported."""
    with pytest.MonkeyPatch.context() as patch, io.StringIO() as said, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return said.getvalue()


def processes(name: str, arguments: list[str]) -> str:
    """What an example prints in two processes that torchrun starts."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_and_reports_its_progress(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said, left = RUNS[name]
    if "--data" in arguments:
        write_mnist(tmp_path / "data", train=640, test=40)
        write_cifar(tmp_path / "data", "npz", train=256, test=32)
    assert said in (processes if name == "elastic.py" else program)(name, arguments)
    assert left is None or (tmp_path / left).stat().st_size > 1000
    pyplot.close("all")


def test_the_sharded_example_resumes_on_another_number_of_processes(tmp_path: Path) -> None:
    arguments = ["--epochs", "2", "--out", str(tmp_path / "saved")]
    begun, resumed = (
        [float(error) for error in re.findall(r": ([0-9.]+) % error at x", printed[0])]
        for printed in (launched(count, EXAMPLES / "fsdp.py", *arguments, folder=tmp_path) for count in (2, 1))
    )
    assert len(begun) == len(resumed) == 2
    assert resumed[0] < begun[-1]  # from the start it would be about 88 % after one epoch


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*RUNS, "fsdp.py"}
