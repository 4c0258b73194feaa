"""Options and checks that several commands share."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import torch

from deeprelax import files, kernels

if TYPE_CHECKING:  # rich comes with the extra only
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])
EXTRAS = {"numpy", "scipy", "sklearn", "matplotlib", "rich", "filelock", "torchvision", "schedulefree"}


class Number(click.FloatRange):
    """A finite number, 0 or more, or more than 0: NaN would pass a comparison with a limit."""

    def __init__(self, positive: bool = False) -> None:
        super().__init__(0, min_open=positive)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


NUMBER, POSITIVE = Number(), Number(positive=True)
COUNT = click.IntRange(1, 1_000_000)
PARALLEL = click.IntRange(1, 1_000)  # threads, processes, and seeds, for each of which runs are planned


@contextlib.contextmanager
def extras_needed() -> Iterator[None]:
    """Turn a missing package of the extra into a message that says what to install."""
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files; the user's choice is for windows, and need not exist here
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        raise click.ClickException(
            f"this command needs the package {error.name.partition('.')[0]!r}, which is not installed; "
            f"pip install 'torch=={torch.__version__}' '.[experiments]' in the source folder (without torch's version "
            "pip may replace it by the newest)"
        ) from error


def make_console(*, width: int | None = None, quiet: bool = False) -> Console:
    """Prints text as it is: brackets may be part of a path. ``width`` is for output that is not a terminal's."""
    from rich.console import Console

    console = Console(markup=False, quiet=quiet)
    if width is not None and not console.is_terminal:
        console.width = width
    return console


def check_writable(option: str, path: Path, *, make_folder: bool = True) -> None:
    """ClickException if the file cannot be written, before the run rather than after it."""
    try:
        files.check_writable(path, make_folder=make_folder)
    except OSError as error:
        raise click.ClickException(f"{option}: {path} cannot be written ({error.strerror or error})") from error


def refuse_without_gpu(device: str) -> None:
    """ClickException if ``--device cuda`` finds no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch finds no GPU here; see deeprelax doctor")


def out_option(what: str, **settings: Any) -> Callable[[F], F]:
    """The option ``--out``: a folder for ``what``."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--out", type=kind, metavar="DIR", help=what, show_default="default" in settings, **settings)


def data_option(what: str) -> Callable[[F], F]:
    """The option ``--data``: the folder of the data sets, passed as ``folder``."""
    kind = click.Path(path_type=Path)
    return click.option("--data", "folder", type=kind, metavar="DIR", help=f"{what}  [default: .data]")


device_option = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
backend_option = click.option(
    "--backend",
    type=click.Choice(["auto", *kernels.NAMES]),
    default="auto",
    show_default=True,
    help="What computes the updates; all give the same bits. See deeprelax doctor.",
)


def threads_option(default: str = "torch's choice", remark: str = "") -> Callable[[F], F]:
    """The option ``--threads``."""
    return click.option("--threads", type=PARALLEL, help=f"CPU threads{remark}.  [default: {default}]")
