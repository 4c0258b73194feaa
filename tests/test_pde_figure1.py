"""``deeprelax figure1``: the files, the numbers behind them, and what stays out of ``import deeprelax``."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deeprelax.cli import main
from deeprelax.pde import figure1


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(main, ["figure1", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figure1")
    run("--out", out, "--animate")
    return out


@pytest.fixture(scope="module")
def numbers(drawn: Path) -> dict:
    return json.loads((drawn / "figure1.json").read_text())


def test_it_writes_png_svg_and_json_and_a_gif_that_moves(drawn: Path) -> None:
    assert sorted(p.name for p in drawn.iterdir()) == ["figure1.gif", "figure1.json", "figure1.png", "figure1.svg"]
    assert Image.open(drawn / "figure1.png").size[0] > 1000
    assert (drawn / "figure1.svg").read_text().rstrip().endswith("</svg>")
    gif = Image.open(drawn / "figure1.gif")
    assert gif.n_frames == figure1.FRAMES
    first = np.asarray(gif.convert("L"), dtype=int)
    gif.seek(gif.n_frames - 1)
    assert np.abs(np.asarray(gif.convert("L"), dtype=int) - first).max() > 100


def test_the_curves_are_the_smoothings(numbers: dict) -> None:
    loss, smooth, sharp = (np.asarray(numbers["curves"][k]) for k in ("loss", "viscous", "non_viscous"))
    assert np.all(sharp <= loss + 1e-6)
    assert np.all(sharp <= smooth + 1e-6)
    # First order: slopes of up to 4 times the spacing of 0.012.
    assert max(numbers["check"].values()) < 0.05
    assert numbers["minima"]["non_viscous"] == pytest.approx(numbers["minima"]["loss"], abs=0.0123)


def test_the_densities_say_what_the_papers_caption_says(numbers: dict) -> None:
    mean = numbers["mean_loss"]
    assert mean["on_viscous"] < mean["on_non_viscous"] < mean["sgd"] < mean["initial"]
    x = np.asarray(numbers["x"])
    peak = {key: x[int(np.argmax(d))] for key, d in numbers["densities"].items()}
    assert peak["on_viscous"] == pytest.approx(numbers["minima"]["loss"], abs=0.1)
    assert peak["sgd"] < -1.5  # where it began
    assert -1 < peak["on_non_viscous"] < 0.5  # the next minimum: slightly sub-optimal
    for key, density in numbers["densities"].items():
        assert min(density) >= 0
        assert numbers["mass"][key] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", ["double-well", "tilted-well"])
def test_other_losses_and_numbers_can_be_asked_for(tmp_path: Path, name: str) -> None:
    run("--out", tmp_path, "--function", name, "--time", 0.4, "--beta", 4, "--temperature", 0.2)
    settings = json.loads((tmp_path / "figure1.json").read_text())["settings"]
    assert (settings["function"], settings["time"], settings["beta"], settings["temperature"]) == (name, 0.4, 4, 0.2)
    assert not (tmp_path / "figure1.gif").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--function", "parabola"], "no loss 'parabola'; there are rugged, double-well, tilted-well"),
        (["--time", "0"], "time is 0.0"),
        (["--beta", "-1"], "beta is -1.0"),
        (["--temperature", "0"], "temperature is 0.0"),
        (["--temperature", "50"], "does not hold the density's mass"),
    ],
)
def test_bad_input_is_refused_by_name_and_writes_nothing(arguments: list[str], named: str, tmp_path: Path) -> None:
    assert named in " ".join(run("--out", tmp_path / "new", *arguments, code=1).output.split())
    assert not (tmp_path / "new").exists()


def test_importing_deeprelax_imports_neither_scipy_nor_the_laboratory() -> None:
    program = "import sys, deeprelax, deeprelax.cli; print([m for m in ('scipy', 'deeprelax.pde') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
