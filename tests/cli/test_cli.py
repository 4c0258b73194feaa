"""The command line does what its help says, and refuses bad input by name."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import json
import re
import struct
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from deeprelax import kernels
from deeprelax.cli.common import Number
from deeprelax.cli.main import main
from deeprelax.cli.reproduce import reproduce
from deeprelax.experiments.compare import runner
from deeprelax.experiments.data.cifar import cifar10_arrays
from deeprelax.experiments.data.datasets import MNIST_FILES, PUBLISHED, DataError, load, mnist_arrays
from deeprelax.experiments.recipes import PLANS


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object) -> str:
    """What a command that fails prints, in one line."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


def write_mnist(folder: Path, train: int = 64, test: int = 20, gzipped: bool = False) -> Path:
    """A small data set in MNIST's layout; returns the folder of its files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name, count in zip(MNIST_FILES, (train, train, test, test)):
        if "idx3" in name:
            values = torch.randint(256, (count * 784,), generator=generator)
            header = struct.pack(">4I", 0x803, count, 28, 28)
        else:
            values = torch.arange(count) % 10
            header = struct.pack(">2I", 0x801, count)
        content = header + bytes(values.tolist())
        if gzipped:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    return raw


def test_train_prints_a_table_and_writes_table_picture_and_numbers(tmp_path: Path) -> None:
    output = run("train", "--epochs", 2, "--seeds", 2, "--out", tmp_path / "new").output
    assert sum("% error after" in line for line in output.splitlines()) == 4 * 2  # without a terminal, a line a run
    assert len(output.splitlines()) < 40
    for kind in ("txt", "png", "json"):
        assert str(tmp_path / "new" / f"digits.{kind}") in output
    for title in ("SGD", "Heat", "Entropy-SGD", "HJ"):
        assert title in (tmp_path / "new" / "digits.txt").read_text()
    assert (tmp_path / "new" / "digits.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "new" / "digits.json").read_text())
    assert {(r["optimizer"], r["seed"]) for r in content["runs"]} == {
        (o, s) for o in ("sgd", "heat", "entropy-sgd", "hj") for s in (0, 1)
    }
    assert all(len(r["validation_error"]) == len(r["training_loss"]) == 2 for r in content["runs"])
    assert all(r["step_ms"] > 0 for r in content["runs"])
    assert content["machine"]["threads"] == 1
    assert content["machine"]["versions"]["torch"] == torch.__version__


def test_options_reach_the_optimizers_that_take_them(tmp_path: Path) -> None:
    run("train", "--optimizer", "hj", "--optimizer", "sgd", "--gamma", 0.3, "--lr", 0.2, "--inner-steps", 3,
        "--batch-size", 64, "--epochs", 1, "--seeds", 1, "--backend", "eager", "--out", tmp_path)  # fmt: skip
    content = json.loads((tmp_path / "digits.json").read_text())
    hj, sgd = (run["settings"] for run in content["runs"])
    assert (hj["options"]["gamma"], hj["options"]["lr"], hj["options"]["inner_steps"]) == (0.3, 0.2, 3)
    assert sgd["options"]["lr"] == 0.2
    assert "gamma" not in sgd["options"]
    assert hj["batch_size"] == 64


def test_train_leaves_the_number_of_threads_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    run("train", "--optimizer", "sgd", "--epochs", 1, "--seeds", 1, "--threads", before + 1, "--out", tmp_path)
    assert torch.get_num_threads() == before


def test_the_help_of_train_shows_examples_and_the_recipes() -> None:
    output = run("train", "--help").output
    assert "deeprelax train --dataset mnist --device cuda" in output
    assert f"{PLANS['digits'].epochs} for digits" in " ".join(output.split())
    assert "entropy-sgd" in output.partition("Default settings")[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "hj"])
def test_a_backend_that_is_not_here_is_named_before_the_runs(optimizer: str, tmp_path: Path) -> None:
    output = run("train", "--optimizer", optimizer, "--backend", "triton", "--out", tmp_path, code=1).output
    assert output.startswith("Error: backend 'triton' cannot be used: ")


def test_doctor_names_versions_and_every_backend() -> None:
    output = run("doctor").output
    assert torch.__version__ in output
    for name in kernels.NAMES:
        assert f"backend {name}" in output
        assert kernels.why_not(name) in output or "no GPU found" in output


def test_doctor_names_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert "torchvision is not a build for this torch" in run("doctor").output


def test_doctor_needs_only_torch_and_click(monkeypatch: pytest.MonkeyPatch) -> None:
    without_extras(monkeypatch)
    assert "instruction set" in run("doctor").output


@pytest.mark.parametrize("command", ["train", "compare"])
def test_without_the_extras_a_command_says_what_to_install(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "perform", lambda *_: [])  # the comparison's first need is its picture's
    without_extras(monkeypatch)
    output = run(command, "--out", tmp_path, code=1).output
    assert f"pip install 'torch=={torch.__version__}' '.[experiments]'" in output  # pip keeps the torch that it names


def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"rich", "matplotlib", "sklearn", "torchvision"}
    real = builtins.__import__

    def refuse(name: str, *arguments: object, **keywords: object) -> object:
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **keywords)  # type: ignore[arg-type]

    for name in [
        n for n in sys.modules if n.startswith(("deeprelax.experiments.progress", "deeprelax.experiments.report"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optimizer", "adam"], "'adam' is not one of 'sgd', 'heat', 'entropy-sgd', 'hj'"),
        (["--scoping", "2"], "invalid scoping: 2.0"),
        (["--optimizer", "sgd", "--gamma", "1"], "--gamma has no meaning for sgd"),
        (["--data", "folder"], "--data has no meaning for digits"),
        (["--batch-size", "100000"], "batch size 100000: 2 to 1347 are possible"),
        (["--batch-size", "1" + 400 * "0"], "2 to 1347 are possible"),
        (["--model", "lenet"], "lenet takes images of shape (1, 28, 28)"),
        (["--dataset", "mnist", "--data", "no/such/folder"], "no folder no/such/folder"),
        (["--optimizer", "sgd", "--lr", "1e30", "--epochs", "1"], "sgd diverged"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: list[str], named: str, tmp_path: Path) -> None:
    assert named in refused("train", *arguments, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "2000000000", "1" + 400 * "0"])
def test_an_impossible_number_is_a_usage_error(value: str, tmp_path: Path) -> None:
    commands = [([name], command) for name, command in main.commands.items()]
    commands += [(["reproduce", name], command) for name, command in reproduce.commands.items()]
    refused = 0
    for words, command in commands:
        for option in command.params:
            name, kind = option.opts[0], option.type
            if isinstance(kind, click.types.IntParamType) or (isinstance(kind, Number) and value != "2000000000"):
                if name == "--batch-size" and value.isdigit():  # the images bound it
                    continue
                output = run(*words, "--out", tmp_path, f"{name}={value}", code=2).output
                assert f"Invalid value for '{name}'" in output
                refused += 1
            assert type(kind) not in (click.types.FloatParamType, click.FloatRange, click.types.IntParamType), name
    assert refused > 15


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "abc"}, "'abc'"),
        ({"WORLD_SIZE": "0", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}, "world"),
        ({"WORLD_SIZE": "2"}, "RANK expected"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "abc"}, "'abc'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, "'abc'"),
    ],
)
def test_variables_that_torchrun_did_not_set_are_a_usage_error(
    variables: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    output = " ".join(run("train", "--optimizer", "parle", "--out", tmp_path, code=2).output.split())
    assert "WORLD_SIZE is set for several processes, which torchrun starts: " in output
    assert named in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    assert "torch finds no GPU" in run("train", "--device", "cuda", code=1).output


@pytest.mark.parametrize("gzipped", [False, True])
def test_mnist_is_read_from_torchvisions_layout(tmp_path: Path, gzipped: bool) -> None:
    write_mnist(tmp_path, gzipped=gzipped)
    data = load("mnist", tmp_path)
    assert data.train_inputs.shape == (64, 1, 28, 28)
    assert data.validation_targets.tolist() == [i % 10 for i in range(20)]
    assert data.train_inputs.std().item() == pytest.approx(1, abs=1e-3)


def test_lenet_trains_on_mnist_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    run("train", "--dataset", "mnist", "--data", tmp_path, "--optimizer", "heat", "--batch-size", 16, "--epochs", 2,
        "--seeds", 1, "--threads", 1, "--out", tmp_path / "out")  # fmt: skip
    assert (tmp_path / "out" / "mnist.json").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def spoil_the_start(path: Path) -> None:
    path.write_bytes(b"<html>" + path.read_bytes()[6:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, spoil_the_start, empty, Path.unlink])
@pytest.mark.parametrize("name", MNIST_FILES)
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_damaged_or_missing_file_is_refused_with_its_name(tmp_path: Path, damage, name: str, gzipped: bool) -> None:
    raw = write_mnist(tmp_path, gzipped=gzipped)
    damage(raw / (f"{name}.gz" if gzipped else name))
    output = run("train", "--dataset", "mnist", "--data", tmp_path, code=1).output
    assert name in output
    assert "missing" in output or "damaged" in output


def test_a_flipped_bit_of_the_published_mnist_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_mnist(tmp_path)
    digests = [hashlib.md5((raw / name).read_bytes()).hexdigest() for name in MNIST_FILES]
    for name, digest, count in zip(MNIST_FILES, digests, (64, 64, 20, 20)):
        monkeypatch.setitem(PUBLISHED, name, (count, digest))
    mnist_arrays(tmp_path)
    path = raw / MNIST_FILES[2]
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{MNIST_FILES[2]} is damaged: its MD5 is"):
        mnist_arrays(tmp_path)


@pytest.mark.parametrize("arrays", [mnist_arrays, cifar10_arrays])
def test_a_torchvision_of_another_torch_is_named_where_it_is_needed(
    tmp_path: Path, arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DataError, match=r"is not a build for torch .*operator torchvision::nms does not exist"):
        arrays(tmp_path)


@pytest.mark.parametrize(
    ("number", "spoil", "said"),
    [
        (1, lambda _: struct.pack(">2I", 0x801, 3) + bytes((1, 2, 3)), "3 labels for 64 images"),
        (2, lambda raw: struct.pack(">4I", 0x803, 20, 14, 56) + raw[16:], "images of 14x56, and {0} of 28x28"),
        (0, lambda raw: raw[:16] + bytes([7]) * (64 * 784), "has 64 images in which every pixel is 7"),
        # 2^22 * 2^21 * 2^21 is 0 in 64 bits, and a file of a header alone has as many bytes.
        (
            0,
            lambda _: struct.pack(">4I", 0x803, 2**22, 2**21, 2**21),
            f"is damaged: 16 bytes, and its header (4194304, 2097152, 2097152) asks for {2**64 + 16}",
        ),
    ],
)
def test_files_whose_contents_do_not_fit_are_refused_by_name(number: int, spoil, said: str, tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / MNIST_FILES[number]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(said.format(MNIST_FILES[0]))) as error:
        mnist_arrays(tmp_path)
    assert str(path) in str(error.value)
    assert " ".join(str(error.value).split()) in refused("train", "--dataset", "mnist", "--data", tmp_path)


def test_constant_images_of_cifar_are_refused_with_their_name(tmp_path: Path) -> None:
    labels = np.arange(20) % 10
    images = {name: np.full((20, 32, 32, 3), 7, np.uint8) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "cifar10.npz", **images, y_train=labels, y_test=labels)
    with pytest.raises(ValueError, match=r"cifar10.npz has 20 images in which every pixel is 7"):
        cifar10_arrays(tmp_path)
