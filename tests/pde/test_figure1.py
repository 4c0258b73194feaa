"""``deeprelax figure1``: the files, and the numbers behind them."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import test_cli
from PIL import Image

from deeprelax.pde import figure1

run = functools.partial(test_cli.run, "figure1")


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


def test_other_losses_and_numbers_can_be_asked_for(tmp_path: Path) -> None:
    run("--out", tmp_path, "--function", "tilted-well", "--time", 0.4, "--beta", 4, "--temperature", 0.2)
    settings = json.loads((tmp_path / "figure1.json").read_text())["settings"]
    asked = {"function": "tilted-well", "time": 0.4, "beta": 4, "temperature": 0.2}
    assert asked.items() <= settings.items()
    assert not (tmp_path / "figure1.gif").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--function", "parabola"], 1, "no loss 'parabola'; there are rugged, double-well, tilted-well"),
        (["--time", "0"], 2, "'--time': 0.0 is not in the range x>0"),
        (["--beta", "0"], 2, "'--beta': 0.0 is not in the range x>0"),
        (["--temperature", "0"], 2, "'--temperature': 0.0 is not in the range x>0"),
        (["--temperature", "1e6"], 1, "temperature 1e+06 spread 0.15(x − 1)²"),
    ],
)
def test_bad_input_is_refused_by_name_and_writes_nothing(
    arguments: list[str], code: int, named: str, tmp_path: Path
) -> None:
    assert named in " ".join(run("--out", tmp_path / "new", *arguments, code=code).output.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["time", "beta", "temperature"])
def test_a_number_of_zero_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; a finite number > 0 is needed"):
        figure1.compute(**{name: 0})


@pytest.mark.parametrize("option", [("--beta", 1e9), ("--time", 1e-6)])
def test_what_the_grid_cannot_check_is_drawn_and_left_unchecked(option: tuple[str, float], tmp_path: Path) -> None:
    run("--out", tmp_path, *option)
    check = json.loads((tmp_path / "figure1.json").read_text())["check"]
    assert check["viscous"] is None
    assert check["non_viscous"] < 0.05


@pytest.mark.parametrize(
    "changes",
    [{"beta": 0.01}, {"time": 50.0}, {"name": "double-well", "temperature": 3.0}, {"temperature": 50.0}],
    ids=str,
)
def test_the_grid_is_as_wide_as_the_options_need(changes: dict) -> None:
    options = {"name": "rugged", "time": 0.6, "beta": 2.0, "temperature": 0.1}
    usual = figure1._problem(**options)[1] if "name" not in changes else None
    loss, grid = figure1._problem(**{**options, **changes})
    assert grid.axes[0][0] < loss.low - 1
    assert grid.axes[0][-1] > loss.high + 1
    if usual is not None:
        assert usual.shape == (901,)
        assert grid.spacing[0] == pytest.approx(usual.spacing[0], rel=1e-3)


def test_numbers_on_a_wider_grid_are_as_accurate() -> None:
    numbers = figure1.compute("double-well", temperature=1.5)
    assert max(numbers["check"].values()) < 0.05
    assert numbers["mass"]["sgd"] == pytest.approx(1, abs=1e-9)
